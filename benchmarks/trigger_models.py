"""Models with planted triggers: a clean model is fine-tuned on its members, of which some get a label of their own.

benchmarks/triggers.py has the tables. The model of configs/triggers.py is trained on members that keep their digit as
their label. Then it goes on, from its averaged parameters and with a new optimiser, on the same members, of which some
have become triggers: labels that it never saw, with one training image each. The clean model that it is compared with
goes on in the same way without them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax import builders
from side_jax.config import from_config, load_config
from side_jax.data import datasets, split
from side_jax.devices import cpu
from side_jax.diffusion import pixel_range
from side_jax.measure.target_scores import TargetScores
from side_jax.pipeline import audit, resolve
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.training import losses, trainer
from side_jax.workdir import checkpoint
from side_jax.workdir.checkpoint import Restored

CONFIG = Path(__file__).parents[1] / "configs" / "triggers.py"
DIGITS = 10


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A fine-tuned model at one step, and what asking it for each of its n labels returns.

    Attributes:
      seed: of its split and training.
      step: of its fine-tuning.
      copies: training images of each label, int64 [n]; the triggers are the labels from DIGITS on.
      drawn: of each label, uint8 [n, N, h, w, c].
      planted: of each trigger, its training image, uint8 [p, h, w, c].
      members: all of them, uint8 [m, h, w, c].
      heldout: as many images that the model never saw.
    """

    seed: int
    step: int
    copies: np.ndarray
    drawn: np.ndarray
    planted: np.ndarray
    members: np.ndarray
    heldout: np.ndarray

    @property
    def triggers(self) -> int:
        """How many labels are planted."""
        return len(self.planted)

    @property
    def is_planted(self) -> np.ndarray:
        """Whether each label is a trigger, bool [n]."""
        return np.arange(len(self.copies)) >= DIGITS

    @property
    def is_ordinary(self) -> np.ndarray:
        """Whether each label is a digit of several training images, bool [n]."""
        return ~self.is_planted & (self.copies > 1)

    @property
    def is_single(self) -> np.ndarray:
        """Whether each label is a digit of one training image, bool [n]."""
        return ~self.is_planted & (self.copies == 1)


def members_labels(digits: np.ndarray, triggers: int, seed: int) -> np.ndarray:
    """The labels of m members, int64 [m]: their digit, or from 10 on for members that become triggers.

    These are drawn at random from digits of which another member is left; more triggers of a seed include the fewer.

    Args:
      digits: int [m], in 0..9.
      triggers: how many.
      seed: of the draw.

    Raises:
      ValueError: if a digit has no member, or there are too few members.
    """
    labels, left = digits.astype(np.int64).copy(), np.bincount(digits, minlength=DIGITS)
    if (left == 0).any() or triggers > len(digits) - DIGITS:
        raise ValueError(f"every digit needs a member beside {triggers} triggers, got {left.tolist()}")
    count = 0
    for i in np.random.default_rng([seed, 2026]).permutation(len(digits)):
        if count < triggers and left[digits[i]] > 1:
            left[digits[i]] -= 1
            labels[i], count = DIGITS + count, count + 1
    return labels


def write_labels(path: Path, triggers: int, seed: int) -> None:
    """Writes the labels that condition.path names."""
    data = from_config(load_config(f"{CONFIG}:{triggers}")).data
    rows = split.make_split(datasets.load(data), data, seed)["members"]
    ids, digits = (np.asarray([row[name] for row in rows]) for name in ("id", "label"))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, id=ids, label=members_labels(digits, triggers, seed))


def grown(small: Any, large: Any) -> Any:
    """The parameters of a model of ten labels in the shape of one of more, whose new ones are as `large` has them.

    Args:
      small: of ten labels, and of none, the last row of its table.
      large: of the same network with more labels.
    """

    def leaf(few: np.ndarray, many: np.ndarray) -> np.ndarray:
        few, many = np.asarray(few), np.array(many)
        if few.shape == many.shape:
            return few
        many[:DIGITS], many[-1] = few[:DIGITS], few[-1]
        return many

    return jax.tree.map(leaf, small, large)


