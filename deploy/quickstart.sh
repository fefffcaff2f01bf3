#!/bin/sh
# quickstart.sh - from a fresh Debian 12 machine to a story told by a coordinator and three expert nodes.
#
#   deploy/quickstart.sh [--keep] [--kill-a-node] [any other option of `moesaic demo`]
#
# Installs what is missing (as root or with sudo; else it prints the exact line), builds a Release in build/, and runs
# `moesaic demo` on the model in deploy/demo. Works from any folder; run it again as often as you like.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
here=$(pwd)
log=$root/build/quickstart.log
. "$root/deploy/steps.sh"

case ${1-} in
-h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

mkdir -p "$root/build" || fail "cannot make $root/build"
: >"$log" || fail "cannot write $log"
need_packages build

# A build folder that is there keeps its settings; a new one leaves the tests out, which need more packages.
if [ -f "$root/build/CMakeCache.txt" ]; then
    quietly "Configuring" cmake -S "$root" -B "$root/build"
else
    quietly "Configuring" cmake -S "$root" -B "$root/build" -DCMAKE_BUILD_TYPE=Release -DMOESAIC_TESTS=OFF
fi
quietly "Building" cmake --build "$root/build" --parallel "$(cores)" --target moesaic moesaic-coordinator moesaic-node

# Shorter paths in what it prints, when the project is where the user stands.
if [ "$here" = "$root" ]; then
    exec build/bin/moesaic demo deploy/demo "$@"
fi
exec "$root/build/bin/moesaic" demo "$root/deploy/demo" "$@"
