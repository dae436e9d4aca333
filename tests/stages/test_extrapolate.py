"""The attack `extrapolate`: its weaker model, by either source, and its images."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import runs

from side_jax import builders
from side_jax.attacks.table import Run
from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.settings import Settings, Train, random_streams
from side_jax.settings.extraction import Extract, Weak
from side_jax.stages import estimates, stage_inputs, stage_table

ATTACK = "extrapolate"
EARLIER = {
    "extract__attacks": f"('{ATTACK}',)",
    "extract__guidance_scales": "(0.0,2.0)",
    "train__checkpoint_every": 10,
    "train__keep_checkpoints": True,
    "weak__step": 20,
}


def settings(**weak):
    return dataclasses.replace(
        Settings(), extract=Extract(attacks=(ATTACK,)), weak=Weak(**weak), train=Train(keep_checkpoints=True)
    )


def drawn(own, workdir, scale):
    unit = dict(stage_table.extraction_units(own, workdir))[Run(attack=ATTACK, scale=scale)]
    return shards.read(stage_table.extracted_shards(own, unit))["images"]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run whose weaker model is an earlier checkpoint."""
    workdir = tmp_path_factory.mktemp("earlier") / "run"
    assert runs.run(runs.arguments(workdir, **EARLIER)) == 0
    return from_config(saved_config(workdir)), workdir


def test_an_earlier_checkpoint_is_the_weaker_model(earlier):
    """Its parameters are those of that step, kept from the training of the target; nothing else is trained or drawn."""
    own, workdir = earlier
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [10, 20, 30, 40]
    weak, target = (load(own, workdir) for load in (stage_inputs.load_weak, stage_inputs.load_target))
    assert (weak.step, target.step) == (20, 40)
    assert weak.meta["sha256"]["ema"] != target.meta["sha256"]["ema"]
    assert not (workdir / "synthesize" / "shard_00000.npz").exists()
    assert not (workdir / "surrogate" / "weak").exists()


def test_images_are_drawn_by_both_networks(earlier):
    """At scale 0 they are the target's plain ones; else the target's prediction moves away from the weaker one's."""
    own, workdir = earlier
    params, base = (
        {"dpm": stage_inputs.load_target(own, workdir).trees["ema"]},
        random_streams.stream_key(own, "extract"),
    )
    index, labels = np.arange(own.sampler.batch_size), np.full(own.sampler.batch_size, -1, np.int32)
    params["weak"] = stage_inputs.load_weak(own, workdir).trees["ema"]
    unet = builders.build_network(own)
    sampler = own.guided_sampler
    with jax.numpy_dtype_promotion("standard"):
        plain = builders.build_generator(own, sampler=sampler)(params, base, index, labels, 0.0)
        moved = builders.Generator(
            denoise=lambda p, x, t, index: (
                3 * unet.apply({"params": p["dpm"]}, x, t) - 2 * unet.apply({"params": p["weak"]}, x, t)
            ),
            table=builders.build_step_table(own, sampler),
            shape=builders.image_shape(own),
            batch_size=sampler.batch_size,
        )(params, base, index, labels, 0.0)
    for scale, expected in ((0.0, plain), (2.0, moved)):
        difference = np.abs(drawn(own, workdir, scale)[: len(index)].astype(int) - expected.astype(int))
        assert difference.max() <= 1
    assert np.abs(moved.astype(int) - plain).mean() > 2


def test_the_plan_has_room_for_every_checkpoint(tmp_path):
    own = dataclasses.replace(settings(), train=Train(num_steps=1000, checkpoint_every=100, keep_checkpoints=True))
    work = stage_table.train_unit(own, tmp_path)
    assert estimates.target_bytes(own, work) == 10 * 16 * builders.parameter_count(own)
    usual = dataclasses.replace(own, train=Train(num_steps=1000, checkpoint_every=100))
    assert estimates.target_bytes(usual, work) == 3 * 16 * builders.parameter_count(own)


def test_calls_of_the_weaker_network_count(earlier):
    own, _ = earlier
    assert estimates.network_calls(own, Run(attack=ATTACK, scale=2.0)) == 2 * own.sampler.num_steps


def test_a_model_of_its_own_samples_is_the_weaker_one():
    """Trained in stage surrogate on the synthetic images, for steps of its own; its rows are in the results."""
    workdir = runs.finished("everything")
    own = from_config(saved_config(workdir))
    unit = stage_table.weak_unit(own, workdir)
    assert unit.done()
    assert unit.content()["steps"] == own.weak.num_steps == 10
    assert stage_inputs.load_weak(own, workdir).step == 10
    metrics = [json.loads(line) for line in (unit.directory / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["epoch"] == round(10 * own.weak.batch_size / own.synthesize.num_images, 3)
    page = (workdir / "report" / "index.html").read_text()
    assert "Guided by a weaker model at its best scale" in page


def test_it_depends_on_its_weaker_model_alone(tmp_path):
    """Not on classifiers; by samples on their synthesis and the training, by checkpoint on its step."""

    def fingerprint(own):
        (found,) = {work.fingerprint for run, work in stage_table.extraction_units(own, tmp_path) if run.scale == 3.0}
        return found

    plain = settings()
    more = dataclasses.replace(plain.synthesize, num_images=plain.synthesize.num_images + 64)
    changed = [
        settings(num_steps=7),
        settings(step=500),
        dataclasses.replace(plain, synthesize=more),
    ]
    assert len({fingerprint(one) for one in (plain, *changed)}) == 4
    other = dataclasses.replace(plain.surrogate, learning_rate=1e-5)
    assert fingerprint(dataclasses.replace(plain, surrogate=other)) == fingerprint(plain)
    assert fingerprint(settings(log_every=7)) == fingerprint(plain)
    assert fingerprint(dataclasses.replace(plain, train=Train())) == fingerprint(plain)
