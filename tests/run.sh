#!/usr/bin/env bash
# run.sh - the one test command. Installs what the tests need, builds, and runs all of them.
#
#   tests/run.sh [--fast] [WORD...]
#
#   --fast   leave out clang, the builds with sanitizers, and the fuzz targets
#   WORD     only tests whose name contains one of these words: `tests/run.sh --fast tokenizer test_cluster`
#
# Environment: MOESAIC_SHARED       folder with others' files that are not part of the project (default ../shared);
#                                   suites that need it are skipped without it
#              MOESAIC_REQUIRE_SHARED=1  such a skip is a failure
#              MOESAIC_FUZZ_SECONDS how long each fuzz target runs (default 20)
#              CI                   when set, compiler warnings are errors
# Ends with one line: "N passed, N failed" and, if any, ", N skipped". Exit code 0: nothing failed.
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
mkdir -p build
log=$root/build/tests.log
: >"$log"
. deploy/steps.sh

fast=false
words=()
for arg in "$@"; do
    case $arg in
    --fast) fast=true ;;
    -h | --help)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    -*) fail "no option $arg; tests/run.sh --help" ;;
    *) words+=("$arg") ;;
    esac
done

n_passed=0 n_failed=0 n_skipped=0
failures=()
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
trap 'exit 130' INT TERM

