# shellcheck shell=bash
# Sourced, in the checkout's root, by what makes an environment over the packages of .venv. The caller sets
#   PEER     its folder
#   WANTED   the file that lists what is installed there
# and asks `is_current`, then `make_over_venv`, installs, and at the end says `note_current`.

BASE=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

fingerprint() { { cat "$WANTED" "$0" "${BASH_SOURCE[0]}"; printf '%s|%s' "$PWD" "$BASE"; } | cksum; }

is_current() { [ -f "$PEER/.installed" ] && [ "$(cat "$PEER/.installed")" = "$(fingerprint)" ]; }

note_current() { fingerprint > "$PEER/.installed"; }

make_over_venv() {
    .venv/bin/python -m venv --clear "$PEER"
    # addsitedir, unlike a bare path, also reads the .pth files there: the library is installed as one of them.
    .venv/bin/python - "$BASE" "$PEER" <<'PY'
import pathlib, sys
base, peer = sys.argv[1:]
site = next(pathlib.Path(peer).glob('lib/python*/site-packages'))
(site / 'base.pth').write_text(f'import site; site.addsitedir({base!r})\n')
PY
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
}
