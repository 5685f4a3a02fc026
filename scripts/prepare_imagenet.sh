#!/usr/bin/env bash
# ImageNet (ILSVRC2012) once, verified, never half-done:  scripts/prepare_imagenet.sh ARCHIVES DEST   (--help: more)
# Runs in .venv, and in the container that `make prepare` opens, where DEST is below /dataset.
exec "$(dirname "${BASH_SOURCE[0]}")/prepare.sh" imagenet "$@"
