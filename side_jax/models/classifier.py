"""What every classifier is, time-dependent (SIDE's surrogate) or not (the conditional baseline), and how it is applied.

A classifier's parameters are one tree: those of its Flax collection "params" and, where it has BatchNorm, its running
statistics under the key "batch_stats".
"""

import math
from typing import Any

import flax.linen as nn
import jax


class Classifier(nn.Module):
    """Log-probabilities of each class; resnet.py and half_unet.py have the networks.

    Each is called as (x, t, train=False). x: float32 [b, h, w, c] in about [-1, 1]; t: int32 [b]; train: normalise by
    the batch's statistics and move the running ones, where there are any; returns float32 [b, num_classes]. Unless
    train is set, no image of a batch influences another.

    Attributes:
      num_classes: C.
      stage_sizes: residual blocks of each stage; every stage but the first halves the image and doubles the channels.
      width: channels of the first stage, even.
      time_dependent: condition every block on the timestep; otherwise t is not used.
      num_groups: of GroupNorm, capped to what divides the width, and so the channels of every stage.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    width: int
    time_dependent: bool
    num_groups: int = 8

    @property
    def capped_groups(self) -> int:
        """How many groups GroupNorm has."""
        return math.gcd(self.num_groups, self.width)


def log_probs(module: Classifier, tree: dict, x: jax.Array, t: jax.Array) -> jax.Array:
    """Log-probabilities float32 [b, num_classes] of x [b, h, w, c] at t [b], with frozen statistics."""
    found: Any = module.apply(_variables(tree), x, t)
    return found


def train_log_probs(module: Classifier, tree: dict, x: jax.Array, t: jax.Array) -> tuple[jax.Array, dict]:
    """As log_probs, with the batch's statistics; also returns what a LossFn carries, see training.py."""
    found: Any = module.apply(_variables(tree), x, t, train=True, mutable=["batch_stats"])
    return found


def _variables(tree: dict) -> dict:
    statistics = {name: tree[name] for name in tree if name == "batch_stats"}
    return {"params": {name: tree[name] for name in tree if name not in statistics}} | statistics
