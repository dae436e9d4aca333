"""The candidates for the detector of planted labels, and which of them is chosen; see docs/results_triggers.md.

A statistic maps the images of each label to a number, of which a low one is suspicious; a rule maps the logarithms of
these numbers to the flagged labels, and to a score of the model. benchmarks/triggers.py prints the tables.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from trigger_models import Model, to_float

FALLS = (2.0, 3.0, 4.0, 6.0, 8.0)  # c
RATE = 0.05
SIMULATED = 19_999
FREEDOM = 5  # of Student's t
LEAST = 1e-12  # what a squared distance of 0 counts as
TIE = 0.01  # of two AUC

Rule = Callable[[np.ndarray, float], tuple[np.ndarray, float]]


def squared_distances(images: np.ndarray) -> np.ndarray:
    """Squared RMSE of all pairs of images [N, ...] in [-1, 1]: float64 [N (N - 1) / 2]."""
    flat = images.reshape(len(images), -1)
    first, second = np.triu_indices(len(flat), 1)
    return np.maximum(np.square(flat[first] - flat[second]).mean(axis=1), LEAST)


@functools.cache  # of each model once
def statistics(one: Model) -> dict[str, np.ndarray]:
    """The candidates' logarithms for each label, float64 [n], in the order of preference."""
    drawn = to_float(one.drawn)
    pairs = [squared_distances(images) for images in drawn]
    means = drawn.mean(axis=1)
    next_mean = []
    for i, mean in enumerate(means):
        next_mean.append(np.square(np.delete(means, i, axis=0) - mean).reshape(len(means) - 1, -1).mean(axis=1).min())
    found = {
        "variance": np.asarray([some.mean() / 2 for some in pairs]),
        "median pair": np.asarray([np.median(some) / 2 for some in pairs]),
        "mean pair over nearest pair": np.asarray([np.sqrt(some).mean() / np.sqrt(some.min()) for some in pairs]),
        "variance over next label's distance": np.asarray([some.mean() / 2 for some in pairs]) / np.asarray(next_mean),
    }
    return {name: np.log(values) for name, values in found.items()}


def drops(ordered: np.ndarray) -> np.ndarray:
    """Of each row of logarithms in falling order [r, n], how far those below the upper half lie below all above them.

    Returns:
      float64 [r, n // 2]: their mean less the logarithm, over their standard deviation.
    """
    count, half = ordered.shape[1], ordered.shape[1] - ordered.shape[1] // 2
    above = [ordered[:, :k] for k in range(half, count)]
    return np.stack([(a.mean(axis=1) - ordered[:, a.shape[1]]) / a.std(axis=1, ddof=1) for a in above], axis=1)


