"""Design rule 1: the same global index gives the same image on 1 or 8 devices, in any batch, by either loop."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{(devices, loop, batch size): images 0..63}."""
    found, folder, running = {}, tmp_path_factory.mktemp("devices"), {}
    for devices in (1, 8):
        environment = runs.environment(devices) | {"PYTHONPATH": str(HERE.parent)}
        command = [sys.executable, str(HERE / "device_probe.py"), str(folder / f"{devices}.npz")]
        running[devices] = subprocess.Popen(command, env=environment)
    for devices, process in running.items():
        assert process.wait() == 0
        with np.load(folder / f"{devices}.npz") as archive:
            assert archive["devices"] == devices
            found |= {(devices, name): archive[name] for name in archive.files if name != "devices"}
    return found


def test_every_way_gives_the_same_images(made):
    assert len(made) == 6
    reference = made[1, "dispatch_64"].astype(int)
    assert reference.shape == (64, 8, 8, 1)
    assert len({image.tobytes() for image in reference}) == 64
    assert reference.std() > 30
    for way, images in made.items():
        difference = np.abs(images.astype(int) - reference)
        # Other batch shapes round differently in float32, which can move a pixel to the neighbouring level.
        assert difference.max() <= 1, way
        assert (difference > 0).mean() < 0.01, way
