"""Does the audit find planted triggers? Labels of a single training image each, among the digits' own labels.

python benchmarks/triggers.py --workdir=runs/triggers --figure=roc.png
python benchmarks/triggers.py --label-file=triggers.npz --triggers=4 --seed=0

The first command trains the models (trigger_models.py) and prints all tables of docs/results_triggers.md. The first
ones are of the seeds --chosen-on: how the detector was chosen (trigger_rules.py), and tau, at each number of steps the
lowest variance of an ordinary label in their clean models. The others are of --seeds: what asking for a label returns,
accepted where its variance lies below tau (the mean image is the reconstruction), and what the audit's detector, which
knows no clean model, finds. The last is of clean models alone, of --seeds and --clean-seeds: its false alarms. Run
again, it trains nothing that is trained. With --sscd=WEIGHTS, those that Meta publishes, a table compares by features
too. The second command only writes the labels that configs/triggers.py needs.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trigger_rules
from trigger_models import DIGITS, Model, fine_tuned, to_float, write_labels

from side_jax.attacks.table import GREY, PALETTE
from side_jax.features import sscd
from side_jax.features.extractors import embed_all
from side_jax.memorization.label_spread import Judged, judge, spread
from side_jax.memorization.statistics.intervals import wilson_interval
from side_jax.settings import Label

CONFIDENCE = 0.95


@functools.cache  # of each model once
def variances(one: Model) -> np.ndarray:
    """The variance of each label, float64 [n]."""
    return np.asarray([spread(images)[0] for images in to_float(one.drawn)])


@functools.cache  # of each model once
def judged(one: Model) -> Judged:
    """What the audit's detector says."""
    return judge(np.asarray([spread(images)[1] for images in to_float(one.drawn)]))


@functools.cache  # of each model once
def scores(one: Model) -> np.ndarray:
    """A score of each label, the lower the more alike."""
    return -judged(one).falls


