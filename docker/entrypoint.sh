#!/bin/bash
# Keep JupyterLab running: a server that ends is started again, and what `docker exec` started beside it never notices.
# Any other command than `lab` is run as it is. Nothing here is root: the container runs as the host's user.
set -uo pipefail

fail() { printf 'entrypoint: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" != 0 ] || fail 'the lab does not run as root; set LAB_UID and LAB_GID in .env, or use docker run --user'

# A home and a name for a uid that no file of the image knows: ssh, git and getpass ask for it.
export HOME=${HOME:-/home/$(id -u)}
[ "$HOME" != / ] || HOME=/home/$(id -u)
mkdir -p "$HOME" 2> /dev/null || fail "cannot make the home folder $HOME: the volume below /home belongs to another user"
if ! getent passwd "$(id -u)" > /dev/null; then
    printf '%s:x:%s:%s::%s:/bin/bash\n' "${USER:-lab}" "$(id -u)" "$(id -g)" "$HOME" > /var/lib/extrausers/passwd
    printf '%s:x:%s:\n' "${USER:-lab}" "$(id -g)" > /var/lib/extrausers/group
fi

[ "${1:-lab}" = lab ] || exec "$@"
shift

# Jupyter takes an empty token for "no token wanted".
token_file=${JUPYTER_TOKEN_FILE:?entrypoint: JUPYTER_TOKEN_FILE is not set; start the lab with make up}
[ -r "$token_file" ] || fail "cannot read $token_file: is the token file the user's own? make up writes it anew"
[ -n "$(tr -d '[:space:]' < "$token_file")" ] || fail 'the token is empty, which would let anyone in; delete .lab/token and call make up'

# Inside all interfaces, for the port is published from the outside; on the host it is bound to loopback.
serve=(jupyter lab --no-browser --ServerApp.ip=0.0.0.0 --ServerApp.port=8888 --ServerApp.port_retries=0
    --ServerApp.root_dir=/workspace '--ServerApp.terminado_settings={"shell_command": ["/bin/bash"]}')

stopping=''
server=''
stop() { stopping=yes; [ -z "$server" ] || kill -TERM "$server" 2> /dev/null; }
trap stop TERM INT

failures=0
while [ -z "$stopping" ]; do
    started=$SECONDS
    "${serve[@]}" "$@" &
    server=$!
    # A trapped signal ends `wait` early; the server is gone only when its process is.
    while wait "$server"; status=$?; kill -0 "$server" 2> /dev/null; do :; done
    [ -z "$stopping" ] || break
    server=''
    if [ $((SECONDS - started)) -lt 10 ]; then failures=$((failures + 1)); else failures=0; fi
    # Never the container's end: jobs may run in it. Without Jupyter it is unhealthy, and `make up` says so.
    if [ "$failures" -lt 5 ]; then pause=$((failures / 2)); else pause=60; fi
    echo "entrypoint: JupyterLab ended with status $status (the reason is above); starting it again in $pause s" >&2
    sleep "$pause" &
    wait "$!"
done
exit 0