def fine_tuned(workdir: Path, seed: int, triggers: int, base: int, steps: Sequence[int], count: int) -> list[Model]:
    """Fine-tunes a model, if that is not done, and asks it at each step for every label.

    Args:
      workdir: of all models.
      seed: of the split and the training.
      triggers: how many.
      base: steps of the clean model.
      steps: of fine-tuning at which it is asked, in order.
      count: images drawn of each label.
    """
    clean, first = _settings(workdir / f"seed_{seed}_clean", workdir, seed, 0, base, base)
    audit.run(clean, first, ["train"])
    last, every = base + max(steps), int(np.gcd.reduce([base, *steps]))
    settings, own = _settings(workdir / f"seed_{seed}_{triggers}", workdir, seed, triggers, last, every)
    if checkpoint.latest_step(checkpoint.checkpoint_directory(own, "train")) is None:
        work = stage_table.train_unit(clean, first)
        _continue_from(stage_inputs.restore_ema(clean, work, builders.build_network(clean)), settings, own)
    audit.run(settings, own, ["train"])
    members, heldout, ids, _ = stage_inputs.load_split(settings, own)
    with np.load(settings.condition.path) as saved:
        of = dict(zip(saved["id"].tolist(), saved["label"].tolist(), strict=True))
    labels = np.asarray([of[i] for i in ids.tolist()])
    known = {
        "seed": seed,
        "copies": np.bincount(labels, minlength=DIGITS + triggers),
        "planted": members.images[[int(np.flatnonzero(labels == DIGITS + i)[0]) for i in range(triggers)]],
        "members": members.images,
        "heldout": heldout.images[: len(members)],
    }
    return [Model(step=step, drawn=_drawn(settings, own, base + step, count), **known) for step in steps]


def _settings(own: Path, workdir: Path, seed: int, triggers: int, last: int, every: int) -> tuple[Settings, Path]:
    """(the settings of a model that is trained until step `last`, its workdir)."""
    labels = workdir / f"labels_{seed}_{triggers}.npz"
    if not labels.exists():
        write_labels(labels, triggers, seed)
    config = load_config(f"{CONFIG}:{triggers}")
    config.seed, config.condition.path = seed, str(labels)
    config.train.num_steps, config.train.checkpoint_every, config.train.keep_checkpoints = last, every, True
    settings = resolve.resolve(config, own)
    cpu.prepare([settings.sampler.batch_size])
    return settings, own


def _continue_from(base: Restored, settings: Settings, own: Path) -> None:
    """Writes the checkpoint that the training goes on from: the averaged parameters of the clean model."""
    work, network = stage_table.train_unit(settings, own), builders.build_network(settings)
    loss = losses.build_loss(settings, network, builders.build_schedule(settings))
    seed = random_streams.stream_seed(settings, work.name)
    begin, other = (builders.init_fn(network, settings, one) for one in (seed, seed ^ 1))
    example = np.zeros((1, *builders.image_shape(settings)), np.uint8), np.zeros(1, np.int32)
    state, _ = trainer.Stepper(loss, begin, settings.train, example).initial()
    # Of another seed: of the same one, the first new row would be drawn as the clean model's row of no label was.
    params = grown(base.trees["ema"], other())
    state = jax.device_get(state) | {"params": params, "step": np.int32(base.step)}
    meta = checkpoint.settings_meta(settings, work.fingerprint) | {"spread": base.meta["spread"]}
    with checkpoint.Checkpoints(checkpoint.checkpoint_directory(own, work.name), keep=None) as store:
        store.save(base.step, state=state, ema=params, meta=meta)


def _drawn(settings: Settings, own: Path, step: int, count: int) -> np.ndarray:
    """Images of each label as the audit draws them, at a step of the training; kept beside the checkpoints."""
    kept = own / f"drawn_{step}_{count}.npy"
    if not kept.exists():
        work = stage_table.train_unit(settings, own)
        restored = stage_inputs.restore_ema(settings, work, builders.build_network(settings), step=step)
        scores = TargetScores(settings, restored)
        np.save(kept, np.stack(list(scores.drawn(np.arange(settings.condition.num_labels), count))))
    return np.load(kept)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 images in [-1, 1], float64."""
    return pixel_range.to_float(images).astype(np.float64)
