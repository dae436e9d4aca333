"""The launch scripts, with what they call replaced by a recorder: gcloud, srun, and the Python of .venv."""

import glob
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "gpu.sh": {"SIDE_CONFIG": "configs/smoke.py", "SIDE_WORKDIR": "runs/a b"},
    "tpu_vm.sh": {"SIDE_CONFIG": "configs/smoke.py", "SIDE_WORKDIR": "runs/a b", "SIDE_PROCESSES": "4"},
    "tpu_pod.sh": {
        "SIDE_CONFIG": "configs/smoke.py",
        "SIDE_WORKDIR": "gs://bucket/a b",
        "SIDE_PROCESSES": "4",
        "SIDE_TPU": "slice",
        "SIDE_ZONE": "zone",
    },
    "slurm.sbatch": {"SIDE_CONFIG": "configs/smoke.py", "SIDE_WORKDIR": "runs/a b", "SLURM_NTASKS": "3"},
}
OPTIONAL = {("tpu_vm.sh", "SIDE_PROCESSES")}
FLAGS = ["--config.name=two words", "--stages=train"]
RECORDER = """#!/usr/bin/env bash
printf "%q " "$(basename "$0")" "$@" >>"$RECORD"; echo >>"$RECORD"
echo "${JAX_LOCAL_DEVICE_IDS-all} ${JAX_COMPILATION_CACHE_DIR-none}" >>"$RECORD.environment"
"""
# Two hosts of unequal size, one after the other.
SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for gpus in ${HOSTS-2 8}; do
  [[ $gpus == none ]] || export SLURM_GPUS_ON_NODE=$gpus
  "$@" || exit
