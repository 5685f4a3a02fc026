#!/bin/sh
# The front door before anything is installed: finds a Python (3.9 or newer) to choose the lane with.
set -u
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
cd "$here/.." || exit 1
unset PYTHONPATH PYTHONHOME

for python in .venv/bin/python python3 python3.12 python3.11 python3.13; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2> /dev/null; then
        exec "$python" -m workspace_lib.tools.front "$@"
    fi
done

# Without any Python there is no lab that could run; what starts one is told how to bring it.
case ${1:-} in
    down | status | logs) echo 'Not installed yet, so nothing runs. Begin with: make up'; exit 0 ;;
    url) echo 'Not installed yet. Begin with: make up'; exit 1 ;;
esac
scripts/find_python.sh > /dev/null && echo "make $1: no Python 3.9 or newer under the name python3; PYTHON= is for .venv alone" >&2
exit 1
