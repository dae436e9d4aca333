"""The training loop's parts against closed forms: schedules, batches, accumulation, devices, divergence."""

import dataclasses
import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.devices import placement
from side_jax.diffusion import pixel_range
from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.settings import Fit
from side_jax.training import trainer
from side_jax.training.losses import build_loss, dpm_loss
from side_jax.workdir.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's Adam relies on implicit promotion (decay ** count)."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_every_epoch_is_a_fresh_shuffle_without_its_ragged_end():
    epochs = [[trainer.batch_indices(0, step, 10, 3) for step in range(3 * e, 3 * e + 3)] for e in range(20)]
    for epoch in epochs:
        assert len(set(np.concatenate(epoch))) == 9
    assert len({tuple(np.concatenate(epoch)) for epoch in epochs}) == 20
    assert set(np.concatenate([np.concatenate(epoch) for epoch in epochs])) == set(range(10))
    np.testing.assert_array_equal(trainer.batch_indices(0, 7, 10, 3), trainer.batch_indices(0, 7, 10, 3))


def test_ema_warms_up_to_its_decay():
    decays = jax.jit(lambda steps: trainer.ema_decay(steps, 0.99))(np.asarray([0, 10, 10_000], np.int32))
    np.testing.assert_allclose(decays, [0.1, 11 / 20, 0.99], rtol=1e-6)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", [0, 1, 1, 1]), ("linear", [0, 1, 0.5, 0]), ("cosine", [0, 1, 0.5, 0])],
)
def test_learning_rate_warms_up_and_decays(decay, expected):
    fit = Fit(num_steps=100, learning_rate=2.0, warmup_steps=20, decay=decay)
    at_once = Fit(num_steps=100, learning_rate=2.0, decay=decay)
    both = jax.jit(jax.vmap(lambda step: (trainer.learning_rate(fit)(step), trainer.learning_rate(at_once)(step))))
    rates, without = both(np.asarray([0, 10, 20, 60, 100]))
    start, *rest = expected
    np.testing.assert_allclose(rates, 2 * np.asarray([start, 0.5, *rest]), atol=1e-6)
    assert without[0] == pytest.approx(2.0)


def square_loss(params, batch, keys, key):
    """(p - x)^2 / 2 with one example each."""
    losses = 0.5 * jnp.square(params["p"] - batch[0])
    return losses.mean(), ({"loss": (losses.sum(), jnp.float32(losses.size))}, {})


def test_one_step_of_gradient_descent_by_hand():
    """Loss (p - 3)^2 / 2 at p = 1 with rate 0.5: p becomes 2, and the EMA 0.1 * 1 + 0.9 * 2."""
    optimizer, fit = optax.sgd(0.5), Fit(ema_decay=0.99)

    @jax.jit
    def step():
        params = {"p": jnp.float32(1.0)}
        zero = (jnp.float32(0), jnp.float32(0))
        state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
        state["totals"] = {"loss": zero, "gradient_norm": zero}
        batch = (jnp.full((4,), 3.0), jnp.arange(4, dtype=jnp.uint32))
        sums = trainer.gradients(square_loss, state, batch, jax.random.key(0))
        return trainer.update(optimizer, fit, state, params, sums)

    state, ema = step()
    assert float(state["params"]["p"]) == 2.0
    assert int(state["step"]) == 1
    np.testing.assert_allclose(ema["p"], 1.9, rtol=1e-6)
    np.testing.assert_allclose(state["totals"]["loss"], [8.0, 4.0])
    np.testing.assert_allclose(state["totals"]["gradient_norm"], [2.0, 1.0])


def shifted_loss(carry, params, batch, keys, key):
    """(p + m - x)^2 / 2, where m is a running statistic; carry makes its next value from the batch, or nothing."""
    losses = 0.5 * jnp.square(params["p"] + params["batch_stats"]["m"] - batch[0])
    return losses.mean(), ({"loss": (losses.sum(), jnp.float32(losses.size))}, carry(batch[0]))


