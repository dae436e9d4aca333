"""The speed contests run, which they only do where both sides give the same: images, or losses and gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .theirs import torch  # noqa: F401  skips where it is not installed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["sampling", "training"])
def test_contest(name, tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--sizes=digits", "--batch-size=16", "--rounds=1"]
    ran = subprocess.run(
        [*command, "--seconds=0.01", "--no-compile", f"--json={found}"],
        # Threads of PyTorch that wait for each other are many times slower where the CPUs are shared.
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    results = json.loads(found.read_text())["sizes"]
    assert results
    assert all(result["ratio"]["pytorch eager"] > 0 for result in results)
