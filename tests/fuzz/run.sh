#!/usr/bin/env bash
# run.sh - run the fuzz targets for a time each, two at once, from the seeds in this repository.
#
#   tests/fuzz/run.sh SECONDS [NOUN...]
#
# Wants them built (tests/README.md says how). What a run finds is in build-fuzz/found: crash-*, timeout-*, oom-* and the
# log of that target. The inputs that reached something new stay in build-fuzz/corpus for the next run.
# Environment: MOESAIC_FUZZ_BIN  the folder of the targets (default build-fuzz/fuzz)
#              MOESAIC_FUZZ_TIMEOUT  seconds for one input by the clock (default 20; more where others use the machine)
#              MOESAIC_FUZZ_SEED the number that libFuzzer's choices come from (default 1; 0: another one each time)
# Ends with "N passed, N failed"; exit code 0: nothing was found.
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=${MOESAIC_FUZZ_BIN:-$root/build-fuzz/fuzz}
work=$(dirname "$bin")
case ${1:-} in
'' | *[!0-9]*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
seconds=$1
shift
nouns=("$@")
if [ ${#nouns[@]} -eq 0 ]; then
    for file in "$root"/tests/fuzz/fuzz_*.c; do
        noun=${file##*/fuzz_}
        nouns+=("${noun%.c}")
    done
fi
mkdir -p "$work/found"
# Targets that read files write them many times a second: in memory, if there is such a place.
scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")" moesaic-fuzz-XXXXXX)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

fuzz_one() { # NOUN: one line; leaves NOUN.failed behind when something was found
    local noun=$1 source=$root/tests/fuzz/fuzz_$1.c log=$work/found/$1.log rc=0 extra=()
    local max_len
    max_len=$(sed -n 's,^// max_len: *,,p' "$source")
    [ -f "$root/tests/fuzz/dict/$noun.dict" ] && extra+=("-dict=$root/tests/fuzz/dict/$noun.dict")
    mkdir -p "$work/corpus/$noun" "$scratch/$noun"
    TMPDIR=$scratch/$noun LLVM_PROFILE_FILE=/dev/null "$bin/fuzz_$noun" -max_total_time="$seconds" -max_len="$max_len" \
        -timeout="${MOESAIC_FUZZ_TIMEOUT:-20}" -rss_limit_mb=2048 -seed="${MOESAIC_FUZZ_SEED:-1}" -print_final_stats=1 -artifact_prefix="$work/found/$noun-" \
        "${extra[@]}" "$work/corpus/$noun" "$root/tests/fuzz/seeds/$noun" >"$log" 2>&1 || rc=$?
    local runs
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ $rc -eq 0 ]; then
        printf '  passed  %s: %s inputs\n' "$noun" "${runs:-?}"
    else
        printf '  FAILED  %s: exit code %s\n' "$noun" $rc
        grep -vE '^#|^INFO|NEW_FUNC' "$log" | head -n 30 | sed 's/^/    /'
        : >"$scratch/$noun.failed"
    fi
}

for ((i = 0; i < ${#nouns[@]}; i++)); do
    fuzz_one "${nouns[i]}" &
    [ $i -ge 1 ] && wait -n
done
wait
n_failed=$(find "$scratch" -maxdepth 1 -name '*.failed' | wc -l)
printf '%d passed, %d failed\n' $((${#nouns[@]} - n_failed)) "$n_failed"
[ "$n_failed" -eq 0 ]