@pytest.mark.parametrize(
    ("carry", "expected"),
    [(lambda x: {}, 3.0), (lambda x: {"batch_stats": {"m": jnp.square(x).max()}}, (7.0**2 + 15.0**2) / 2)],
    ids=["nothing", "a maximum"],
)
def test_running_statistics_are_carried_and_not_trained(carry, expected):
    """Neither gradients nor weight decay move them, nor do they count in the norm; parts are averaged; the EMA follows.

    At p + m = 5 the mean of x, 7.5, gives the gradient -2.5, while p's first step has the size of the learning rate.
    """
    fit = Fit(batch_size=16, accumulate=2, learning_rate=0.1, weight_decay=0.5, num_steps=2)
    examples = np.arange(16, dtype=np.float32)
    stepper = trainer.Stepper(
        functools.partial(shifted_loss, carry),
        lambda: {"p": jnp.float32(2.0), "batch_stats": {"m": jnp.float32(3.0)}},
        fit,
        (examples[:1],),
    )
    state, ema = stepper.initial()
    assert optax.tree.get(state["opt_state"], "mu").keys() == {"p"}
    parts = stepper.load(lambda chosen: (examples[chosen],), np.arange(16))
    state, ema = stepper(state, ema, parts, stepper.key(0))
    assert float(state["params"]["batch_stats"]["m"]) == expected
    np.testing.assert_allclose(ema["batch_stats"]["m"], 0.1 * 3 + 0.9 * expected, rtol=1e-6)
    np.testing.assert_allclose(state["params"]["p"], 2 + 0.1 - 0.1 * 0.5 * 2, rtol=1e-6)
    np.testing.assert_allclose(state["totals"]["gradient_norm"], [2.5, 1.0], rtol=1e-6)


def test_warm_up_starts_small():
    """Adam's first step has the size of the learning rate; after one step of a warm-up that is (nearly) nothing."""

    @jax.jit
    def first_updates():
        params = {"p": jnp.float32(1.0)}
        optimizers = [trainer.make_optimizer(Fit(learning_rate=0.1, warmup_steps=warmup)) for warmup in (0, 100)]
        return [o.update({"p": jnp.float32(0.5)}, o.init(params), params)[0]["p"] for o in optimizers]

    np.testing.assert_allclose(first_updates(), [-0.1, 0.0], atol=1e-4)


def fit_line(tmp_path, examples, **changes):
    """Trains {"p"} on square_loss; returns (averaged parameters, last step, rows of metrics.jsonl)."""
    options = {"num_steps": 6, "batch_size": 8, "log_every": 3, "checkpoint_every": 100, "learning_rate": 0.1}
    ema, step = trainer.run(
        loss_fn=square_loss,
        init_fn=lambda: {"p": jnp.float32(1.0)},
        fetch=lambda chosen: (examples[chosen],),
        num_examples=len(examples),
        fit=Fit(**(options | changes.pop("fit", {}))),
        seed=0,
        directory=tmp_path,
        checkpoints=tmp_path / "checkpoints",
        meta={"fingerprint": "f"},
        description="fit",
        **changes,
    )
    return ema, step, [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_what_is_logged_is_the_mean_of_all_steps_since(tmp_path):
    """With a rate of nearly zero p stays 1, so the loss is the mean over the examples of all the steps."""
    examples = np.arange(24, dtype=np.float32)  # three batches are the whole set
    _, step, rows = fit_line(tmp_path, examples, fit={"learning_rate": 1e-12})
    assert step == 6
    assert [row["step"] for row in rows] == [3, 6]
    np.testing.assert_allclose([row["loss"] for row in rows], 0.5 * np.square(examples - 1).mean(), rtol=1e-5)


def test_training_gives_back_and_saves_the_average(tmp_path):
    """Of the parameters after each step, which one step after the other gives, too."""
    examples = np.arange(24, dtype=np.float32)
    ema, *_ = fit_line(tmp_path, examples)
    fit = Fit(num_steps=6, batch_size=8, learning_rate=0.1)
    stepper = trainer.Stepper(square_loss, lambda: {"p": jnp.float32(1.0)}, fit, (examples[:1],))
    state, average = stepper.initial()
    for i in range(6):
        parts = stepper.load(lambda chosen: (examples[chosen],), trainer.batch_indices(0, i, 24, 8))
        state, average = stepper(state, average, parts, stepper.key(0))
    assert abs(float(average["p"]) - float(state["params"]["p"])) > 0.01
    np.testing.assert_allclose(ema["p"], average["p"], rtol=1e-6)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as store:
        saved = store.restore(fingerprint="f", **stepper.abstract()).trees
    np.testing.assert_allclose(saved["ema"]["p"], average["p"], rtol=1e-6)
    np.testing.assert_allclose(saved["state"]["params"]["p"], state["params"]["p"], rtol=1e-6)


def test_a_single_bad_step_is_not_missed(tmp_path):
    """One infinite example in one of the steps before the log; the range is named, and nothing bad is saved."""
    examples = np.arange(48, dtype=np.float32)
    examples[trainer.batch_indices(0, 4, 48, 8)[2]] = np.inf
    with pytest.raises(InputError, match="between steps 3 and 6; lower the learning_rate"):
        fit_line(tmp_path, examples)
    with Checkpoints(tmp_path / "checkpoints") as store:
        assert store.latest_step() is None


def test_watch_stops_training_and_is_asked_again_after_a_restart(tmp_path):
    asked = []

    def watch(step, params):
        asked.append(step)
        return step == 4

    examples = np.arange(24, dtype=np.float32)
    first, step, rows = fit_line(tmp_path, examples, watch=watch, watch_every=2)
    assert (step, asked, rows[-1]["step"]) == (4, [2, 4], 4)
    again, step, _ = fit_line(tmp_path, examples, watch=watch, watch_every=2)
    assert (step, asked) == (4, [2, 4, 4])
    np.testing.assert_array_equal(again["p"], first["p"])


IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
LABELS = np.arange(64, dtype=np.int32) % 4
STEPS = 15


class OneConvolution(nn.Module):
    """Stands in for the U-Net, which takes much longer to compile."""

    @nn.compact
    def __call__(self, x, t, deterministic=True, labels=None):
        row = jnp.full(len(x), 4) if labels is None else jnp.where(labels < 0, 4, labels)
        h = nn.Conv(8, (3, 3), name="conv_in")(x) + nn.Dense(8)(t[:, None] / 1000)[:, None, None]
        h = h + nn.Embed(5, 8, name="class_embedding")(row)[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3), name="conv_out")(nn.silu(h))


