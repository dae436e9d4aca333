"""Imports denoising-diffusion-pytorch without what only its Trainer needs."""

import contextlib
import sys
import types
import warnings

import pytest

# What the package imports for its Trainer alone, with the names that it takes from there.
UNUSED = {
    "torchvision": ("transforms", "utils"),
    "torchvision.transforms": (),
    "ema_pytorch": ("EMA",),
    "accelerate": ("Accelerator",),
}


@contextlib.contextmanager
def stand_ins():
    """Empty modules in place of those that are not installed, while the package is imported."""
    made = {}
    for name, attributes in UNUSED.items():
        try:
            __import__(name)
        except ImportError:
            made[name] = sys.modules[name] = types.ModuleType(name)
            for attribute in attributes:
                setattr(made[name], attribute, None)
    yield
    for name in made:
        del sys.modules[name]


with warnings.catch_warnings(), stand_ins():
    warnings.simplefilter("ignore")
    package = pytest.importorskip("denoising_diffusion_pytorch")
    module = package.denoising_diffusion_pytorch
