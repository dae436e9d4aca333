"""side_jax measures how much of its training data a diffusion model gives away.

It attacks the model by mode seeking, SIDE (Chen, Ma, Zou and Jiang 2024) and others, with controls, and counts the
training images that come out, beside matches with images that the model never saw.

    import side_jax

    result = side_jax.audit("model", "members", "heldout")               # a checkpoint, and two folders of images
    result = side_jax.audit_config("digits", "runs/digits")              # a config, and a folder for the results
    result = side_jax.audit_samples("generated", "members", "heldout")   # images alone, from any generator
    print(result.verdict, result.report)

- audit: attacks a model of any format, with the settings that fit into a given time.
- audit_config: attacks a model that is trained here, or one from elsewhere, with the settings of a config.
- audit_samples: compares generated images from any source with members and held-out images.
- AuditResult: the verdict, the findings, the rows of results.json, and the paths of the files.
- load_config, default_config: the settings of an audit, as a ConfigDict.
- from_diffusers, to_diffusers: reads and writes unconditional diffusers checkpoints.
- InputError: raised for whatever can't be used, in one sentence.

Every path may be a str or a Path, and `~` stands for the home folder. Importing the package loads nothing else: a
function's modules are imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from side_jax.commands.api import AuditResult, audit, audit_config, audit_samples
    from side_jax.config import default_config, load_config
    from side_jax.errors import InputError
    from side_jax.targets.diffusers_unet import from_diffusers, to_diffusers

__version__ = "0.2.0"
__all__ = [
    "AuditResult",
    "InputError",
    "audit",
    "audit_config",
    "audit_samples",
    "default_config",
    "from_diffusers",
    "load_config",
    "to_diffusers",
]

_MODULES = {
    "AuditResult": "side_jax.commands.api",
    "InputError": "side_jax.errors",
    "audit": "side_jax.commands.api",
    "audit_config": "side_jax.commands.api",
    "audit_samples": "side_jax.commands.api",
    "default_config": "side_jax.config",
    "from_diffusers": "side_jax.targets.diffusers_unet",
    "load_config": "side_jax.config",
    "to_diffusers": "side_jax.targets.diffusers_unet",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'side_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