done
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def repository(tmp_path):
    """A clone's launch folder, a .venv and gcloud that only write down how they are called, a Slurm of two hosts."""
    root = tmp_path / "clone with a space"
    shutil.copytree(ROOT / "launch", root / "launch")
    for path in (".venv/bin/python3", ".venv/bin/pip", "bin/gcloud", "bin/srun"):
        program(root / path, SRUN if path == "bin/srun" else RECORDER)
    subprocess.run(["git", "init", "-q", root], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", root, "add", "launch"], check=True)
    subprocess.run(["git", "-C", root, *who, "commit", "-qm", "launch"], check=True)
    return root


def launch(repository, script, variables, flags=FLAGS):
    """(exit code, error, the recorded commands, what JAX would see at each: devices and compilation cache)."""
    record, seen = repository / "record", repository / "record.environment"
    record.write_text("")
    seen.write_text("")
    path = f"{repository / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(repository), "RECORD": str(record), "SLURM_SUBMIT_DIR": str(repository)}
    command = ["bash", str(repository / "launch" / script), *flags]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    commands = [shlex.split(line) for line in record.read_text().splitlines()]
    return done.returncode, done.stderr, commands, [line.split(" ", 1) for line in seen.read_text().splitlines()]


@pytest.mark.parametrize("script", [*SCRIPTS, "setup.sh"])
def test_syntax(script):
    subprocess.run(["bash", "-n", ROOT / "launch" / script], check=True)


def test_all_scripts_are_tested_and_strict():
    found = {path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch")}
    assert found == {*SCRIPTS, "setup.sh"}
    for script in SCRIPTS:
        assert "set -euo pipefail\n" in (ROOT / "launch" / script).read_text()


@pytest.mark.parametrize(("script", "missing"), [(s, name) for s, v in SCRIPTS.items() for name in v])
def test_a_missing_variable_is_named_before_anything_runs(repository, script, missing):
    if (script, missing) in OPTIONAL:
        pytest.skip("it has a default")
    variables = {name: value for name, value in SCRIPTS[script].items() if name != missing}
    code, error, commands, _ = launch(repository, script, variables)
    assert code != 0
    assert missing in error
    assert "set " in error or "submit this script with sbatch" in error
    assert not commands


@pytest.mark.parametrize(
    ("script", "extra", "processes"),
    [("gpu.sh", "cuda", "1"), ("tpu_vm.sh", "tpu", "4"), ("slurm.sbatch", "cuda", "3")],
)
def test_all_drive_the_same_binary(repository, script, extra, processes):
    code, error, (install, *hosts), (_, *seen) = launch(repository, script, SCRIPTS[script])
    assert code == 0, error
    assert install == ["pip", "install", "-q", "-e", f".[{extra}]"]
    main = ["-m", "side_jax.main", "--config=configs/smoke.py", "--workdir=runs/a b", f"--processes={processes}"]
    devices = ["0,1", "0,1,2,3,4,5,6,7"] if script == "slurm.sbatch" else ["all"]
    assert hosts == [["python3", *main, *FLAGS]] * len(devices)
    assert [host[0] for host in seen] == devices


def test_a_slurm_host_without_gpus_says_so(repository):
    code, error, (_, *hosts), _ = launch(repository, "slurm.sbatch", SCRIPTS["slurm.sbatch"] | {"HOSTS": "none"})
    assert code != 0
    assert "the job has no GPUs on this host; pass --gpus-per-node=N to sbatch" in error
    assert not hosts


def test_several_processes_without_an_accelerator_get_no_compilation_cache(repository):
    """On CPU they would wait for each other forever; one process has the cache that the package sets up."""
    accelerated = [path for kind in ("nvidia", "accel", "vfio/") for path in glob.glob(f"/dev/{kind}[0-9]*")]
    shared = "gs://bucket/run/.compiled" if accelerated else "none"
    for processes, cache in (("1", "none"), ("2", shared)):
        variables = {"SIDE_CONFIG": "a.py", "SIDE_WORKDIR": "gs://bucket/run/", "SIDE_PROCESSES": processes}
        code, error, _, seen = launch(repository, "gpu.sh", variables)
        assert code == 0, error
        assert seen[-1] == ["all", cache]


def test_a_python_that_is_too_old_is_named(repository):
    shutil.rmtree(repository / ".venv")
    program(repository / "bin" / "python3", "#!/usr/bin/env bash\n[[ $1 == -V ]] && echo Python 3.10.12\n")
    code, error, commands, _ = launch(repository, "gpu.sh", SCRIPTS["gpu.sh"])
    assert code == 1
    assert "python3 is Python 3.10.12, but side_jax needs 3.11 or newer" in error
    assert "python3.12 -m venv .venv" in error
    assert not commands


def test_a_tpu_host_can_read_the_workdir_that_the_example_names():
    (extra,) = re.findall(r'"tpu": (\[.+?\]),', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert "gs://" in (ROOT / "launch" / "tpu_pod.sh").read_text()
    assert "gcsfs" in extra


@pytest.mark.parametrize("flags", [FLAGS, []])
def test_a_pod_copies_the_commit_and_runs_on_every_host(repository, flags):
    code, error, (copy, run), _ = launch(repository, "tpu_pod.sh", SCRIPTS["tpu_pod.sh"], flags)
    assert code == 0, error
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[6:] == ["slice:side_jax.tar.gz", "--zone=zone", "--worker=all"]
    assert run[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert run[6:8] == ["--zone=zone", "--worker=all"]
    # What a host's shell makes of the command: here with what was copied, a .venv that records, and the same flags.
    host = repository / "host"
    shutil.copytree(repository / ".venv", host / "side_jax" / ".venv")
    for left in ("launch/removed_since.py", "runs/celeba/config.json"):  # by an earlier commit, and by its run
        (host / "side_jax" / left).parent.mkdir(parents=True)
        (host / "side_jax" / left).touch()
    subprocess.run(
        ["git", "-C", repository, "archive", "--format=tar.gz", "-o", host / "side_jax.tar.gz", "HEAD"], check=True
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(host), "RECORD": str(host / "record")}
    command = run[8].removeprefix("--command=")
    subprocess.run(["bash", "-euc", command], cwd=host, env=environment, check=True)
    _, (_, *arguments) = (shlex.split(line) for line in (host / "record").read_text().splitlines())
    main = ["-m", "side_jax.main", "--config=configs/smoke.py", "--workdir=gs://bucket/a b", "--processes=4"]
    assert arguments == main + flags
    assert not (host / "side_jax" / "launch" / "removed_since.py").exists()
    assert (host / "side_jax" / "runs" / "celeba" / "config.json").exists()
