"""Design rule 1: the same global index gives the same image on 1 or 8 devices, in any batch, by either loop."""

import subprocess
import sys

import device_probe
import numpy as np
import pytest
import runs

WAYS = {  # of each kind: on one device, and on eight; the first is the reference
    "guided": (("dispatch:64", "scan:16"), ("dispatch:16", "scan:64")),
    "adapted": (("dispatch:64",), ("scan:16",)),
    "search": (("scan:32",), ("scan:16", "scan:64")),
    "requests": (("scan:32",), ("scan:16", "scan:64")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{(devices, kind, loop and batch size): images 0..63}."""
    path = tmp_path_factory.mktemp("devices") / "1.npz"
    one, eight = ([f"{kind}/{how}" for kind, ways in WAYS.items() for how in ways[i]] for i in (0, 1))
    command = [sys.executable, device_probe.__file__, str(path), *one]
    process = subprocess.Popen(command, env=runs.environment(1) | {"PYTHONPATH": str(runs.ROOT)})
    found = {8: device_probe.made(*eight)}
    assert process.wait() == 0
    with np.load(path) as archive:
        found[1] = dict(archive)
    assert all(images.pop("devices") == devices for devices, images in found.items())
    return {(devices, way): images[way] for devices, images in found.items() for way in images}


@pytest.mark.parametrize("kind", WAYS)
def test_every_way_gives_the_same_images(made, kind):
    alike = {way: images for way, images in made.items() if way[1].startswith(f"{kind}/")}
    assert len(alike) == sum(map(len, WAYS[kind]))
    reference = made[1, f"{kind}/{WAYS[kind][0][0]}"].astype(int)
    assert reference.shape == (64, 8, 8, 1)
    assert len({image.tobytes() for image in reference}) == 64
    assert reference.std() > 30
    for way, images in alike.items():
        difference = np.abs(images.astype(int) - reference)
        # Other batch shapes round differently in float32, which can move a pixel to the neighbouring level.
        assert difference.max() <= 1, way
        assert (difference > 0).mean() < 0.01, way
