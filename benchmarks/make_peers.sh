#!/usr/bin/env bash
# Make .venv-bench: the libraries that the benchmarks compare with, over the packages of .venv. Instant when nothing
# changed. What does not install is written to .venv-bench/missing.txt with the reason, and the tables name it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PEERS=.venv-bench
WANTED=benchmarks/peers.txt
STAMP=$PEERS/.installed
BASE=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

fingerprint() { { cat $WANTED "${BASH_SOURCE[0]}"; printf '%s|%s' "$PWD" "$BASE"; } | cksum; }

if [ -f $STAMP ] && [ "$(cat $STAMP)" = "$(fingerprint)" ]; then exit 0; fi
echo "Installing the peers of the benchmarks into $PEERS"
.venv/bin/python -m venv --clear $PEERS
# addsitedir, unlike a bare path, also reads the .pth files there: the library is installed as one of them.
.venv/bin/python - "$BASE" $PEERS <<'PY'
import pathlib, sys
base, peers = sys.argv[1:]
site = next(pathlib.Path(peers).glob('lib/python*/site-packages'))
(site / 'base.pth').write_text(f'import site; site.addsitedir({base!r})\n')
PY
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
: > $PEERS/missing.txt
while IFS=: read -r name packages; do
    case $name in '' | '#'*) continue ;; esac
    log=$PEERS/$name.log
    # shellcheck disable=SC2086 # a list
    if $PEERS/bin/python -m pip install --quiet --ignore-installed --no-deps --no-cache-dir $packages > "$log" 2>&1; then
        echo "  $name"
    else
        reason=$(grep -m1 -iE 'error:|not found|No matching' "$log" || tail -n 1 "$log")
        printf '%s\t%s\n' "$name" "$reason" >> $PEERS/missing.txt
        echo "  without $name: $reason (all of it: $log)"
    fi
done < $WANTED
fingerprint > $STAMP
