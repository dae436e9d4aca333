#!/usr/bin/env bash
# Runs an audit on a TPU VM with one host, using all of its chips; run it again after a preemption to go on.
#
#   CONFIG=configs/celeba.py WORKDIR=~/runs/celeba launch/tpu_vm.sh [--config.a.b=VALUE ...]
#
# On a slice of several hosts only training is shared so far: run `python3 -m side_jax.train ... --processes=HOSTS` on all
# of them, with one WORKDIR that all see, then this on one of them.
set -euo pipefail
: "${CONFIG:?set CONFIG to a config file, such as configs/celeba.py}"
: "${WORKDIR:?set WORKDIR to the folder for the results, on a disk that survives a preemption}"

cd "$(dirname "$0")/.."
if [[ ! -x .venv/bin/python3 ]]; then
  python3 -m venv .venv
fi
.venv/bin/pip install -q -e '.[tpu]'
exec .venv/bin/python3 -m side_jax.main --config="$CONFIG" --workdir="$WORKDIR" "$@"
