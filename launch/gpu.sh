#!/usr/bin/env bash
# Runs an audit on a machine with NVIDIA GPUs, using all that CUDA_VISIBLE_DEVICES shows; run it again to go on.
#
#   CONFIG=configs/celeba.py WORKDIR=runs/celeba launch/gpu.sh [--config.a.b=VALUE ...]
set -euo pipefail
: "${CONFIG:?set CONFIG to a config file, such as configs/celeba.py}"
: "${WORKDIR:?set WORKDIR to the folder for the results}"

cd "$(dirname "$0")/.."
if [[ ! -x .venv/bin/python3 ]]; then
  python3 -m venv .venv
fi
.venv/bin/pip install -q -e '.[cuda]'
exec .venv/bin/python3 -m side_jax.main --config="$CONFIG" --workdir="$WORKDIR" "$@"
