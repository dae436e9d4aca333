#!/usr/bin/env bash
# Runs an audit on all hosts of a TPU slice, from any machine with gcloud: copies this commit to every host, then starts
# launch/tpu_vm.sh there. SIDE_PROCESSES is the number of hosts; it is an error if another number of processes joins.
#
#   SIDE_TPU=NAME SIDE_ZONE=ZONE SIDE_PROCESSES=4 SIDE_CONFIG=configs/celeba.py SIDE_WORKDIR=gs://BUCKET/celeba \
#       launch/tpu_pod.sh [--config.a.b=VALUE ...]
set -euo pipefail
: "${SIDE_TPU:?set SIDE_TPU to the name of the TPU slice}"
: "${SIDE_ZONE:?set SIDE_ZONE to its zone, such as us-central2-b}"
: "${SIDE_PROCESSES:?set SIDE_PROCESSES to the number of hosts of the slice}"
: "${SIDE_CONFIG:?set SIDE_CONFIG to a config file, such as configs/celeba.py}"
: "${SIDE_WORKDIR:?set SIDE_WORKDIR to the folder for the results, shared by all hosts, such as gs://BUCKET/celeba}"

cd "$(dirname "$0")/.."
archive=$(mktemp "${TMPDIR:-/tmp}/side_jax.XXXXXX")
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$SIDE_TPU:side_jax.tar.gz" --zone="$SIDE_ZONE" --worker=all
printf -v command 'SIDE_CONFIG=%q SIDE_WORKDIR=%q SIDE_PROCESSES=%q launch/tpu_vm.sh' \
  "$SIDE_CONFIG" "$SIDE_WORKDIR" "$SIDE_PROCESSES"
if (($#)); then printf -v flags ' %q' "$@"; fi
# Deletes the folders that this commit contains, since an earlier commit may have left other files in them; keeps .venv
# and results.
unpack='mkdir -p side_jax && cd side_jax'
unpack+=' && tar -tzf ../side_jax.tar.gz | cut -d/ -f1 | sort -u | xargs rm -rf && tar -xzf ../side_jax.tar.gz'
gcloud compute tpus tpu-vm ssh "$SIDE_TPU" --zone="$SIDE_ZONE" --worker=all --command="$unpack && $command${flags-}"
