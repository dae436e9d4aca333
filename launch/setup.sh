# Sourced by the other scripts, with the extra to install as its argument: checks the environment, makes .venv.
#
# The contract of all of them: SIDE_CONFIG, a config file; SIDE_WORKDIR, the folder for the results, on a disk that
# survives and that all hosts see; SIDE_PROCESSES, how many processes join (by default 1). Further arguments are flags of
# side_jax.main. Run it again after a preemption or a crash to go on.
: "${SIDE_CONFIG:?set SIDE_CONFIG to a config file, such as configs/celeba.py}"
: "${SIDE_WORKDIR:?set SIDE_WORKDIR to the folder for the results, on a disk that survives and that all hosts see}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv/bin/python3 ]]; then
  python3 -m venv .venv
fi
.venv/bin/pip install -q -e ".[$1]"
# A sweep compiles once, and with this a later run of the same shapes doesn't at all.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/side_jax}"
side_jax=(.venv/bin/python3 -m side_jax.main "--config=$SIDE_CONFIG" "--workdir=$SIDE_WORKDIR")
side_jax+=("--processes=${SIDE_PROCESSES:-1}")
