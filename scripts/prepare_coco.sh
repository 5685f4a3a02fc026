#!/usr/bin/env bash
# COCO 2017 once, verified, never half-done:  scripts/prepare_coco.sh DEST   (--help: more)
# Runs in .venv, and in the container that `make prepare` opens, where DEST is below /dataset.
exec "$(dirname "${BASH_SOURCE[0]}")/prepare.sh" coco "$@"
