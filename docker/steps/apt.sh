#!/bin/sh
# apt.sh PACKAGE...: install, from the network or, with OFFLINE=1, from the .deb files of /wheels/debs/$DEBS (base).
# FETCH=FOLDER: only bring the .deb files of what is missing here, for such a build.
# A build secret named ca (a company's certificate) is trusted for the length of this call, and not stored.
set -eu
export DEBIAN_FRONTEND=noninteractive
debs=/wheels/debs/${DEBS:-base}

if [ "${OFFLINE:-}" = 1 ]; then
    missing=''
    for package in "$@"; do
        dpkg-query --show --showformat='${Status}\n' "$package" 2> /dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || exit 0
    ls "$debs"/*.deb > /dev/null 2>&1 || {
        echo "OFFLINE=1, but there are no .deb files in docker$debs for:$missing. Call make wheels where there is a network." >&2
        exit 1
    }
    # No sources, so nothing to download. (With --no-download apt installs no file that it is given by its path.)
    exec apt-get install --yes --quiet=2 --no-install-recommends --option Dir::Etc::sourcelist=/dev/null \
        --option Dir::Etc::sourceparts=/dev/null "$debs"/*.deb
fi

if [ -s /run/secrets/ca ]; then
    APT_CONFIG=$(mktemp)
    export APT_CONFIG
    bundle=$(mktemp)
    cat /etc/ssl/certs/ca-certificates.crt /run/secrets/ca > "$bundle" 2> /dev/null || cat /run/secrets/ca > "$bundle"
    chmod 644 "$APT_CONFIG" "$bundle"
    printf 'Acquire::https::CAInfo "%s";\n' "$bundle" > "$APT_CONFIG"
fi
apt-get update --quiet=2
if [ -n "${FETCH:-}" ]; then
    mkdir -p "$FETCH/partial"
    apt-get install --yes --quiet=2 --no-install-recommends --download-only --option "Dir::Cache::archives=$FETCH" "$@"
    rm -rf "$FETCH/partial" "$FETCH/lock"
    exit 0
fi
apt-get install --yes --quiet=2 --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb ${APT_CONFIG:+"$APT_CONFIG" "$bundle"}
