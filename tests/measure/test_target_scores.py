"""The divergence of an audit, for a model whose likelihood is known, and the audited model's own likelihood."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax import builders
from side_jax.config import from_config
from side_jax.diffusion import likelihood, pixel_range
from side_jax.diffusion.sampler import sample_keys
from side_jax.measure import target_scores
from side_jax.measure.target_scores import TOLERANCE, TargetScores
from side_jax.pipeline import saved_config
from side_jax.settings import random_streams
from side_jax.stages import stage_inputs

D, EPSILON = 64, 0.05


@pytest.fixture
def witness(finished):
    config = saved_config.saved_config(finished).copy_and_resolve_references()
    with config.unlocked():
        config.evaluate.divergence_draws = 200
    return stage_inputs.load_target_scores(from_config(config), finished)


@pytest.fixture
def sides(finished):
    settings = from_config(saved_config.saved_config(finished))
    members, heldout, _, _ = stage_inputs.load_split(settings, finished)
    return members.images, heldout.images


def of_gaussian(monkeypatch, mean):
    """Makes N(mean, I) the model's law."""

    def log_prob(self, x, stream):
        return -0.5 * (np.square(x - mean).sum(axis=(1, 2, 3)) + D * np.log(2 * np.pi))

    monkeypatch.setattr(TargetScores, "log_prob", log_prob)


def test_divergence_from_a_gaussian(witness, sides, monkeypatch):
    """The members are farther apart than their noise, so that the entropy of q is log n more than that of one."""
    of_gaussian(monkeypatch, 0.0)
    found = witness.divergence(*sides)
    for name, images in zip(("members", "heldout"), sides, strict=True):
        x = pixel_range.to_float(images)
        cross = 0.5 * (np.square(x).sum(axis=(1, 2, 3)).mean() + D * EPSILON**2 + D * np.log(2 * np.pi))
        entropy = np.log(len(x)) + 0.5 * D * np.log(2 * np.pi * np.e * EPSILON**2)
        row = getattr(found, name)
        assert abs(row.estimate - (cross - entropy)) < 4 * row.standard_error
    assert found.difference.estimate == pytest.approx(found.heldout.estimate - found.members.estimate)


def test_a_law_around_one_side_is_nearer_to_it(witness, sides, monkeypatch):
    one = [images[:1] for images in sides]
    of_gaussian(monkeypatch, pixel_range.to_float(one[0])[0])
    found = witness.divergence(*one).difference
    apart = 0.5 * np.square(np.subtract(*map(pixel_range.to_float, one))).sum()
    assert abs(found.estimate - apart) < 4 * found.standard_error


def test_what_is_not_solved_is_counted_and_not_averaged(witness, sides, monkeypatch):
    def log_prob(self, x, stream):
        return np.where(np.arange(len(x)) < 3, np.nan, 0.0)

    monkeypatch.setattr(TargetScores, "log_prob", log_prob)
    found = witness.divergence(*sides)
    assert found.unsolved == 6
    assert found.members is found.heldout is found.difference is None


def test_it_is_the_checkpoints_law_for_each_point_by_its_own_key(witness, sides, finished, monkeypatch):
    """On eight devices in batches of 32, the last one padded, as by a plain call: of something cheaper than the ODE."""

    def cheap(denoise_fn, schedule, x, keys, *, rtol, atol):
        assert rtol == atol == TOLERANCE
        found = denoise_fn(x, jnp.full(len(x), 20.5)).sum(axis=(1, 2, 3))
        return likelihood.Likelihood(found + jax.vmap(jax.random.normal)(keys), jnp.zeros(len(x), jnp.int32))

    monkeypatch.setattr(likelihood, "ode_log_likelihood", cheap)
    monkeypatch.setattr(target_scores, "_program", target_scores._program.__wrapped__)  # neither finds nor leaves any
    settings = from_config(saved_config.saved_config(finished))
    x = pixel_range.to_float(sides[0][:34])
    unet = builders.build_network(settings)
    params = stage_inputs.load_target(settings, finished).trees["ema"]
    base = random_streams.stream_key(settings, "divergence/members")

    @jax.jit
    def plain(params, base, x):
        keys = sample_keys(base, jnp.arange(34, dtype=jnp.uint32))
        denoise = functools.partial(unet.apply, {"params": params})
        return cheap(denoise, None, x, keys, rtol=TOLERANCE, atol=TOLERANCE).log_prob

    direct = plain(params, base, x)
    np.testing.assert_allclose(witness.log_prob(x, "divergence/members"), direct, rtol=1e-4, atol=1e-4)
    # Of a model in half precision, whose rounding a solver could not stand, too.
    half = dataclasses.replace(settings, model=dataclasses.replace(settings.model, dtype="bfloat16"))
    other = stage_inputs.load_target_scores(settings, finished)
    other._settings = half  # from the start, the checkpoint would be another model's
    np.testing.assert_allclose(other.log_prob(x, "divergence/members"), direct, rtol=1e-4, atol=1e-4)


def test_the_losses_of_both_sides_are_their_own(witness, sides, monkeypatch):
    monkeypatch.setattr(TargetScores, "mean_loss", lambda self, images: float(images.mean()))
    found = witness.describe(*sides)
    expected = tuple(float(images.mean()) for images in sides)
    assert expected[0] != expected[1]
    assert (found.denoising_loss_members, found.denoising_loss_heldout) == expected