@functools.lru_cache(maxsize=64)
def limits(count: int, freedom: float) -> tuple[np.ndarray, float]:
    """(the scale of each drop, the limit of the largest drop over its scale) of clean models of so many labels."""
    rng = np.random.default_rng([count, 2024])

    def simulated() -> np.ndarray:
        draw = rng.standard_normal if np.isinf(freedom) else functools.partial(rng.standard_t, freedom)
        return drops(-np.sort(-draw(size=(SIMULATED, count)), axis=1))

    scales = np.quantile(simulated(), 1 - RATE / (count // 2), axis=0)
    largest = np.sort((simulated() / scales).max(axis=1))
    return scales, float(largest[-int(RATE * (SIMULATED + 1))])


def outward(logs: np.ndarray, fall: float, freedom: float) -> tuple[np.ndarray, float]:
    """Rules (B) and (C)."""
    scales, limit = limits(len(logs), freedom)
    order = np.argsort(-logs, kind="stable")
    found = drops(logs[order][None])[0] / scales
    flagged, above = np.zeros(len(logs), bool), found > limit
    if above.any():
        first = len(logs) - len(found) + int(above.argmax())
        below = order[first:]
        flagged[below] = logs[below] < logs[order[:first]].mean() - np.log(fall)
    return flagged, float(found.max() / limit)


@functools.lru_cache(maxsize=64)
def median_limit(count: int) -> float:
    """The limit k of rule (A)."""
    logs = np.random.default_rng([count, 1963]).standard_normal((SIMULATED, count))
    middle, scale = median_and_scale(logs)
    return -float(np.sort((logs.min(axis=1) - middle) / scale)[int(RATE * (SIMULATED + 1)) - 1])


def median_and_scale(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median of each row, and the root mean square of its upper half about it."""
    middle = np.median(logs, axis=1)
    upper = np.sort(logs, axis=1)[:, -(logs.shape[1] // 2) :]
    return middle, np.sqrt(np.square(upper - middle[:, None]).mean(axis=1))


def from_median(logs: np.ndarray, fall: float) -> tuple[np.ndarray, float]:
    """Rule (A)."""
    (middle,), (scale,) = median_and_scale(logs[None])
    limit = median_limit(len(logs)) * scale
    return logs < middle - max(limit, np.log(fall)), float((middle - logs.min()) / limit)


def upper_half(logs: np.ndarray) -> float:
    """The mean of the upper half."""
    return float(np.sort(logs)[len(logs) // 2 :].mean())


def lawless(logs: np.ndarray, fall: float) -> tuple[np.ndarray, float]:
    """Rule (D)."""
    middle = upper_half(logs)
    return logs < middle - np.log(fall), float((middle - logs.min()) / np.log(fall))


RULES: dict[str, Rule] = {
    "A: from the median": from_median,
    "B: outward, normal": functools.partial(outward, freedom=np.inf),
    "C: outward, t": functools.partial(outward, freedom=FREEDOM),
    "D: no law": lawless,
}


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """The probability that a value of `low` is below one of `high`; equal ones count half."""
    return float(stats.mannwhitneyu(high, low).statistic / (len(low) * len(high)))


def choice(models: Sequence[Model]) -> str:
    """The tables of what was chosen, and the choice in a sentence."""
    statistic, first = chosen_statistic(models)
    rule, fall, second = chosen_rule(models, statistic)
    score, third = chosen_score(models, statistic, rule, fall)
    return f"{first}\n\n{second}\n\n{third}\n\nChosen: {statistic}; {rule}, c = {fall:g}; {score}."


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def chosen_statistic(models: Sequence[Model]) -> tuple[str, str]:
    """(the statistic, the table of the mean AUC of triggers against ordinary labels of the same model)."""
    dirty = [one for one in models if one.triggers]
    steps = sorted({one.step for one in dirty})
    rows, mean = [], {}
    for name in statistics(dirty[0]):
        logs = [statistics(one)[name] for one in dirty]
        found = np.asarray(
            [auc(values[one.is_planted], values[one.is_ordinary]) for one, values in zip(dirty, logs, strict=True)]
        )
        mean[name] = found.mean()
        at = [found[[one.step == step for one in dirty]].mean() for step in steps]
        rows.append([name, *(f"{value:.3f}" for value in (mean[name], *at))])
    best = next(name for name, value in mean.items() if value >= max(mean.values()) - TIE)
    return best, table(["statistic", "AUC", *(f"{step} steps" for step in steps)], rows)


def flagged(models: Sequence[Model], logs: Sequence[np.ndarray], rule: Rule, fall: float) -> list[int]:
    """How many ordinary labels, single ones and triggers a rule flags."""
    flags = [rule(values, fall)[0] for values in logs]
    groups = ("ordinary", "single", "planted")
    return [
        sum(int(flag[getattr(one, f"is_{group}")].sum()) for one, flag in zip(models, flags, strict=True))
        for group in groups
    ]


def chosen_rule(models: Sequence[Model], statistic: str) -> tuple[str, float, str]:
    """(the rule, its c, the table): most triggers at the first c without a false alarm, and the c after that one."""
    logs = [statistics(one)[statistic] for one in models]
    heads = ["rule", "c", "flagged: ordinary", "single", "triggers", "c, more cautious", "flagged: triggers"]
    rows, best = [], (-1, "", 0.0)
    for name, rule in RULES.items():
        counts = {fall: flagged(models, logs, rule, fall) for fall in FALLS}
        first = next((i for i, fall in enumerate(FALLS) if not counts[fall][0]), len(FALLS))
        if first + 1 >= len(FALLS):
            rows.append([name, "none", *counts[FALLS[-1]], "-", "-"])
            continue
        fall, cautious = FALLS[first], FALLS[first + 1]
        rows.append([name, f"{fall:g}", *counts[fall], f"{cautious:g}", counts[cautious][2]])
        best = max(best, (counts[fall][2], name, cautious), key=lambda one: one[0])
    return *best[1:], table(heads, rows)


def chosen_score(models: Sequence[Model], statistic: str, rule: str, fall: float) -> tuple[str, str]:
    """(the score of a model, the table of the AUC of models with plants against those without)."""
    known = {
        "the rule's score over its limit": lambda logs: RULES[rule](logs, fall)[1],
        "upper half over the least": lambda logs: upper_half(logs) - float(logs.min()),
    }
    steps, rows, mean = sorted({one.step for one in models}), [], {}
    for name, score in known.items():
        at = []
        for step in steps:
            some = [one for one in models if one.step == step]
            clean, dirty = (
                np.asarray([score(statistics(one)[statistic]) for one in some if bool(one.triggers) == planted])
                for planted in (False, True)
            )
            at.append(auc(clean, dirty))
        mean[name] = np.mean(at)
        rows.append([name, *(f"{value:.3f}" for value in (mean[name], *at))])
    best = max(mean, key=lambda name: mean[name])
    return best, table(["score of a model", "AUC", *(f"{step} steps" for step in steps)], rows)
