# Checks the environment and creates .venv; sourced by the other scripts with the pip extra to install as argument.
#
# All launch scripts read these variables: SIDE_CONFIG, a config file; SIDE_WORKDIR, the folder for the results, on
# persistent storage shared by all hosts; SIDE_PROCESSES, the number of processes (default 1). Further arguments are
# flags of side_jax.main. Run the script again after a preemption or a crash to continue.
: "${SIDE_CONFIG:?set SIDE_CONFIG to a config file, such as configs/celeba.py}"
: "${SIDE_WORKDIR:?set SIDE_WORKDIR to the folder for the results, on persistent storage shared by all hosts}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv/bin/python3 ]]; then
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "python3 is $(python3 -V 2>&1), but side_jax needs 3.11 or newer; create $PWD/.venv with a newer one" \
      "(python3.12 -m venv .venv) and run this script again." >&2
    exit 1
  fi
  python3 -m venv .venv
fi
.venv/bin/pip install -q -e ".[$1]"
side_jax=(.venv/bin/python3 -m side_jax.main "--config=$SIDE_CONFIG" "--workdir=$SIDE_WORKDIR")
side_jax+=("--processes=${SIDE_PROCESSES:-1}")

# The compilation cache saves recompiling the same shapes in a later run. One process has it in ~/.cache/side_jax. With
# several only the first writes to it, so it must lie on shared storage. Several CPU processes that read from it wait
# forever for each other (JAX 0.10.2, see tests/devices/test_processes.py), so they use it only on GPUs and TPUs.
accelerated() { compgen -G '/dev/nvidia[0-9]*' || compgen -G '/dev/accel[0-9]*' || compgen -G '/dev/vfio/[0-9]*'; }
if ((${SIDE_PROCESSES:-1} > 1)); then
  if accelerated >/dev/null; then
    export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${SIDE_WORKDIR%/}/.compiled}"
  else
    unset JAX_COMPILATION_CACHE_DIR
  fi
fi
