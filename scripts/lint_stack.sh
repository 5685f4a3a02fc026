#!/usr/bin/env bash
# Static checks of the container stack and of every shell script; the linters are of the lock, and none needs a network.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
bin=.venv/bin
status=0
check() { "$bin/$1" "${@:2}" || { echo "$1 found the above" >&2; status=1; }; }

mapfile -t scripts < <(git ls-files '*.sh' .ci/run tests/container/run 2> /dev/null || find . -path ./.venv -prune -o -name '*.sh' -print)
mapfile -t compose < <(find . -maxdepth 2 -name 'docker-compose*.yml' -not -path './.venv/*')
check hadolint docker/Dockerfile tests/container/base.Dockerfile
# Linting a script that no longer exists would be an error of its own.
for script in "${scripts[@]}"; do
    # SC2329: called by a trap, or exported.
    [ ! -f "$script" ] || check shellcheck --external-sources --exclude=SC2329 "$script"
done
check yamllint --strict --config-file .yamllint "${compose[@]}"
check check-jsonschema --quiet --builtin-schema vendor.compose-spec "${compose[@]}"
exit $status
