"""The launch scripts, with what they call replaced by a recorder: gcloud, srun, and the Python of .venv."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


@pytest.fixture
def repository(tmp_path):
    """A clone's launch folder, with a .venv, gcloud and srun that only write down their arguments."""
    root = tmp_path / "clone with a space"
    shutil.copytree(ROOT / "launch", root / "launch")
    recorder = '#!/usr/bin/env bash\nprintf "%q " "$(basename "$0")" "$@" >>"$RECORD"; echo >>"$RECORD"\n'
    for path in (".venv/bin/python3", ".venv/bin/pip", "bin/gcloud", "bin/srun"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(recorder)
        (root / path).chmod(0o755)
    subprocess.run(["git", "init", "-q", root], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", root, "add", "launch"], check=True)
    subprocess.run(["git", "-C", root, *who, "commit", "-qm", "launch"], check=True)
    return root


def launch(repository, script, variables, flags=FLAGS):
    """(exit code, error, the recorded commands)."""
    record = repository / "record"
    record.write_text("")
    path = f"{repository / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(repository), "RECORD": str(record), "SLURM_SUBMIT_DIR": str(repository)}
    command = ["bash", str(repository / "launch" / script), *flags]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, [shlex.split(line) for line in record.read_text().splitlines()]


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
    code, error, commands = launch(repository, script, variables)
    assert code != 0
    assert missing in error
    assert "set " in error or "start this by sbatch" in error
    assert not commands


@pytest.mark.parametrize(
    ("script", "extra", "processes"),
    [("gpu.sh", "cuda", "1"), ("tpu_vm.sh", "tpu", "4"), ("slurm.sbatch", "cuda", "3")],
)
def test_all_drive_the_same_binary(repository, script, extra, processes):
    code, error, (install, run) = launch(repository, script, SCRIPTS[script])
    assert code == 0, error
    assert install == ["pip", "install", "-q", "-e", f".[{extra}]"]
    if script == "slurm.sbatch":
        assert run[:2] == ["srun", "--kill-on-bad-exit=1"]
        run = run[2:]
    name, *arguments = run
    assert Path(name).name == "python3"
    main = ["-m", "side_jax.main", "--config=configs/smoke.py", "--workdir=runs/a b", f"--processes={processes}"]
    assert arguments == main + FLAGS


@pytest.mark.parametrize("flags", [FLAGS, []])
def test_a_pod_copies_the_commit_and_runs_on_every_host(repository, flags):
    code, error, (copy, run) = launch(repository, "tpu_pod.sh", SCRIPTS["tpu_pod.sh"], flags)
    assert code == 0, error
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[6:] == ["slice:side_jax.tar.gz", "--zone=zone", "--worker=all"]
    assert run[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert run[6:8] == ["--zone=zone", "--worker=all"]
    # What a host's shell makes of the command: here with what was copied, a .venv that records, and the same flags.
    host = repository / "host"
    (host / "side_jax").mkdir(parents=True)
    shutil.copytree(repository / ".venv", host / "side_jax" / ".venv")
    subprocess.run(
        ["git", "-C", repository, "archive", "--format=tar.gz", "-o", host / "side_jax.tar.gz", "HEAD"], check=True
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(host), "RECORD": str(host / "record")}
    command = run[8].removeprefix("--command=")
    subprocess.run(["bash", "-euc", command], cwd=host, env=environment, check=True)
    _, (_, *arguments) = (shlex.split(line) for line in (host / "record").read_text().splitlines())
    main = ["-m", "side_jax.main", "--config=configs/smoke.py", "--workdir=gs://bucket/a b", "--processes=4"]
    assert arguments == main + flags
