# steps.sh - what deploy/quickstart.sh and tests/run.sh share: packages, and long commands shown as one line each.
# POSIX sh, sourced. Wants: root (the project's folder), log (a file). Sets nothing else that callers use.

# fail TEXT: one line says what failed; the end.
fail() {
    printf 'failed: %s\n' "$1" >&2
    exit 1
}

# missing KIND...: the packages of these kinds that are not installed, one a line.
missing() {
    for kind in "$@"; do
        sed -n "s/^$kind //p" "$root/deploy/packages.txt"
    done | while read -r package; do
        case $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) in
        installed) ;;
        *) printf '%s\n' "$package" ;;
        esac
    done
}

# need_packages KIND...: install what is missing, as root or with sudo; else print the exact line and end.
need_packages() {
    if ! command -v dpkg-query >/dev/null 2>&1; then
        echo "This is no Debian system: packages are not checked. What is needed: deploy/packages.txt"
        return 0
    fi
    wanted=$(missing "$@" | tr '\n' ' ')
    wanted=${wanted% }
    if [ -z "$wanted" ]; then
        echo "Packages: all there"
        return 0
    fi
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        sudo=sudo
        if ! command -v sudo >/dev/null 2>&1 || { ! [ -t 0 ] && ! sudo -n true 2>/dev/null; } || ! sudo -v; then
            echo "Some packages are missing. Install them as root, then run this again:" >&2
            echo "  apt-get update && apt-get install --no-install-recommends -y $wanted" >&2
            exit 1
        fi
    fi
    echo "Packages to install: $wanted"
    quietly "Reading the package lists" $sudo apt-get update
    # Without a terminal debconf would complain and pick this frontend anyway.
    # shellcheck disable=SC2086 # one word per package is meant
    quietly "Installing packages" $sudo env DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y $wanted
}

# percent LINE: sets `percent` when a line of cmake, make or ninja begins with its progress; false otherwise.
percent() {
    case $1 in
    "["*"]"*) ;;
    *) return 1 ;;
    esac
    percent=${1#"["}
    percent=${percent%%"]"*}
    case $percent in
    *%) percent=${percent%"%"} ;;
    */*) percent=$((${percent%/*} * 100 / ${percent#*/})) ;;
    esac
    percent=${percent##* }
    case $percent in '' | *[!0-9]*) return 1 ;; esac
}

# quietly LABEL COMMAND...: all output goes to the log; one line shows label, progress, seconds. Ends when it fails.
# The command stays in the foreground group, so that Ctrl-C ends it too.
quietly() {
    label=$1
    shift
    began=$(date +%s)
    printf '%s ...' "$label"
    printf '\n== %s: %s\n' "$label" "$*" >>"$log"
    rc_file=$log.rc
    rm -f "$rc_file"
    {
        rc=0
        "$@" 2>&1 || rc=$?
        echo "$rc" >"$rc_file"
    } | {
        shown=0
        while IFS= read -r line; do
            printf '%s\n' "$line" >>"$log"
            percent "$line" || continue
            if [ -t 1 ]; then
                printf '\r%s ... %s%% ' "$label" "$percent"
            elif [ "$percent" -ge $((shown + 20)) ] && [ "$percent" -lt 100 ]; then
                shown=$percent
                printf ' %s%%' "$percent"
            fi
        done
    }
    rc=$(cat "$rc_file" 2>/dev/null || echo 130)
    rm -f "$rc_file"
    seconds=$(($(date +%s) - began))
    if [ -t 1 ]; then printf '\r%s ... ' "$label"; else printf ' '; fi
    if [ "$rc" -eq 0 ]; then
        printf 'done, %s s\n' "$seconds"
    else
        printf 'failed, %s s\n' "$seconds"
        # The first line that names an error says more than the last one.
        why=$(awk -v label="== $label: " 'index($0, label) == 1 { line = "" }
            line == "" && /([Ee]rror|E): |No space|Killed/ { line = $0 } END { print line }' "$log")
        fail "$label (exit code $rc)${why:+: $why}; the whole story: $log"
    fi
}

cores() {
    nproc 2>/dev/null || echo 1
}
