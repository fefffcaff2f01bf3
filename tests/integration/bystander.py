"""A client that does nothing wrong, beside others that do. Standard library only."""
import threading

from cluster import Stream

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0.8, "seed": 11, "ignore_eos": True,
        "return_token_ids": True}


class Bystander:
    """Another client with one long stream after the other, all the same request: every answer must be the first one."""

    def __init__(self, url):
        self.url, self.stop, self.streams, self.failure = url, False, 0, None
        self.want = self.one()
        assert len(self.want[0]) > 50 and self.want[1] == "length", self.want
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def one(self):
        s = Stream(self.url, LONG).read()
        assert s.done and s.error is None, s.error
        s.close()
        return s.text(), s.finish(), [c.get("token_ids") for c in s.choices()]

    def run(self):
        try:
            while not self.stop:
                got = self.one()
                assert got == self.want, "a stream differs from the same one before"
                self.streams += 1
        except BaseException as e:  # noqa: BLE001 - raised by end()
            self.failure = e

    def end(self):
        self.stop = True
        self.thread.join()
        if self.failure is not None:
            raise self.failure
        assert self.streams >= 1, "no stream went through meanwhile"
