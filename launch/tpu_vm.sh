#!/usr/bin/env bash
# Runs an audit on all chips of this TPU host; launch/tpu_pod.sh calls it on every host of a slice.
#
#   SIDE_CONFIG=configs/celeba.py SIDE_WORKDIR=~/runs/celeba launch/tpu_vm.sh [--config.a.b=VALUE ...]
set -euo pipefail
source "$(dirname "$0")/setup.sh" tpu
exec "${side_jax[@]}" "$@"
