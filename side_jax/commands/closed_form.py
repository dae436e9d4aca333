"""Theorem 1 in closed form: draws data sets, and measures the differences of memorization/theory/theorem.py on them.

results.json has `law` (weights, spreads, means), `limits` (of each label, and their mean) and `entropy` of the labels,
both in nats, `settings`, and `rows`, one for each case, label, |D_i| and epsilon:

    case                 informative   label i names the Gaussian, models p_i and p                   equations (2), (3)
                         fitted        random labels, models fitted to D_i and to D                   (5)
                         held          labels that name the Gaussian, models that hold their images   (6)
                         held_random   random labels, models that hold their images                   (6)
    label                i, or null for the mean over the labels, by their weights
    size                 |D_i|; for the mean over the labels, N / K
    epsilon              noise of the divergence, and bandwidth of the models that hold their images
    difference           M of the model of D_i minus M of the model of D, the mean over data sets, in nats
    standard_error       standard error of that mean
    deviation            standard deviation over the data sets
    limit                (3) at epsilon 0; null except in the informative case
    limit_at_epsilon     (3) for infinitely many images; null except in the informative case
    bound                the smallest value that (5), to first order, or (6) allows; null in the informative case
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

Key = tuple[str, int, float]  # (case, size, epsilon)
HELD_DRAWS = 500  # draws for (6), at most: each is compared with all N images, and nearly all give the same number
CASES = ("informative", "fitted", "held", "held_random")


def run(settings: Theory, workdir: Path) -> str:
    """Writes theory/results.json and theory/theorem1.png; returns a summary for people.

    Raises:
      InputError: if the workdir can't be written or is in use.
    """
    with lock.locked(workdir):
        results = measure(settings)
        files.write_json(workdir / "theory" / "results.json", results)
        with files.atomic(workdir / "theory" / "theorem1.png") as file:
            file.write(plots.theorem(results))
    return summary_text(results, workdir / "theory")


def measure(settings: Theory) -> dict[str, Any]:
    """Returns the content of results.json."""
    s = settings
    law = theorem.make_law(s.weights, s.spreads, s.separation, s.dimensions, s.seed)
    differences = defaultdict(list)
    tasks = [(repeat, i) for repeat in range(s.repeats) for i in range(len(s.sizes))]
    for repeat, i in progress(tasks, total=len(tasks), description="theory", unit="set"):
        for key, values in _measure_data_set(s, law, repeat, i):
            differences[key].append(values)
    limits = {e: [theorem.limit(law, label, e) for label in range(s.labels)] for e in (0.0, *s.epsilons)}
    return {
        "settings": dataclasses.asdict(s),
        "law": {name: value.tolist() for name, value in dataclasses.asdict(law).items()},
        "limits": {"labels": limits[0.0], "mean": float(law.weights @ limits[0.0])},
        "entropy": law.entropy,
        "rows": [row for key, values in differences.items() for row in _rows(law, limits, key, np.asarray(values))],
    }


def _measure_data_set(s: Theory, law: Law, repeat: int, i: int) -> Iterator[tuple[Key, np.ndarray]]:
    """Yields the differences, float64 [K], of one data set: the one of the i-th size in a repeat."""
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
        yield (
            (case, size, s.bandwidth),
            theorem.memorised_differences(cut, s.bandwidth, key, min(HELD_DRAWS, s.num_samples)),
        )


def _rows(law: Law, limits: dict[float, list[float]], key: Key, values: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yields the rows of differences [repeats, K]: their mean over the labels, and each label that names a Gaussian."""
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


def summary_text(results: dict[str, Any], folder: Path) -> str:
    """Summarises the results at the largest size and the smallest epsilon."""
    s = results["settings"]
    last = {row["case"]: row for row in results["rows"] if row["label"] is None}  # rows ascend in size
    value = {case: f"{last[case]['difference']:.4f} +- {last[case]['standard_error']:.4f}" for case in CASES}
    size, limit, entropy = s["sizes"][-1], results["limits"]["mean"], results["entropy"]
    return f"""\
Theorem 1 for {s["labels"]} Gaussians in {s["dimensions"]} dimensions at |D_i| = {size:,}; means over {s["repeats"]} \
data sets, in nats:
Labels that name the Gaussian: M(D_i; p_i, eps) - M(D_i; p, eps) is {value["informative"]} at eps = \
{s["epsilons"][-1]:g}; its limit, -KL(p_i || p) averaged over the labels, is {limit:.4f}.
Random labels: every part has the distribution p, so p_i = p and the limit is 0. For models fitted to each part and to \
the whole set, the difference is {value["fitted"]}; fitting this many images accounts for up to \
{last["fitted"]["bound"]:.4f}.
Models that hold their images (kernels of bandwidth {s["bandwidth"]:g}): {value["held"]} with these labels and \
{value["held_random"]} with random ones; -log(N / |D_i|) is {last["held"]["bound"]:.4f} and \
{last["held_random"]["bound"]:.4f}. Any partition gives this, since the label tells which part holds the image.
Drawing a label by its weight, then an image from p_i, is drawing from p; so by itself the theorem makes extraction \
with randomly drawn labels no likelier. Informative labels gain at most their entropy, {entropy:.4f}, on average.
All numbers: {folder / "results.json"}; figure: {folder / "theorem1.png"}"""
