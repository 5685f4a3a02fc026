#!/bin/bash
# pip.sh install|wheel|download ...: pip of the image's environment, held to its lock, from the index or, with
# OFFLINE=1, from /wheels alone. A build secret named ca (a company's certificate) is trusted for this call only.
set -euo pipefail

action=$1
shift
options=(--no-cache-dir --disable-pip-version-check --quiet --root-user-action=ignore)
[ "$action" = install ] || options=(--no-cache-dir --disable-pip-version-check --quiet)
# Wheels that `make wheels` left are taken first, network or not.
[ ! -d /wheels/pip ] || options+=(--find-links /wheels/pip)
[ "${OFFLINE:-}" != 1 ] || options+=(--no-index)
[ ! -f /opt/lock.txt ] || options+=(--constraint /opt/lock.txt)

if [ -s /run/secrets/ca ]; then
    bundle=$(mktemp)
    trap 'rm -f "$bundle"' EXIT
    for known in "${PIP_CERT:-}" /etc/ssl/certs/ca-certificates.crt; do
        [ ! -f "$known" ] || { cat "$known" >> "$bundle"; break; }
    done
    cat /run/secrets/ca >> "$bundle"
    export PIP_CERT=$bundle SSL_CERT_FILE=$bundle REQUESTS_CA_BUNDLE=$bundle
fi
python -m pip "$action" "${options[@]}" "$@"
