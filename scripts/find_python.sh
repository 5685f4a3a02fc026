#!/bin/sh
# Print the path of a Python this project can use (>= 3.11, a final release, able to make virtual environments),
# or say on stderr which command brings one. PYTHON=/path/to/python forces the choice.
set -u

# 3.12 and 3.11 first: they are what the lock is tested on, and mmcv 1.7.2 does not build on newer ones.
candidates=${PYTHON:-python3.12 python3.11 python3.13 python3 python}

probe='
import sys
good = sys.version_info >= (3, 11) and sys.version_info.releaselevel == "final" and sys.version_info < (3, 14)
print(sys.executable if good else "old", "%d.%d.%d" % sys.version_info[:3])
import venv, ensurepip
print("venv")
'

without_venv=''
seen=''
IFS_default=$IFS
# A forced PYTHON is one path, which may hold spaces.
[ -n "${PYTHON:-}" ] && IFS=''
for name in $candidates; do
    IFS=$IFS_default
    answer=$("$name" -I -c "$probe" 2>/dev/null) || [ -n "$answer" ] || continue
    first=$(printf '%s\n' "$answer" | head -n 1)
    path=${first% *}
    version=${first##* }
    seen="$seen $name ($version)"
    [ "$path" = old ] && continue
    case $answer in
        *venv) printf '%s\n' "$path"; exit 0 ;;
    esac
    without_venv=${without_venv:-$version}
done

. /etc/os-release 2>/dev/null || true
distribution="${ID:-} ${VERSION_ID:-}"
sudo='sudo '
[ "$(id -u)" = 0 ] && sudo=''

{
    if [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON is no Python 3.11 to 3.13 that can make virtual environments.${seen:+ It is$seen.}"
        echo "Leave PYTHON out, and the newest suitable one on the PATH is taken."
        exit 1
    fi
    if [ -n "$without_venv" ]; then
        minor=${without_venv%.*}
        echo "Python $without_venv is here, but its venv module is not. Bring it with:"
        echo "    ${sudo}apt-get install -y python$minor-venv"
        exit 1
    fi
    echo "No Python 3.11, 3.12 or 3.13 found (looked for: $candidates).${seen:+ Found:$seen.}"
    case $distribution in
        "ubuntu 24."* | "ubuntu 23."*) package=python3.12 ;;
        "debian 12"*) package=python3.11 ;;
        "debian 13"* | "ubuntu 25."*) package=python3.13 ;;
        *) package='' ;;
    esac
    echo "Any one of these brings one, then call make again:"
    [ -z "$package" ] || echo "    ${sudo}apt-get install -y $package $package-venv"
    echo "    conda create -y -n py312 python=3.12 && conda activate py312"
    echo "    uv python install 3.12 && export PYTHON=\"\$(uv python find 3.12)\"       (uv: https://docs.astral.sh/uv)"
} >&2
exit 1
