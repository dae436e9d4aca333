# Sourced by the other scripts, with the extra to install as its argument: checks the environment, makes .venv.
#
# The contract of all of them: SIDE_CONFIG, a config file; SIDE_WORKDIR, the folder for the results, on a disk that
# survives and that all hosts see; SIDE_PROCESSES, how many processes join (by default 1). Further arguments are flags of
# side_jax.main. Run it again after a preemption or a crash to go on.
: "${SIDE_CONFIG:?set SIDE_CONFIG to a config file, such as configs/celeba.py}"
: "${SIDE_WORKDIR:?set SIDE_WORKDIR to the folder for the results, on a disk that survives and that all hosts see}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv/bin/python3 ]]; then
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "python3 is $(python3 -V 2>&1), but side_jax needs 3.11 or newer; make $PWD/.venv by such a one" \
      "(python3.12 -m venv .venv) and run this again." >&2
    exit 1
  fi
  python3 -m venv .venv
fi
.venv/bin/pip install -q -e ".[$1]"
side_jax=(.venv/bin/python3 -m side_jax.main "--config=$SIDE_CONFIG" "--workdir=$SIDE_WORKDIR")
side_jax+=("--processes=${SIDE_PROCESSES:-1}")

# A sweep compiles once, and with a cache on disk a later run of the same shapes doesn't at all. Of several processes
# only the first writes to it, so it must lie where all see it; and on CPU such processes wait forever for each other
# once they read from it (JAX 0.10.2, see tests/test_processes.py), so they get one only beside a GPU or TPU.
accelerated() { compgen -G '/dev/nvidia[0-9]*' || compgen -G '/dev/accel[0-9]*' || compgen -G '/dev/vfio/[0-9]*'; }
if ((${SIDE_PROCESSES:-1} == 1)); then
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/side_jax}"
elif accelerated >/dev/null; then
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${SIDE_WORKDIR%/}/.compiled}"
else
  unset JAX_COMPILATION_CACHE_DIR
fi
