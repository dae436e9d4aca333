"""A changed setting reaches the units of work that depend on it, and no others."""

import dataclasses

import pytest

from side_jax.settings import Settings
from side_jax.stages.stage_table import STAGES

AFTER = {"evaluate", "report"}
GUIDED = {"extract/conditional_10", "extract/side_10", *AFTER}
SIDE = {"surrogate/side", "extract/side_10", *AFTER}
SAMPLED = {"synthesize", "label", "extract/unconditional", *SIDE, *GUIDED}
ALL = {"train", "surrogate/conditional", *SAMPLED}


@pytest.fixture(scope="module")
def settings():
    extract = dataclasses.replace(
        Settings().extract, attacks=("unconditional", "conditional", "side"), guidance_scales=(10.0,)
    )
    return dataclasses.replace(Settings(), extract=extract)


def fingerprints(settings, workdir):
    works = [work for stage in STAGES.values() if stage.audit for work in stage.plan(settings, workdir)]
    return {work.unit.name: work.unit.fingerprint for work in works}


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("data", "num_heldout", 999, ALL),
        ("diffusion", "beta_end", 0.03, ALL),
        ("model", "dropout", 0.5, ALL),
        ("train", "learning_rate", 1e-5, ALL),
        ("sampler", "eta", 1.0, SAMPLED),
        ("sampler", "spacing", "leading", SAMPLED),
        ("synthesize", "num_images", 5000, {"synthesize", "label", *SIDE}),
        ("label", "cohesion_threshold", 0.123, {"label", *SIDE}),
        ("classifier", "width", 6, {"surrogate/conditional", "surrogate/side", *GUIDED}),
        ("conditional", "learning_rate", 1e-5, {"surrogate/conditional", "extract/conditional_10", *AFTER}),
        ("surrogate", "learning_rate", 1e-5, SIDE),
        ("extract", "num_images", 77, {"extract/unconditional", *GUIDED}),
        ("extract", "num_steps", 7, GUIDED),
        ("extract", "normalize_gradient", True, GUIDED),
        ("evaluate", "rmse_below", 0.123, AFTER),
        ("report", "pairs", 3, {"report"}),
        # What changes no result.
        ("train", "log_every", 7, set()),
        ("train", "checkpoint_every", 7, set()),
        ("model", "remat", True, set()),
        ("data", "storage", "stream", set()),
        ("monitor", "every_steps", 7, set()),
        ("monitor", "seeks_modes", False, set()),
        ("track", "to", ("wandb",), set()),
    ],
)
def test_a_setting_reaches_what_depends_on_it(settings, tmp_path, section, key, value, expected):
    own = dataclasses.replace(getattr(settings, section), **{key: value})
    changed = fingerprints(dataclasses.replace(settings, **{section: own}), tmp_path)
    before = fingerprints(settings, tmp_path)
    assert before.keys() == ALL
    assert {unit for unit in ALL if changed[unit] != before[unit]} == expected


def test_the_seed_reaches_everything(settings, tmp_path):
    before, changed = (fingerprints(one, tmp_path) for one in (settings, dataclasses.replace(settings, seed=1)))
    assert all(changed[unit] != before[unit] for unit in ALL)


def test_the_monitor_reaches_everything_where_it_may_end_the_training(settings, tmp_path):
    def target(**values):
        monitor = dataclasses.replace(settings.monitor, every_steps=10, **values)
        return fingerprints(dataclasses.replace(settings, monitor=monitor), tmp_path)["train"]

    plain, stops = target(), target(stop_at_rate=0.1)
    assert target(stop_at_rate=0.1, seeks_modes=False) == stops != plain
    assert target(num_samples=7) == plain
    assert len({plain, stops, target(stop_at_modes_rate=0.1), target(stop_at_modes_rate=0.1, num_samples=7)}) == 4
