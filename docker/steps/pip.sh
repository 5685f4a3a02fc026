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
    for known in "${PIP_CERT:-}" /etc/ssl/certs/ca-certificates.crt; do
        [ ! -f "$known" ] || { cat "$known" >> "$bundle"; break; }
    done
    cat /run/secrets/ca >> "$bundle"
    export PIP_CERT=$bundle SSL_CERT_FILE=$bundle REQUESTS_CA_BUNDLE=$bundle
fi
# Of an index that cannot be reached pip says, quietly, only that it found no version.
log=$(mktemp)
trap 'rm -f "$log" ${bundle:+"$bundle"}' EXIT
status=0
python -m pip "$action" "${options[@]}" --log "$log" "$@" || status=$?
if [ $status != 0 ] && grep -qi 'certificate.verify.failed' "$log"; then
    echo 'The package index could not be verified: certificate verify failed. Behind a proxy that opens TLS, name its' \
         'certificate: make build CA_CERT=/path/to/company.pem' >&2
elif [ $status != 0 ]; then
    grep -oiE '(connection to [^ ]+ timed out|temporary failure in name resolution|connection refused|name or service not known)' "$log" \
        | sort -u >&2 || true
fi
exit $status