@functools.cache
def small_dpm(network):
    """(settings, loss, initial parameters) of a tiny U-Net or its stand-in, on digits with labels."""
    config = default_config()
    config.condition.update(labels="random", num_labels=4)
    config.model.update(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    config.model.update(norm_num_groups=4, layers_per_block=1)
    config.train.update(batch_size=32, log_every=20, learning_rate=1e-4)
    settings = from_config(config)
    unet = network() if network else builders.build_network(settings)
    loss = build_loss(settings, unet, builders.build_schedule(settings))
    return settings, loss, jax.device_get(builders.init_fn(unet, settings, 0)())


@functools.cache
def trained(devices, accumulate=1, network=None):
    """(stepper, {state, ema}) after STEPS steps on random images and labels, on the first devices."""
    settings, loss, initial = small_dpm(network)
    fit = dataclasses.replace(settings.train, accumulate=accumulate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "training_mesh", lambda: Mesh(np.asarray(jax.devices()[:devices]), ("batch",)))
        stepper = trainer.Stepper(loss, lambda: initial, fit, (IMAGES[:1], LABELS[:1]))
    state, ema = stepper.initial()
    key = stepper.key(0)
    for step in range(STEPS):
        chosen = trainer.batch_indices(0, step, len(IMAGES), 32)
        state, ema = stepper(state, ema, stepper.load(lambda ids: (IMAGES[ids], LABELS[ids]), chosen), key)
        jax.block_until_ready(state)  # XLA may abort with many collectives of eight devices in flight on two cores
    return stepper, {"state": state, "ema": ema}


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), jax.device_get(a), jax.device_get(b))


def test_eight_devices_train_like_one_and_their_checkpoint_restores_on_one(tmp_path):
    """Losses of every timestep included; Adam amplifies rounding, hence the tolerance of the weights."""
    _, eight = trained(8)
    with Checkpoints(tmp_path / "checkpoints") as store:
        store.save(STEPS, **eight, meta={"fingerprint": "f"})
    assert len(jax.tree.leaves(eight)[0].sharding.device_set) == 8
    stepper, one = trained(1)
    close(one["ema"], eight["ema"], rtol=1e-3, atol=2e-5)
    close(one["state"]["totals"], eight["state"]["totals"], rtol=1e-3)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as store:
        trees = store.restore(fingerprint="f", **stepper.abstract()).trees
    assert len(jax.tree.leaves(trees)[0].sharding.device_set) == 1
    close(trees, eight, rtol=0)


