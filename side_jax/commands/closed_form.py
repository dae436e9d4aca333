"""Theorem 1 in closed form: draws data sets, measures the differences of memorization/theorem.py, writes and says them.

results.json holds `law` (weights, spreads, means), `limits` (of each label, and their mean), `entropy` of the labels,
all in nats, the `settings`, and `rows`, each of one case, |D_i| and epsilon:

    case                 informative   label i names the Gaussian, models p_i and p                   equations (2), (3)
                         fitted        random labels, models fitted to D_i and to D                   (5)
                         held          labels that name the Gaussian, models that hold their images   (6)
                         held_random   random labels, models that hold their images                   (6)
    label                i, or null: the mean over labels, by their weights, of one data set
    size                 |D_i|; of the mean over labels, N / K
    epsilon              of the divergence; of the models that hold their images, their bandwidth too
    difference           M of the model of D_i less M of the model of D, the mean over data sets, in nats
    standard_error       of that mean
    deviation            of one data set's
    limit                (3): at epsilon 0; null but for the informative case
    limit_at_epsilon     (3): for infinitely many images; likewise
    bound                the least that (5), to first order, or (6) allow; null in the informative case
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax.memorization.theory import theorem
from side_jax.memorization.theory.theorem import Law
from side_jax.progress import progress
from side_jax.report import plots
from side_jax.settings.mixtures import Theory
from side_jax.workdir import files, lock

Found = Iterator[tuple[tuple[str, int, float], np.ndarray]]  # ((case, size, epsilon), differences float64 [K])
HELD = 500  # draws at most for (6): each is compared with all N images, and nearly all give the same number
CASES = ("informative", "fitted", "held", "held_random")


def run(settings: Theory, workdir: Path) -> str:
    """Writes theory/results.json and theory/theorem1.png; returns what they say, for people.

    Raises:
      InputError: for a workdir that can't be written or is in use.
    """
    with lock.locked(workdir):
        results = measure(settings)
        files.write_json(workdir / "theory" / "results.json", results)
        with files.atomic(workdir / "theory" / "theorem1.png") as file:
            file.write(plots.theorem(results))
    return in_plain_words(results, workdir / "theory")


def measure(settings: Theory) -> dict[str, Any]:
    """The results, JSON-ready."""
    s = settings
    law = theorem.make_law(s.weights, s.spreads, s.separation, s.dimensions, s.seed)
    found = defaultdict(list)
    tasks = [(repeat, i) for repeat in range(s.repeats) for i in range(len(s.sizes))]
    for repeat, i in progress(tasks, total=len(tasks), description="theory", unit="set"):
        for key, differences in _of_one_set(s, law, repeat, i):
            found[key].append(differences)
    limits = {e: [theorem.limit(law, label, e) for label in range(s.labels)] for e in (0.0, *s.epsilons)}
    return {
        "settings": dataclasses.asdict(s),
        "law": {name: value.tolist() for name, value in dataclasses.asdict(law).items()},
        "limits": {"labels": limits[0.0], "mean": float(law.weights @ limits[0.0])},
        "entropy": law.entropy,
        "rows": [row for key, values in found.items() for row in _rows(law, limits, key, np.asarray(values))],
    }


def _of_one_set(s: Theory, law: Law, repeat: int, i: int) -> Found:
    """All that is measured of one data set: the i-th size's in one repeat."""
    size, rng = s.sizes[i], np.random.default_rng([s.seed, 1, repeat, i])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(s.seed), repeat), i)
    number = theorem.label_counts(law.weights, s.labels * size)
    kinds = np.repeat(np.arange(s.labels), number)
    images = law.sample(kinds, rng)
    named = np.split(images, np.cumsum(number)[:-1])
    random = np.split(rng.permutation(len(images)), s.labels)
    parts = [images[part] for part in random]
    for epsilon in s.epsilons:
        yield ("informative", size, epsilon), theorem.informative_differences(law, named, epsilon, key, s.num_samples)
    last, of_parts = s.epsilons[-1], [kinds[part] for part in random]
    yield ("fitted", size, last), theorem.fitted_differences(law, parts, of_parts, last, key, s.num_samples)
    for case, cut in (("held", named), ("held_random", parts)):
        yield (case, size, s.bandwidth), theorem.memorised_differences(cut, s.bandwidth, key, min(HELD, s.num_samples))


def _rows(
    law: Law, limits: dict[float, list[float]], key: tuple[str, int, float], values: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Rows of differences [repeats, K]: of their mean over labels, and of each label where it names a Gaussian."""
    case, size, epsilon = key
    named, labels = case in ("informative", "held"), len(law.weights)
    weights = law.weights if named else np.full(labels, 1 / labels)
    number = theorem.label_counts(law.weights, labels * size) if named else np.full(labels, size)
    bounds = np.full(labels, theorem.fitting_cost(law, size)) if case == "fitted" else np.log(number / number.sum())
    for label in [None, *(range(labels) if named else ())]:
        own = weights if label is None else np.eye(labels)[label]
        of_sets = values @ own
        deviation = float(of_sets.std(ddof=1))
        yield {
            "case": case,
            "label": label,
            "size": size if label is None else int(number[label]),
            "epsilon": epsilon,
            "difference": float(of_sets.mean()),
            "standard_error": deviation / math.sqrt(len(of_sets)),
            "deviation": deviation,
            "limit": float(own @ limits[0.0]) if case == "informative" else None,
            "limit_at_epsilon": float(own @ limits[epsilon]) if case == "informative" else None,
            "bound": None if case == "informative" else float(own @ bounds),
        }


def in_plain_words(results: dict[str, Any], folder: Path) -> str:
    """What was found at the largest size and the smallest epsilon."""
    s = results["settings"]
    last = {row["case"]: row for row in results["rows"] if row["label"] is None}  # rows ascend in size
    value = {case: f"{last[case]['difference']:.4f} +- {last[case]['standard_error']:.4f}" for case in CASES}
    size, limit, entropy = s["sizes"][-1], results["limits"]["mean"], results["entropy"]
    return f"""\
Theorem 1, {s["labels"]} Gaussians in {s["dimensions"]} dimensions, at |D_i| = {size:,}, the mean of {s["repeats"]} \
data sets, in nats:
Labels that name the Gaussian: M(D_i; p_i, eps) - M(D_i; p, eps) is {value["informative"]} at eps = \
{s["epsilons"][-1]:g}; its limit, -KL(p_i || p) averaged over the labels, is {limit:.4f}.
Random labels: each part is of the law p, so that p_i = p and the limit is 0. Of models fitted to each part and to all \
it is {value["fitted"]}; fitting so many images costs up to {last["fitted"]["bound"]:.4f}.
Models that hold their images (kernels of bandwidth {s["bandwidth"]:g}): {value["held"]} with these labels and \
{value["held_random"]} with random ones; -log(N / |D_i|) is {last["held"]["bound"]:.4f} and \
{last["held_random"]["bound"]:.4f}. Any partition gains that, for the label says which part holds the image.
Who draws a label by its weight and then an image of p_i draws from p: by itself the theorem makes extraction with \
labels drawn at random no likelier. No informative labels bring more than their entropy, {entropy:.4f}, on average.
All numbers: {folder / "results.json"}; figure: {folder / "theorem1.png"}"""
