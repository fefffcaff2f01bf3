"""What the scripts of this folder share: a copy of the tree in which a fault is planted, built and taken out again."""
import contextlib
import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


class NotThere(Exception):
    """The text to be replaced is not in the file exactly once."""


class Tree:
    """A copy of what git knows or would know, in a folder of the caller's, with one build folder."""

    def __init__(self, folder, *options):
        self.folder = pathlib.Path(folder)
        # With ccache the copy's name does not count, so that a second run finds what the first has compiled.
        self.env = {"CCACHE_BASEDIR": str(folder), "CCACHE_NOHASHDIR": "1", **os.environ}
        names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                               stdout=subprocess.PIPE).stdout.decode().split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        subprocess.run(["cmake", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", *options], cwd=self.folder, env=self.env, check=True,
                       stdout=subprocess.DEVNULL)

    def build(self, targets):
        """None, or what the compiler said."""
        done = subprocess.run(["cmake", "--build", "build", "--parallel", str(os.cpu_count()), "--target", *targets], cwd=self.folder,
                              env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return None if done.returncode == 0 else done.stdout[-1500:]

    @contextlib.contextmanager
    def planted(self, edits):
        """Each edit is (file, old, new), old there exactly once. The files are as before when the block ends."""
        before = {}
        try:
            for name, old, new in edits:
                text = (self.folder / name).read_text()
                before.setdefault(name, text)
                if text.count(old) != 1:
                    raise NotThere(f"{name} has {text.count(old)} times: {old}")
                (self.folder / name).write_text(text.replace(old, new))
            yield
        finally:
            for name, text in before.items():
                (self.folder / name).write_text(text)


def check(faults):
    """Does each fault (name -> edits) find its place in the sources as they are? Nothing is built. The exit code."""
    lost = [(fault, file, old) for fault, edits in faults.items() for file, old, _ in edits
            if not (ROOT / file).exists() or (ROOT / file).read_text().count(old) != 1]
    for fault, file, old in lost:
        print(f"  FAILED  {fault}: not exactly once in {file}: {old}")
    n_failed = len({fault for fault, _, _ in lost})
    print(f"{len(faults) - n_failed} passed, {n_failed} failed")
    return 1 if lost else 0