def test_labels_are_left_out_alike_on_any_number_of_devices():
    """Which are depends on the images' keys alone: with others left out, the table of labels would be another one."""
    (_, eight), (_, one) = trained(8), trained(1)
    close(one["ema"]["class_embedding"], eight["ema"]["class_embedding"], rtol=1e-3, atol=2e-5)
    close(one["state"]["totals"]["loss"], eight["state"]["totals"]["loss"], rtol=1e-4)
    after, before = (tree["class_embedding"]["embedding"] for tree in (one["state"]["params"], small_dpm(None)[2]))
    assert (np.abs(np.asarray(after) - before).max(axis=1) > 1e-4).all()  # of every label, and of none


def test_accumulating_gradients_changes_nothing_but_rounding():
    (_, whole), (_, parts) = (trained(8, accumulate, OneConvolution) for accumulate in (1, 4))
    close(parts["ema"], whole["ema"], rtol=1e-3, atol=2e-5)
    close(parts["state"]["totals"]["loss"], whole["state"]["totals"]["loss"], rtol=1e-4)
    close(parts["state"]["totals"], whole["state"]["totals"], rtol=1e-3)


def test_the_profile_adds_up_to_the_loss():
    totals = jax.device_get(trained(1)[1]["state"]["totals"])
    total, count = totals["loss_by_timestep"]
    assert total.shape == count.shape == (10,)
    np.testing.assert_allclose(total.sum(), totals["loss"][0], rtol=1e-5)
    assert count.sum() == totals["loss"][1] == STEPS * 32


@functools.cache
def shown(flip):
    """A compiled function: what the network is shown, (x, t, labels), of equal images with the keys 0, 1, ... ."""

    def show(image, labels, share):
        seen = []

        def spy(variables, x, t, deterministic, labels, rngs):
            seen.append((x, t, labels))
            return jnp.zeros_like(x)

        batch = (jnp.broadcast_to(image, (COUNT, *image.shape)), *labels)
        keys = jax.random.split(jax.random.key(0), COUNT)
        unet = types.SimpleNamespace(apply=spy)
        dpm_loss(unet, make_schedule("linear", 1000), flip, {}, batch, keys, jax.random.key(1), label_dropout=share)
        return seen[0]

    return jax.jit(show)


COUNT = 4096


def test_labels_are_left_out_for_their_share_of_images():
    """Independently of what else an image's key draws: the flip, the noise and the timestep stay as they were."""
    labels = np.arange(COUNT, dtype=np.int32) % 7
    given = (((), 0.2), ((labels,), 0.2), ((labels,), 0.0))
    plain, some, none = (jax.device_get(shown(True)(IMAGES[0], *rest)) for rest in given)
    assert plain[2] is None
    np.testing.assert_array_equal(none[2], labels)
    hidden = some[2] == -1
    np.testing.assert_array_equal(some[2][~hidden], labels[~hidden])
    np.testing.assert_allclose(hidden.mean(), 0.2, atol=4 * np.sqrt(0.2 * 0.8 / COUNT))
    for i in (0, 1):
        np.testing.assert_array_equal(some[i], plain[i])
    turned = np.abs(plain[0] - shown(False)(IMAGES[0], (), 0.2)[0]).max(axis=(1, 2, 3)) > 1e-5
    t = some[1]
    np.testing.assert_allclose(hidden[turned].mean(), 0.2, atol=4 * np.sqrt(0.2 * 0.8 / (COUNT / 2)))
    np.testing.assert_allclose(hidden[t < np.median(t)].mean(), 0.2, atol=4 * np.sqrt(0.2 * 0.8 / (COUNT / 2)))


def test_the_flip_mirrors_about_half_of_the_images_and_is_off_by_default():
    """The noise is the same, so x_t differs where its image came mirrored."""
    plain, mirrored = (np.asarray(shown(flip)(IMAGES[0], (), 0.0)[0]) for flip in (False, True))
    signal = make_schedule("linear", 1000).alpha_bar[np.asarray(shown(False)(IMAGES[0], (), 0.0)[1])] ** 0.5
    image = pixel_range.to_float(IMAGES[0])
    by_hand = signal[:, None, None, None] * (image[:, ::-1] - image)[None]
    turned = np.abs(mirrored - plain).max(axis=(1, 2, 3)) > 1e-5
    np.testing.assert_allclose(mirrored - plain, by_hand * turned[:, None, None, None], atol=1e-5)
    np.testing.assert_allclose(turned.mean(), 0.5, atol=4 * np.sqrt(0.25 / COUNT))
    assert default_config().train.horizontal_flip is False
