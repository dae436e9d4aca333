"""Made-up records of results.json: complete ones with defaults, of which a test sets the figures that it is about."""

from msgspec import structs

from side_jax.measure.records import (
    Ahead,
    Cell,
    CellTest,
    Chao1,
    Control,
    Dataset,
    Definition,
    Distribution,
    Fit,
    GoodToulmin,
    ImageSet,
    Likeness,
    Operating,
    Quality,
    Rarefaction,
    Results,
    Row,
    SetSizes,
    SideScore,
    Threshold,
    both_sides,
)
from side_jax.memorization.metrics import METRICS, definition
from side_jax.memorization.statistics import intervals

NOTHING = SideScore(
    ams=0.0,
    ams_ci=(0.0, 0.01),
    ams_at_most=0.01,
    ums=0.0,
    ums_ci=(0.0, 0.01),
    ums_nearest=0.0,
    ums_nearest_ci=(0.0, 0.01),
    unique=0,
)


def row(attack, scale=0.0, **changes):
    """A row of which, by default, no image matches anything."""
    whole = {"metric": "rmse", "level": "high", "band": (0.0, 0.8), "cumulative": True, "n_generated": 100}
    whole |= both_sides(NOTHING, NOTHING) | {"excess": 0.0, "excess_ci": (-0.01, 0.01), "p_excess": 1.0}
    whole |= {"unique_excess": 0.0, "unique_excess_ci": (-1.0, 1.0), "p_deficit": 1.0}
    return Row(attack=attack, guidance_scale=scale, **whole | {"p05": 0.5, "p95": 1.0} | changes)


def rarefaction(attack, scale=0.0, **changes):
    """Of 100 images, which found nothing, by default."""
    law = Fit(a=0.0, b=1.0, sizes=(1, 1000), expected=(0.0, 0.0))
    toulmin = GoodToulmin(expected=0.0, smoothed=True, valid=False)
    ahead = Ahead(factor=10, fit=0.0, chao=0.0, good_toulmin=toulmin)
    whole = {"sizes": (1, 100), "expected": (0.0, 0.0), "fit": law, "ahead": ahead}
    return Rarefaction(
        attack=attack, guidance_scale=scale, **whole | {"chao1": Chao1(estimate=0.0, low=0.0, high=90.0)} | changes
    )


def distribution(attack, scale=0.0, c_t=None, members=90, heldout=90, **changes):
    """Of 100 images; C_T's cells are not kept where its value is None."""
    cells = (Cell(share=1.0, heldout=heldout, generated=100, z=c_t),)
    whole = dict.fromkeys(("auth_pct", "auth_pct_heldout", "fld_gap", "fld_gap_heldout"), 1.0)
    whole |= dict.fromkeys(("frechet_members", "frechet_heldout", "frechet_members_heldout"), 1.0)
    whole["c_t"] = CellTest(value=c_t, used=int(c_t is not None), cells=cells)
    whole["n"] = SetSizes(generated=100, members=members, heldout=heldout, frechet=90)
    return Distribution(attack=attack, guidance_scale=scale, **whole | changes)


def threshold(**changes):
    """Calibrated on 45 of 91 images."""
    return Threshold(**{"below": 0.5, "calibrated_on": 45, "tested_on": 46, "matched": 0} | changes)


def control(distortion, strength, **changes):
    """Of 100 images, none of which is matched."""
    whole = {"unit": "u", "metric": "rmse", "level": "high", "band": (0.0, 0.8), "images": 100, "found": 0.0}
    return Control(distortion=distortion, strength=strength, **whole | {"found_ci": (0.0, 0.04)} | changes)


def operating(rate, **changes):
    """A false positive rate at which nothing is known."""
    names = ("threshold", "called_members", "called_heldout", "true_positive_rate", "true_positive_rate_ci")
    unknown = dict.fromkeys((*names, "realised_rate", "realised_rate_ci", "note"))
    return Operating(false_positive_rate=rate, **unknown | changes)


def quality(at, **changes):
    """Of 90 members and 90 held-out images."""
    whole = {"members": 90, "calibration": 45, "evaluation": 45, "confidence": 0.95, "auc": 0.5, "auc_ci": (0.4, 0.6)}
    return Quality(at=at, **whole | {"auc_ci_method": "made up"} | changes)


def dataset(**changes):
    """90 members, and as many held-out images."""
    whole = {"name": "made up", "members": 90, "heldout": 90, "heldout_used": 90, "image_shape": (8, 8, 1)}
    return Dataset(**whole | changes)


def image_set(images, **changes):
    """One of the sets of an audit of images alone."""
    return ImageSet(images=images, **{"sha256": "0" * 64, "damaged": 0, "repeats": 0, "colour": False} | changes)


def results(rows, **changes):
    """Of some rows, with a rarefaction curve for each of their runs."""
    runs = dict.fromkeys((one.attack, one.guidance_scale) for one in rows)
    metrics = dict.fromkeys(one.metric for one in rows)
    whole = {
        "metrics": tuple(Definition(**definition(METRICS[name]())) for name in metrics),
        "rows": tuple(rows),
        "rarefaction": tuple(rarefaction(*run) for run in runs),
        "thresholds": {name: threshold() for name in metrics},
        "controls": (),
        "distribution": (),
        "dataset": dataset(),
        "versions": {"side_jax": "0"},
    }
    return Results(**whole | changes)


def matched(attack, hits, scale=10.0, held=0, n=1000, **changes):
    """Images that match members and held-out ones, with excesses and p-values as if different images did."""
    sides = {}
    for prefix, count in (("", hits), ("heldout_", held)):
        bound = None if count else intervals.zero_hits_bound(n, 0.95)
        interval = intervals.wilson_interval(count, n, 0.95)
        sides |= {f"{prefix}ams": count / n, f"{prefix}ams_ci": interval, f"{prefix}ams_at_most": bound}
    interval = intervals.paired_difference_interval(0, hits, held, n - hits - held, 0.95)
    excess = {"excess": (hits - held) / n, "excess_ci": interval, "unique_excess": min(hits, 50) - min(held, 50)}
    excess |= {"unique_excess_ci": (excess["unique_excess"] - 8.0, excess["unique_excess"] + 8.0)}
    p = {"p_excess": intervals.mcnemar(hits, held), "p_deficit": intervals.mcnemar(held, hits)}
    found = {"unique": min(hits, 50), "heldout_unique": min(held, 50)}
    return row(attack, scale, n_generated=n, **found, **sides, **excess, **p, **changes)


def audit(*rows, **changes):
    """Results of 128 images on each side, where ten times the images would find 61 members."""
    whole = results(rows, dataset=dataset(members=128, heldout=128, heldout_used=128))
    curves = [structs.replace(curve, ahead=structs.replace(curve.ahead, fit=61.4)) for curve in whole.rarefaction]
    return structs.replace(whole, **{"rarefaction": tuple(curves)} | changes)


def likeness(**changes):
    """Sets of one kind."""
    return Likeness(**{"heldout_share": 0.0, "heldout_p": 0.5, "samples_share": 0.01} | changes)
