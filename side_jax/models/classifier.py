"""Defines the interface of all classifiers, time-dependent (SIDE's surrogate) or not (the conditional baseline).

A classifier's parameters are one tree: its Flax collection "params", plus the running statistics of BatchNorm, if any,
under the key "batch_stats".
"""

import math
from typing import Any

import flax.linen as nn
import jax

from side_jax.models.adapters import FROZEN


class Classifier(nn.Module):
    """Log-probabilities of each class; the networks are in resnet.py and half_unet.py.

    A classifier is called as (x, t, train=False) and returns float32 [b, num_classes]. x is float32 [b, h, w, c] in
    about [-1, 1]; t is int32 [b]. With train, BatchNorm normalises by the batch's statistics and updates the running
    ones. Without it, no image of a batch influences another.

    Attributes:
      num_classes: C.
      stage_sizes: residual blocks per stage; every stage but the first halves the image and doubles the channels.
      width: channels of the first stage, even.
      time_dependent: condition every block on the timestep; otherwise t is ignored.
      num_groups: of GroupNorm, reduced to a divisor of the width, and so of the channels of every stage.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    width: int
    time_dependent: bool
    num_groups: int = 8

    @property
    def capped_groups(self) -> int:
        """Number of groups of GroupNorm."""
        return math.gcd(self.num_groups, self.width)


def log_probs(module: Classifier, tree: dict, x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns log-probabilities float32 [b, num_classes] of x [b, h, w, c] at t [b], with frozen statistics."""
    log_p: Any = module.apply(_variables(tree), x, t)
    return log_p


def train_log_probs(module: Classifier, tree: dict, x: jax.Array, t: jax.Array) -> tuple[jax.Array, dict]:
    """Does the same with the batch's statistics; also returns what a LossFn carries, see training/trainer.py."""
    log_p: Any = module.apply(_variables(tree), x, t, train=True, mutable=["batch_stats"])
    return log_p


def split_trainable(tree: dict) -> tuple[dict, dict]:
    """Splits parameters into (trainable, the others: {"batch_stats": running statistics}, what is frozen, or {})."""
    fixed = {name: tree[name] for name in tree if name in ("batch_stats", FROZEN)}
    return {name: tree[name] for name in tree if name not in fixed}, fixed


def _variables(tree: dict) -> dict:
    params, statistics = split_trainable(tree)
    return {"params": params} | statistics
