#!/usr/bin/env bash
# Make .venv in the checkout and install the library into it (editable) with everything the lab, the demo and the
# tests need, at the versions of requirements/constraints.txt. Instant when nothing changed since the last time;
# a half-made environment (interrupted, moved, Python gone) is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.installed
CONSTRAINTS=requirements/constraints.txt
EXTRAS=${EXTRAS:-lab,demo,test}
NEED_GB=9  # 6.6 installed, the rest for pip's downloads

die() { printf 'make venv: %s\n' "$*" >&2; exit 1; }

# Everything the environment depends on; the folder too, for scripts in a venv hold its absolute path.
fingerprint() { { cat pyproject.toml "$CONSTRAINTS" scripts/make_venv.sh workspace_lib/jpeg_crop.{c,py} workspace_lib/tools/jpeg_crop.py; printf '%s|%s' "$PWD" "$EXTRAS"; } | cksum; }

usable() { [ -x $VENV/bin/python ] && $VENV/bin/python -c 'import pip' 2>/dev/null; }

up_to_date() { [ -f $STAMP ] && [ "$(cat $STAMP)" = "$(fingerprint)" ] && [ -x $VENV/bin/python ]; }

up_to_date && exit 0

# Two calls at once (make test beside make up): the second waits, then finds the work done.
if command -v flock > /dev/null; then
    exec 9< pyproject.toml
    flock 9
    if up_to_date; then exit 0; fi
fi

# Settings of the person's own that would send packages elsewhere or change what is built.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 MMCV_WITH_OPS=0

# No stamp means that an earlier call did not come to its end: what is in there cannot be trusted.
if [ ! -f $STAMP ] || ! usable; then
    python=$(scripts/find_python.sh) || exit 1
    free_gb=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1048576))
    [ "$free_gb" -ge "$NEED_GB" ] || die "$free_gb GB free in $PWD, about $NEED_GB needed. Make room, or clone onto a larger disk."
    if [ -e $VENV ]; then echo "Found an unfinished $VENV: making it anew."; fi
    echo "Installing into $VENV with $("$python" --version): about 3 GB to download, 6.6 GB on disk, 4 to 10 minutes."
    "$python" -m venv --clear $VENV || die "$python could not make $PWD/$VENV (see above)"
else
    echo "pyproject.toml or $CONSTRAINTS changed: bringing $VENV up to date."
fi
rm -f $STAMP

# pip says nothing for minutes; at a terminal, count the seconds and what has arrived.
heartbeat() {
    local start=$SECONDS
    while sleep 2; do printf '\r    %d s, %s in %s ' $((SECONDS - start)) "$(du -sh $VENV 2>/dev/null | cut -f1)" $VENV; done
}

step() {
    local said=$1 start=$SECONDS status=0 beat=''
    shift
    printf '%s ...\n' "$said"
    if [ -t 1 ]; then heartbeat & beat=$!; fi
    $VENV/bin/python -m pip install --quiet --constraint $CONSTRAINTS "$@" || status=$?
    if [ -n "$beat" ]; then kill "$beat" 2>/dev/null; wait "$beat" 2>/dev/null || true; printf '\r'; fi
    [ $status = 0 ] ||
        die "failed at: $said. The lines above say why. Once mended (network? proxy? disk?), call make again: downloads are kept."
    printf '    done in %d s                \n' $((SECONDS - start))
}
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT

step '1/3 build tools, numpy and OpenCV' setuptools wheel packaging numpy opencv-python-headless

# mmcv alone and after those: its setup.py imports pkg_resources (so no isolated build, which would bring a setuptools
# without it) and asks for opencv-python where it sees no headless one. A wheel from a cache may have been built
# elsewhere, with other answers.
if $VENV/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then
    step '2/3 mmcv (built from source in seconds)' --no-build-isolation --no-deps --no-cache-dir mmcv
else
    echo '2/3 left out: mmcv 1.7.2 and mmcls 0.25.0 do not build on Python 3.13; only comparisons with them need these.'
fi

step "3/3 PyTorch, JupyterLab and the library itself [$EXTRAS]" --no-build-isolation --editable ".[$EXTRAS]"

if $VENV/bin/python -m pip list 2>/dev/null | grep -Eq '^opencv-(contrib-)?python '; then
    die 'opencv-python came in beside opencv-python-headless; they overwrite each other. Remove the package that asked for it.'
fi
$VENV/bin/python -m workspace_lib.tools.jpeg_crop || echo "Training works without it, slower; later: $VENV/bin/python -m workspace_lib.tools.jpeg_crop"
fingerprint > $STAMP
echo "Installed. Python: $VENV/bin/python   commands: make help"
