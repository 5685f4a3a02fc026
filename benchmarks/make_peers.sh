#!/usr/bin/env bash
# Make .venv-bench: the libraries that the benchmarks compare with, over the packages of .venv. Instant when nothing
# changed. What does not install is written to .venv-bench/missing.txt with the reason, and the tables name it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PEER=.venv-bench
WANTED=benchmarks/peers.txt
. scripts/over_venv.sh
if is_current; then exit 0; fi
echo "Installing the peers of the benchmarks into $PEER"
make_over_venv
: > $PEER/missing.txt
while IFS=: read -r name packages; do
    case $name in '' | '#'*) continue ;; esac
    log=$PEER/$name.log
    # shellcheck disable=SC2086 # a list
    if $PEER/bin/python -m pip install --quiet --ignore-installed --no-deps --no-cache-dir $packages > "$log" 2>&1; then
        echo "  $name"
    else
        reason=$(grep -m1 -iE 'error:|not found|No matching' "$log" || tail -n 1 "$log")
        printf '%s\t%s\n' "$name" "$reason" >> $PEER/missing.txt
        echo "  without $name: $reason (all of it: $log)"
    fi
done < $WANTED
note_current
