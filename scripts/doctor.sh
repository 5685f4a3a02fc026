#!/bin/sh
# `make doctor` before anything is installed: finds a Python (3.8 or newer) and lets it look.
set -u
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
root=$(cd "$here/.." && pwd) || exit 1
unset PYTHONPATH PYTHONHOME

# The checkout's own environment last: it may be the very thing that is broken.
for python in python3 /usr/bin/python3 python3.13 python3.12 python3.11 python "$root/.venv/bin/python"; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null; then
        PYTHONPATH=$root exec "$python" -m workspace_lib.tools.doctor --root "$root" "$@"
    fi
done

sudo='sudo '
[ "$(id -u)" = 0 ] && sudo=''
echo "make doctor: no Python 3.8 or newer on the PATH. Bring one with: ${sudo}apt-get install -y python3" >&2
exit 42