wanted() {
    [ ${#words[@]} -eq 0 ] && return 0
    local word
    for word in "${words[@]}"; do
        case $1 in *"$word"*) return 0 ;; esac
    done
    return 1
}

since() { # seconds with one digit
    awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'
}

# report NAME PASSED FAILED SKIPPED SECONDS: one line.
report() {
    n_passed=$((n_passed + $2)) n_failed=$((n_failed + $3)) n_skipped=$((n_skipped + $4))
    printf '  %-44s %4d passed' "$1" "$2"
    [ "$3" -gt 0 ] && printf ', %d FAILED' "$3" && failures+=("$1")
    [ "$4" -gt 0 ] && printf ', %d skipped' "$4"
    printf '  %s s\n' "$5"
}

# One Criterion program. Its TAP report is what is counted; what it printed is shown when something failed.
run_program() { # NAME FOLDER
    local name=$1 program=$2/tests/${1##*/} began=$EPOCHREALTIME rc=0 tap=$out/tap text=$out/text
    rm -f "$tap"
    timeout 900 "$program" --timeout 300 --tap="$tap" >"$text" 2>&1 </dev/null || rc=$?
    local counts=(0 0 0)
    [ -f "$tap" ] && read -r -a counts < <(awk '/^(not )?ok .*# *SKIP/ { s++; next } /^ok / { p++ } /^not ok / { f++ }
        END { print p + 0, f + 0, s + 0 }' "$tap")
    # A program that failed without saying where: it crashed before or after its tests.
    [ "$rc" -ne 0 ] && [ "${counts[1]}" -eq 0 ] && counts[1]=1
    report "$3$name" "${counts[@]}" "$(since "$began")"
    { printf '\n== %s\n' "$3$name"; cat "$text"; } >>"$log"
    if [ "${counts[1]}" -gt 0 ]; then
        [ "$rc" -eq 124 ] && echo "    it did not end within 900 s"
        tail -n 60 "$text" | sed 's/^/    /'
    fi
    if [ "${counts[2]}" -gt 0 ]; then
        sed -n 's/^\(not \)\{0,1\}ok - \(.*\)# *SKIP *\(.*\)$/    skipped: \2 \3/p' "$tap" | head -n 5
    fi
}

# A script that prints one line per test and closes with "N passed, N failed".
run_script() { # NAME COMMAND...
    local name=$1 began=$EPOCHREALTIME rc=0 text=$out/text
    shift
    printf '  %s\n' "$name"
    timeout 1200 "$@" 2>&1 </dev/null | tee "$text" | grep --line-buffered -Ev '^[0-9]+ passed, [0-9]+ failed' | sed -u 's/^/    /'
    rc=${PIPESTATUS[0]}
    { printf '\n== %s\n' "$name"; cat "$text"; } >>"$log"
    local counts=(0 0 0)
    read -r -a counts < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$/\1 \2 \4/p' "$text" | tail -n 1)
    [ ${#counts[@]} -eq 0 ] && counts=(0 0)
    [ "$rc" -ne 0 ] && [ "${counts[1]}" -eq 0 ] && counts[1]=1
    report "$name" "${counts[0]}" "${counts[1]}" "${counts[2]:-0}" "$(since "$began")"
}

programs() { # FOLDER: names as folder/test_x, only of test files that are there now
    ctest -N --test-dir "$1" | sed -n 's/^ *Test *#[0-9]*: //p'
}

began_all=$EPOCHREALTIME
need_packages build tests

venv=$root/.venv
if ! cmp -s tests/integration/requirements.txt "$venv/installed.txt"; then
    quietly "Python clients: making .venv" python3 -m venv "$venv"
    quietly "Python clients: installing" "$venv/bin/pip" install --disable-pip-version-check -r tests/integration/requirements.txt
    cp tests/integration/requirements.txt "$venv/installed.txt"
fi

# Node's clients. Whoever has a Node of their own keeps it; Debian's comes in two packages.
clients=tests/integration/node
command -v npm >/dev/null 2>&1 || need_packages tests-node
if ! cmp -s $clients/package-lock.json $clients/node_modules/installed.json; then
    quietly "Node clients: installing" npm ci --prefix $clients --ignore-scripts --no-fund --no-audit
    cp $clients/package-lock.json $clients/node_modules/installed.json
fi
export MOESAIC_PYTHON=$venv/bin/python MOESAIC_REQUIRE_OPENAI=1 MOESAIC_BIN=$root/build/bin

echo "Lint"
wanted lint/arrows && run_script lint/arrows "$MOESAIC_PYTHON" -u tests/lint/arrows.py
for script in tests/mutation/{engine,same_bits}.py; do # run by hand; here only: do their faults still find the lines they change?
    name=${script#tests/}
    wanted "$name" && run_script "${name%.py} --check" "$MOESAIC_PYTHON" -u "$script" --check
done

werror=OFF
[ -n "${CI:-}" ] && werror=ON
quietly "Configuring" cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DMOESAIC_TESTS=ON -DMOESAIC_WERROR=$werror
quietly "Building" cmake --build build --parallel "$(cores)" --target moesaic moesaic-coordinator moesaic-node all_tests
# What gcc compiled, clang reads: the generated files are there now.
if ! $fast && wanted lint/clang; then
    echo "Lint by clang"
    run_script lint/clang "$MOESAIC_PYTHON" -u tests/lint/clang.py
fi

echo "Test programs"
for name in $(programs build); do
    wanted "$name" && run_program "$name" build ""
done

# Both sanitizers. Where the CPU has no AVX-512, its kernels run by emulation: of programs too, as some of the real processes
# below are those.
emulate=ON
grep -qw avx512_vnni /proc/cpuinfo && emulate=OFF
if ! $fast; then
    quietly "Configuring with sanitizers" cmake -S . -B build-asan -DCMAKE_BUILD_TYPE=Release \
        -DMOESAIC_TESTS=ON -DMOESAIC_SANITIZE=ON -DMOESAIC_EMULATE_AVX512=$emulate
    quietly "Building with sanitizers" cmake --build build-asan --parallel "$(cores)" \
        --target moesaic moesaic-coordinator moesaic-node all_tests
    echo "Test programs with AddressSanitizer and UndefinedBehaviorSanitizer"
    for name in $(programs build-asan); do
        wanted "$name" && run_program "$name" build-asan "asan "
    done
    [ $emulate = ON ] && export MOESAIC_BIN_AVX512=$root/build-asan/bin
fi

echo "Real processes"
for script in tests/integration/test_*.py; do
    name=${script#tests/}
    wanted "$name" && run_script "${name%.py}" "$MOESAIC_PYTHON" -u "$script"
done

# What has threads and no gRPC (whose own locks the sanitizer does not see), with ThreadSanitizer.
if ! $fast; then
    quietly "Configuring with ThreadSanitizer" cmake -S . -B build-tsan -DCMAKE_BUILD_TYPE=Release \
        -DMOESAIC_TESTS=ON -DMOESAIC_TSAN=ON
    quietly "Building with ThreadSanitizer" cmake --build build-tsan --parallel "$(cores)" --target all_tests
    echo "Test programs with ThreadSanitizer"
    for name in $(programs build-tsan); do
        wanted "$name" && run_program "$name" build-tsan "tsan "
    done
fi

# clang's own build, with both sanitizers and coverage: the seeds reach what they must, then a short run of each target.
if ! $fast && { wanted fuzz/coverage || wanted fuzz/run; }; then
    quietly "Configuring the fuzz targets" cmake -S . -B build-fuzz -DCMAKE_C_COMPILER=clang-14 -DMOESAIC_FUZZ=ON \
        -DMOESAIC_TESTS=OFF -DMOESAIC_WERROR=$werror
    quietly "Building the fuzz targets" cmake --build build-fuzz --parallel "$(cores)" --target all_fuzz
    echo "Fuzz targets"
    wanted fuzz/coverage && run_script fuzz/coverage "$MOESAIC_PYTHON" -u tests/fuzz/coverage.py
    wanted fuzz/run && run_script fuzz/run tests/fuzz/run.sh "${MOESAIC_FUZZ_SECONDS:-20}"
fi

echo
printf 'Took %s s; everything that was printed: %s\n' "$(since "$began_all")" "${log#"$root"/}"
[ ${#failures[@]} -gt 0 ] && printf 'Failed: %s\n' "${failures[@]}"
if [ $((n_passed + n_failed + n_skipped)) -eq 0 ]; then
    echo "No test has such a name."
    n_failed=1
fi
skipped=
[ $n_skipped -gt 0 ] && skipped=", $n_skipped skipped"
printf '%d passed, %d failed%s\n' $n_passed $n_failed "$skipped"
[ $n_failed -eq 0 ]
