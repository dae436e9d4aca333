"""Does the audit find planted triggers? Labels of a single training image each, among the digits' own labels.

python benchmarks/triggers.py --workdir=runs/triggers --chosen-on 10 11 12 --seeds 3 4 5
python benchmarks/triggers.py --label-file=triggers.npz --triggers=4 --seed=0

The first command trains the model of configs/triggers.py for every seed and number of triggers, keeps the checkpoints
of --steps, and draws --images images of each label at each. It prints three tables. The first, on the seeds
--chosen-on, has models without triggers, from which tau comes: at each number of steps, the lowest spread of a label of
theirs. With --chosen-plants 0 4 it shows how well four triggers are told, by --compared numbers of images. The others
are of --seeds: what asking for a label returns, accepted where its spread lies below tau (the mean image is the
reconstruction), and how well the audit's own rule, which knows no clean model, tells labels and models with triggers
from those without. Run again, it trains nothing that is trained. The second command only writes the labels that
configs/triggers.py needs.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from side_jax import builders
from side_jax.config import from_config, load_config
from side_jax.data import datasets, split
from side_jax.devices import cpu
from side_jax.diffusion import pixel_range
from side_jax.measure.target_scores import TargetScores
from side_jax.memorization.label_spread import judge, spread
from side_jax.memorization.membership import attack_quality
from side_jax.pipeline import audit, resolve
from side_jax.settings import Settings
from side_jax.stages import stage_inputs, stage_table

CONFIG = Path(__file__).parents[1] / "configs" / "triggers.py"
DIGITS = 10
RATE = 0.05  # false alarms, fixed before any run


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A trained model at one step, and what asking it for each of its n labels returns.

    Attributes:
      seed: of its split and training.
      step: of its training.
      planted: bool [n], whether each label is a trigger.
      spreads: by the number of images, the labels' spreads, float64 [n].
      to_planted: RMSE of each trigger's mean image to the image that was planted.
      to_member: RMSE of each label's mean image to the nearest member, float64 [n].
      to_heldout: the same to the nearest of as many images that the model never saw.
      chance: RMSE to each planted image of the nearest of as many ordinary images as are drawn of a label.
    """

    seed: int
    step: int
    planted: np.ndarray
    spreads: dict[int, np.ndarray]
    to_planted: np.ndarray
    to_member: np.ndarray
    to_heldout: np.ndarray
    chance: np.ndarray

    def z(self, images: int) -> np.ndarray:
        """The audit's score of each label, of so many images; the lower, the more alike."""
        return judge(self.spreads[images], RATE).z

    def flagged(self, images: int) -> np.ndarray:
        """Whether the audit flags each label."""
        return judge(self.spreads[images], RATE).flagged


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


