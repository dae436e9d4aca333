#!/usr/bin/env bash
# Runs an audit on one machine with NVIDIA GPUs, on all devices in CUDA_VISIBLE_DEVICES.
#
#   SIDE_CONFIG=configs/celeba.py SIDE_WORKDIR=runs/celeba launch/gpu.sh [--config.a.b=VALUE ...]
set -euo pipefail
source "$(dirname "$0")/setup.sh" cuda
exec "${side_jax[@]}" "$@"