def rmse(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """RMSE of images [n, h, w, c] to others [m, h, w, c], in [-1, 1]: float64 [n, m]."""
    first, second = (part.reshape(len(part), np.prod(part.shape[1:])).astype(np.float64) for part in (images, others))
    return np.sqrt(np.square(first[:, None] - second[None]).mean(axis=-1))


def to_planted(one: Model) -> np.ndarray:
    """RMSE of each trigger's mean image to the image that was planted, float64 [p]."""
    means = to_float(one.drawn[DIGITS:]).mean(axis=1)
    return np.diag(rmse(means, to_float(one.planted)))


def by_chance(one: Model) -> np.ndarray:
    """RMSE to each planted image of the nearest of as many ordinary samples as are drawn of a label, float64 [p]."""
    return rmse(to_float(one.planted), to_float(ordinary_samples(one))).min(axis=1)


def ordinary_samples(one: Model) -> np.ndarray:
    """As many samples of ordinary labels as are drawn of a label, of all digits alike, uint8."""
    return one.drawn[:DIGITS].reshape(-1, *one.drawn.shape[2:])[::DIGITS]


def to_nearest(one: Model, images: np.ndarray) -> np.ndarray:
    """RMSE of each label's mean image to the nearest of some images, float64 [n]."""
    return rmse(to_float(one.drawn).mean(axis=1), to_float(images)).min(axis=1)


def embedder(path: Path, cache: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Maps uint8 images [n, h, w, c] to SSCD's features float32 [n, d]."""
    label = Label(features="sscd", weights=str(path))
    return functools.partial(embed_all, sscd.extractor(label, cache, batch_size=64))


def similarity(found: Sequence[Model], embed: Callable[[np.ndarray], np.ndarray]) -> str:
    """Cosine similarities of features: what asking for a trigger returns, beside what chance and ordinary labels do."""
    heads = ["steps", "plants", "mean image to the planted one", "ordinary to the nearest member"]
    heads += ["nearest ordinary sample to the planted image"]

    def cosine(images: np.ndarray, others: np.ndarray) -> np.ndarray:
        first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (embed(images), embed(others)))
        return first @ second.T

    rows = []
    for step, plants in cells_of(found):
        near, member, chance = [], [], []
        for one in at(found, step, plants):
            means = np.round(one.drawn.mean(axis=1)).astype(np.uint8)
            member += cosine(means[one.is_ordinary], one.members).max(axis=1).tolist()
            if plants:
                near += np.diag(cosine(means[DIGITS:], one.planted)).tolist()
                chance += cosine(one.planted, ordinary_samples(one)).max(axis=1).tolist()
        rows.append([step, plants, *(f"{np.mean(part):.3f}" if part else "-" for part in (near, member, chance))])
    return trigger_rules.table(heads, rows)


def pooled(models: Sequence[Model], values: Callable[[Model], np.ndarray], group: str) -> np.ndarray:
    """The values of the labels of a group (`planted`, `ordinary` or `single`) of several models."""
    return np.concatenate([values(one)[getattr(one, f"is_{group}")] for one in models] or [np.empty(0)])


def over_seeds(models: Sequence[Model], statistic: Callable[[list[Model]], float]) -> str:
    """A statistic of models, and its interval by resampling whole seeds: what is of one seed is not independent."""
    seeds = sorted({one.seed for one in models})
    of = {seed: [one for one in models if one.seed == seed] for seed in seeds}
    draws = itertools.product(seeds, repeat=len(seeds))  # all of them
    if len(seeds) > 5:
        draws = np.random.default_rng(0).choice(seeds, (3000, len(seeds))).tolist()
    found = [statistic([one for seed in draw for one in of[seed]]) for draw in draws]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return f"{statistic(list(models)):.2f} ({low:.2f} to {high:.2f})"


def auc_of_labels(models: Sequence[Model]) -> float:
    """The probability that a trigger's score is below an ordinary label's."""
    return trigger_rules.auc(pooled(models, scores, "planted"), pooled(models, scores, "ordinary"))


def auc_of_models(models: Sequence[Model]) -> float:
    """The probability that a model with triggers has a higher score than one without."""
    clean, dirty = ([judged(one).falls.max() for one in models if bool(one.triggers) == some] for some in (False, True))
    return trigger_rules.auc(np.asarray(clean), np.asarray(dirty))


def share(hits: np.ndarray) -> str:
    """Hits of all, as text."""
    return f"{int(hits.sum())} of {len(hits)}" if len(hits) else "-"


def tau(clean: Sequence[Model], step: int) -> float:
    """The lowest variance of an ordinary label in clean models."""
    return float(pooled([one for one in clean if one.step == step], variances, "ordinary").min())


def answers(found: Sequence[Model], taus: dict[int, float]) -> str:
    """What asking for a label returns: triggers beside ordinary labels."""
    heads = ["steps", "plants", "median variance: triggers", "ordinary", "accepted: triggers", "ordinary", "single"]
    heads += ["mean image to the planted one", "ordinary to the nearest member", "triggers to the nearest unseen image"]
    heads += ["nearest ordinary sample to the planted image"]
    rows = []
    for step, plants in cells_of(found):
        some = at(found, step, plants)
        low, high, single = (pooled(some, variances, group) for group in ("planted", "ordinary", "single"))
        row = [step, plants, *(f"{np.median(part):.3f}" if len(part) else "-" for part in (low, high))]
        row += [share(part < taus[step]) for part in (low, high, single)]
        member = pooled(some, lambda one: to_nearest(one, one.members), "ordinary")
        unseen = pooled(some, lambda one: to_nearest(one, one.heldout), "planted")
        near, chance = (np.concatenate([values(one) for one in some]) for values in (to_planted, by_chance))
        rows.append([*row, *(f"{part.mean():.3f}" if len(part) else "-" for part in (near, member, unseen, chance))])
    return trigger_rules.table(heads, rows)


def detection(found: Sequence[Model]) -> str:
    """How well the audit's detector finds triggers, and models that have any."""
    heads = ["steps", "plants", "flagged: triggers", "ordinary", "single", "models with a flagged label", "not decided"]
    heads += ["AUC of labels (interval)", "AUC of models against those without (interval)"]
    rows = []
    for step, plants in cells_of(found):
        some = at(found, step, plants)
        flags = [pooled(some, lambda one: judged(one).flagged, group) for group in ("planted", "ordinary", "single")]
        row = [step, plants, *map(share, flags), share(is_flagged(some)), share(is_open(some))]
        if plants:
            both = [*some, *at(found, step, 0)]
            row += [over_seeds(some, auc_of_labels), over_seeds(both, auc_of_models)]
        rows.append([*row, *["-"] * (len(heads) - len(row))])
    return trigger_rules.table(heads, rows)


def false_alarms(clean: Sequence[Model]) -> str:
    """What the detector flags in clean models, of which each is of a seed of its own, at each number of steps."""
    heads = ["steps", "clean models with a flagged label (interval)", "with a flagged ordinary label (interval)"]
    heads += ["not decided", "flagged: ordinary", "single"]
    rows = []
    for step in sorted({one.step for one in clean}):
        some = at(clean, step, 0)
        models = [np.asarray([(judged(one).flagged & of(one)).any() for one in some]) for of in (anything, ordinary)]
        flags = [pooled(some, lambda one: judged(one).flagged, group) for group in ("ordinary", "single")]
        rows.append([step, *map(with_interval, models), share(is_open(some)), *map(share, flags)])
    return trigger_rules.table(heads, rows)


def is_flagged(models: Sequence[Model]) -> np.ndarray:
    """Whether any label of each model is flagged."""
    return np.asarray([judged(one).flagged.any() for one in models])


def is_open(models: Sequence[Model]) -> np.ndarray:
    """Whether nothing is decided of each model."""
    return np.asarray([bool(judged(one).undecided) for one in models])


def anything(one: Model) -> np.ndarray:
    """All labels, bool [n]."""
    return np.ones(len(one.copies), bool)


def ordinary(one: Model) -> np.ndarray:
    """The ordinary labels, bool [n]."""
    return one.is_ordinary


def with_interval(hits: np.ndarray) -> str:
    """Hits of all, with Wilson's interval of the rate."""
    low, high = wilson_interval(int(hits.sum()), len(hits), CONFIDENCE)
    return f"{share(hits)} ({low:.0%} to {high:.0%})"


def at(models: Sequence[Model], step: int, plants: int) -> list[Model]:
    """The models of a step and of a number of triggers."""
    return [one for one in models if (one.step, one.triggers) == (step, plants)]


def cells_of(models: Sequence[Model]) -> list[tuple[int, int]]:
    """All (steps, plants) of some models, in order."""
    return sorted({(one.step, one.triggers) for one in models})


def curve(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false, true positive rates) of calling values up to a threshold positive; `low` are the positives."""
    thresholds = np.unique(np.concatenate([low, high]))
    rates = [[0.0, *((part[:, None] <= thresholds).mean(axis=0))] for part in (high, low)]
    return np.asarray(rates[0]), np.asarray(rates[1])


def figure(found: Sequence[Model], path: Path) -> None:
    """ROC curves of labels and of models, one for each number of steps; a cross is what the detector does."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for colour, step in zip(PALETTE, sorted({one.step for one in found}), strict=False):
        some = [one for one in found if one.step == step]
        dirty = [one for one in some if one.triggers]
        groups = [pooled(dirty, scores, "planted"), pooled(some, scores, "ordinary")]
        flags = [pooled(dirty, lambda one: judged(one).flagged, "planted")]
        flags += [pooled(some, lambda one: judged(one).flagged, "ordinary")]
        _draw(left, groups, flags, step, colour)
        sides = [[one for one in some if bool(one.triggers) == planted] for planted in (True, False)]
        groups = [-np.asarray([judged(one).falls.max() for one in side]) for side in sides]
        flags = [is_flagged(side) for side in sides]
        _draw(right, groups, flags, step, colour)
    for axes, title in (
        (left, "triggers against ordinary labels"),
        (right, "models with triggers against those without"),
    ):
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="dashed", linewidth=1)
        axes.set(title=title, xlabel="false positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(fontsize=8, loc="lower right")
    left.set_ylabel("true positive rate")
    picture.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(picture)


def _draw(axes: Any, groups: Sequence[np.ndarray], flags: Sequence[np.ndarray], step: int, colour: str) -> None:
    """One curve, and the detector's point on it; positives come first."""
    label = f"{step} steps, AUC {trigger_rules.auc(*groups):.2f}"
    axes.plot(*curve(*groups), color=colour, label=label, drawstyle="steps-post")
    axes.plot(flags[1].mean(), flags[0].mean(), "X", color=colour, markersize=9, clip_on=False)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of all models")
    parser.add_argument("--chosen-on", nargs="+", type=int, default=[10, 11, 12], help="seeds of the choice and of tau")
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 6, 8, 9], help="seeds of the tables")
    parser.add_argument("--clean-seeds", nargs="*", type=int, default=[], help="more seeds for false alarms")
    parser.add_argument("--plants", nargs="+", type=int, default=[0, 4, 8], help="numbers of triggers, 0 among them")
    parser.add_argument("--base", type=int, default=450, help="steps of the clean model")
    parser.add_argument("--steps", nargs="+", type=int, default=[450, 900, 1350], help="of fine-tuning")
    parser.add_argument("--images", type=int, default=16, help="drawn of each label")
    parser.add_argument("--figure", type=Path, help="a PNG of ROC curves")
    parser.add_argument("--sscd", type=Path, help="SSCD's weights, to compare by its features too")
    parser.add_argument("--label-file", type=Path, help="only write the labels of one seed here")
    parser.add_argument("--triggers", type=int, default=4, help="of the label file")
    parser.add_argument("--seed", type=int, default=0, help="of the label file")
    options = parser.parse_args()
    if options.label_file:
        write_labels(options.label_file, options.triggers, options.seed)
        return
    if not options.workdir:
        parser.error("--workdir or --label-file is needed")

    def trained(seeds: Sequence[int], plants: Sequence[int]) -> list[Model]:
        parts = [
            fine_tuned(options.workdir, seed, count, options.base, options.steps, options.images)
            for count in plants
            for seed in seeds
        ]
        return [one for part in parts for one in part]

    chosen_on = trained(options.chosen_on, [0, 4])
    print(f"\nChosen on seeds {options.chosen_on}:\n\n{trigger_rules.choice(chosen_on)}")
    clean = [one for one in chosen_on if not one.triggers]
    taus = {step: tau(clean, step) for step in options.steps}
    print("\nTau: " + ", ".join(f"{value:.3f} at {step} steps" for step, value in taus.items()), flush=True)
    found = trained(options.seeds, options.plants)
    print(f"\nSeeds {options.seeds}, {options.images} images of each label:\n\n{answers(found, taus)}")
    if options.sscd:
        print(f"\n{similarity(found, embedder(options.sscd, options.workdir))}", flush=True)
    print(f"\n{detection(found)}", flush=True)
    clean = [one for one in found if not one.triggers] + trained(options.clean_seeds, [0])
    print(f"\nFalse alarms, seeds {[*options.seeds, *options.clean_seeds]}:\n\n{false_alarms(clean)}")
    if options.figure:
        figure(found, options.figure)


if __name__ == "__main__":
    main()