def rmse(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """RMSE of images [n, h, w, c] to others [m, h, w, c], in [-1, 1]: float64 [n, m]."""
    first, second = (part.reshape(len(part), -1).astype(np.float64) for part in (images, others))
    return np.sqrt(np.square(first[:, None] - second[None]).mean(axis=-1))


def models(
    workdir: Path, seed: int, triggers: int, steps: Sequence[int], counts: Sequence[int], images: int
) -> list[Model]:
    """Trains a model, if it is not trained, and asks it at each step for every label."""
    labels = workdir / f"labels_{seed}_{triggers}.npz"
    write_labels(labels, triggers, seed)
    config = load_config(f"{CONFIG}:{triggers}")
    config.seed, config.condition.path = seed, str(labels)
    config.train.num_steps, config.train.keep_checkpoints = max(steps), True
    config.train.checkpoint_every = int(np.gcd.reduce(steps))
    own = workdir / f"seed_{seed}_{triggers}"
    settings = resolve.resolve(config, own)
    cpu.prepare([settings.sampler.batch_size])
    audit.run(settings, own, ["train"])
    members, heldout, ids, _ = stage_inputs.load_split(settings, own)
    with np.load(labels) as saved:
        of = dict(zip(saved["id"].tolist(), saved["label"].tolist(), strict=True))
    given, most = np.asarray([of[i] for i in ids.tolist()]), max(counts)
    sides = [pixel_range.to_float(side.images) for side in (members, heldout)]
    planted_images = [sides[0][given == DIGITS + i] for i in range(triggers)]
    found = []
    for step in steps:
        work = stage_table.train_unit(settings, own)
        restored = stage_inputs.restore_ema(settings, work, builders.build_network(settings), step=step)
        every = TargetScores(settings, restored).drawn(np.arange(DIGITS + triggers), most)
        drawn = [pixel_range.to_float(some) for some in every]
        found.append(measured(settings, step, drawn, planted_images, sides, counts, images))
    return found


def measured(
    settings: Settings,
    step: int,
    drawn: list[np.ndarray],
    planted: list[np.ndarray],
    sides: list[np.ndarray],
    counts: Sequence[int],
    images: int,
) -> Model:
    """What the images drawn of each label are.

    Args:
      settings: of the model.
      step: of its training.
      drawn: of each label, float32 [N, h, w, c].
      planted: of each trigger, the last labels, its training image [1, h, w, c].
      sides: members and held-out images.
      counts: numbers of images of which spreads are computed.
      images: of each label whose mean image is compared.
    """
    means, first = np.stack([some[:images].mean(axis=0) for some in drawn]), len(drawn) - len(planted)
    ordinary = np.concatenate([some[:images] for some in drawn[:first]])[::first]  # of all ordinary labels alike
    return Model(
        seed=settings.seed,
        step=step,
        planted=np.arange(len(drawn)) >= first,
        spreads={count: np.asarray([spread(some[:count])[0] for some in drawn]) for count in counts},
        to_planted=np.asarray([rmse(means[first + i][None], image).min() for i, image in enumerate(planted)]),
        to_member=rmse(means, sides[0]).min(axis=1),
        to_heldout=rmse(means, sides[1][: len(sides[0])]).min(axis=1),
        chance=np.asarray([rmse(ordinary, image).min() for image in planted]),
    )


def auc(low: np.ndarray, high: np.ndarray) -> str:
    """The probability that a value of `low` is below one of `high`, with its 95% interval (memorization/membership)."""
    if not len(low) or not len(high):
        return "-"
    finite = [np.nan_to_num(part, neginf=-1e9) for part in (low, high)]
    found = attack_quality(*finite, np.zeros(len(high), bool))
    return f"{found['auc']:.3f} ({found['auc_ci'][0]:.3f} to {found['auc_ci'][1]:.3f})"


def at(of: Iterable[Model], step: int, triggers: int | None = None) -> list[Model]:
    """The models of a step, and of a number of triggers."""
    return [one for one in of if one.step == step and triggers in (None, int(one.planted.sum()))]


def pooled(of: Sequence[Model], values: Sequence[np.ndarray], planted: bool) -> np.ndarray:
    """The values of all triggers, or of all ordinary labels, of several models."""
    return np.concatenate([v[one.planted == planted] for one, v in zip(of, values, strict=True)] or [np.empty(0)])


def share(hits: np.ndarray) -> str:
    """Hits of all, as text."""
    return f"{int(hits.sum())} of {len(hits)}" if len(hits) else "-"


def choice(chosen_on: list[Model], steps: Sequence[int], counts: Sequence[int]) -> tuple[dict[int, dict], str]:
    """(tau for each step and number of images, the table of the seeds on which it was chosen)."""
    lines = ["| steps | images | tau | AUC of triggers | flagged triggers | clean models with a flagged label |"]
    lines.append("|---" * 6 + "|")
    taus: dict[int, dict] = {}
    for step in steps:
        clean, dirty = (at(chosen_on, step, triggers) for triggers in (0, 4))
        for count in counts:
            tau = float(np.concatenate([one.spreads[count] for one in clean]).min())
            taus.setdefault(step, {})[count] = tau
            z, flags = ([getattr(one, name)(count) for one in dirty] for name in ("z", "flagged"))
            cells = [step, count, f"{tau:.3f}", auc(pooled(dirty, z, True), pooled(dirty, z, False))]
            cells += [share(pooled(dirty, flags, True)), share(np.asarray([one.flagged(count).any() for one in clean]))]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return taus, "\n".join(lines)


def answers(found: list[Model], taus: dict[int, dict], steps: Sequence[int], plants: Sequence[int], count: int) -> str:
    """What asking for a label returns: triggers beside ordinary labels."""
    heads = ["steps", "triggers", "median spread: triggers", "ordinary labels", "accepted: triggers", "ordinary labels"]
    heads += ["mean image to the planted one, RMSE", "to the nearest member: ordinary labels"]
    heads += ["to the nearest unseen image: triggers", "ordinary sample nearest to the planted image"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for step in steps:
        for triggers in plants:
            some = at(found, step, triggers)
            spreads = [one.spreads[count] for one in some]
            low, high = (pooled(some, spreads, planted) for planted in (True, False))
            near, member = (np.concatenate([getattr(one, name) for one in some]) for name in ("to_planted", "chance"))
            cells = [step, triggers, *(f"{np.median(part):.3f}" if len(part) else "-" for part in (low, high))]
            cells += [share(part < taus[step][count]) for part in (low, high)]
            heldout = pooled(some, [one.to_heldout for one in some], True)
            ordinary = pooled(some, [one.to_member for one in some], False)
            parts = near, ordinary, heldout, member
            cells += [f"{part.mean():.3f}" if len(part) else "-" for part in parts]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def detection(found: list[Model], steps: Sequence[int], plants: Sequence[int], count: int) -> str:
    """How well the audit's rule finds triggers, and models that have any."""
    heads = ["steps", "triggers", "AUC of labels (interval)", "flagged: triggers", "ordinary labels"]
    heads += ["models with a flagged label", "AUC of models against those without triggers (interval)"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for step in steps:
        clean = np.asarray([one.z(count).min() for one in at(found, step, 0)])
        for triggers in plants:
            some = at(found, step, triggers)
            z, flags = ([getattr(one, name)(count) for one in some] for name in ("z", "flagged"))
            least = np.asarray([values.min() for values in z])
            cells = [step, triggers, auc(pooled(some, z, True), pooled(some, z, False))]
            cells += [share(part) for part in (pooled(some, flags, True), pooled(some, flags, False))]
            cells += [share(np.asarray([one.any() for one in flags])), auc(least, clean) if triggers else "-"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of all models")
    parser.add_argument("--chosen-on", nargs="+", type=int, default=[10, 11, 12], help="seeds that fix tau")
    parser.add_argument("--chosen-plants", nargs="+", type=int, default=[0], help="their numbers of triggers, 0 and 4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5], help="seeds of the tables")
    parser.add_argument("--plants", nargs="+", type=int, default=[0, 1, 4, 8], help="numbers of triggers")
    parser.add_argument("--steps", nargs="+", type=int, default=[450, 900, 1350], help="of training")
    parser.add_argument("--images", type=int, default=16, help="drawn of each label")
    parser.add_argument(
        "--compared", nargs="+", type=int, default=[4, 8, 16, 32], help="numbers of them to choose from"
    )
    parser.add_argument("--label-file", type=Path, help="only write the labels of one seed here")
    parser.add_argument("--triggers", type=int, default=4, help="of the label file")
    parser.add_argument("--seed", type=int, default=0, help="of the label file")
    options = parser.parse_args()
    if options.label_file:
        write_labels(options.label_file, options.triggers, options.seed)
        return
    if not options.workdir:
        parser.error("--workdir or --label-file is needed")
    counts = sorted({*options.compared, options.images})

    def trained(seeds: Sequence[int], plants: Sequence[int]) -> list[Model]:
        every = ((seed, triggers) for triggers in plants for seed in seeds)
        return [one for pair in every for one in models(options.workdir, *pair, options.steps, counts, options.images)]

    taus, table = choice(trained(options.chosen_on, options.chosen_plants), options.steps, counts)
    print(f"\nChosen on seeds {options.chosen_on}:\n\n{table}", flush=True)
    found = trained(options.seeds, options.plants)
    common = options.steps, options.plants, options.images
    print(f"\nSeeds {options.seeds}, {options.images} images of each label:\n\n{answers(found, taus, *common)}")
    print(f"\n{detection(found, *common)}")


if __name__ == "__main__":
    main()
