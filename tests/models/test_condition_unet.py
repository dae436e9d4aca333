"""The text-conditional U-Net, its prompts as labels, and the text encoder: shapes, start, and what depends on what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.prompted import Prompted
from side_jax.models.text_encoder import TextEncoder

NET = ConditionUNet(
    out_channels=2,
    block_out_channels=(4, 8),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    num_heads=(2, 4),
    transformer_layers_per_block=(1, 1),
    layers_per_block=1,
    norm_num_groups=2,
)
PROMPTED = Prompted(net=NET, num_labels=2, tokens=3, width=5)
ENCODER = TextEncoder(vocabulary=11, positions=6, width=4, num_layers=2, num_heads=2, mlp_width=8)
RNG = np.random.default_rng(1)
X, T = RNG.normal(size=(4, 4, 4, 2)).astype(np.float32), np.asarray([0, 7, 50, 9], np.int32)
TOKENS = RNG.integers(0, 11, (2, 6)).astype(np.int32)


def noise(module, *args):
    """Parameters of noise, with scales about 1; from NumPy, since initial ones take long to compile."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return np.asarray((path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


@pytest.fixture(scope="module")
def params():
    return noise(PROMPTED, X, T)


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, *args, **options):
    return module.apply({"params": params}, *args, **options)


def predicted(params, labels, x=X, t=T):
    return np.asarray(run(PROMPTED, params, x, t, labels=np.asarray(labels, np.int32)))


def test_the_network_starts_at_zero_and_keeps_the_shape():
    context = np.ones((4, 3, 5), np.float32)
    out, start = jax.jit(NET.init_with_output)(jax.random.key(0, impl="rbg"), X, T, context)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.zeros_like(X))
    deep = NET.clone(transformer_layers_per_block=(3, 2))
    shapes = jax.eval_shape(deep.init, jax.random.key(0), X, T, context)["params"]
    assert len([name for name in shapes["down_blocks_0"]["attentions_0"] if "transformer" in name]) == 3
    assert len([name for name in shapes["mid_block"]["attentions_0"] if "transformer" in name]) == 2
    block = start["params"]["up_blocks_1"]["attentions_1"]["transformer_blocks_0"]
    assert block["attn2"]["to_k"]["kernel"].shape == (5, 4)
    assert block["ff"]["net_0"]["proj"]["kernel"].shape == (4, 32)


@pytest.mark.parametrize(
    ("heads", "width", "count"), [((8,) * 4, 768, 859_520_964), ((5, 10, 20, 20), 1024, 865_910_724)]
)
def test_stable_diffusion_has_its_published_size(heads, width, count):
    """Of versions 1 and 2, and of the text encoder of the first."""
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)}
    kinds["up_block_types"] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    channels = {"out_channels": 4, "block_out_channels": (320, 640, 1280, 1280)}
    net = ConditionUNet(**channels, **kinds, num_heads=heads, transformer_layers_per_block=(1,) * 4)
    assert size(net, np.zeros((1, 8, 8, 4), np.float32), T[:1], np.zeros((1, 1, width), np.float32)) == count
    clip = {"vocabulary": 49408, "positions": 77, "width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072}
    assert size(TextEncoder(**clip), TOKENS) == 123_060_480


def size(module, *args):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_a_label_is_its_row_and_none_is_the_last(params):
    labels = np.asarray([1, 0, -1, 1])
    ours = predicted(params, labels)
    context = params["prompt_embedding"][[1, 0, 2, 1]]
    np.testing.assert_allclose(ours, run(NET, params["net"], X, T, context), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(PROMPTED, params, X, T), predicted(params, [-1] * 4))
    moved = np.abs(predicted(params, [0, 1, 0, 1]) - ours).max(axis=(1, 2, 3))
    assert moved[:3].min() > 1e-3
    assert moved[3] == 0


def test_each_image_is_treated_alone(params):
    whole = predicted(params, [1, 0, -1, 1])
    others, later = X.copy(), T.copy()
    others[[0, 3]], later[[0, 3]] = 3 * X[[3, 0]], 99
    np.testing.assert_allclose(predicted(params, [0, 0, -1, -1], others, later)[1:3], whole[1:3], rtol=1e-4, atol=1e-6)


def test_the_order_of_the_context_does_not_matter(params):
    """Attention to a set: only what encodes a text knows its order."""
    context = np.random.default_rng(2).normal(size=(4, 3, 5)).astype(np.float32)
    out, turned = (run(NET, params["net"], X, T, given) for given in (context, context[:, ::-1]))
    np.testing.assert_allclose(turned, out, rtol=1e-4, atol=1e-5)


def test_rematerialisation_is_of_each_block(params):
    context = params["prompt_embedding"][[0, 1, 2, 0]]
    program = str(jax.make_jaxpr(NET.clone(remat=True).apply)({"params": params["net"]}, X, T, context))
    assert program.count("remat") == 8 + 4  # residual blocks and transformers


def test_bfloat16_is_close_and_keeps_its_parameters(params):
    context, half = params["prompt_embedding"][[0, 1, 2, 0]], NET.clone(dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # flax's own layers rely on it
        shapes = jax.eval_shape(half.init, jax.random.key(0), X, T, context)["params"]
        out = np.asarray(run(half, params["net"], X, T, context))
    whole = np.asarray(run(NET, params["net"], X, T, context))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert out.dtype == np.float32
    assert 0 < np.abs(out - whole).max() < 0.05 * np.abs(whole).max()


def test_derivatives_are_slopes(params):
    """Along x, as the likelihood takes them, and back, as guidance does; the context has none."""
    context = params["prompt_embedding"][[0, 1, 2, 0]]
    along = np.random.default_rng(4).normal(size=X.shape).astype(np.float32)

    @jax.jit
    def slopes(x):
        def f(x):
            return NET.apply({"params": params["net"]}, x, T, context)

        forward = jax.jvp(f, (x,), (along,))[1]
        (back,) = jax.vjp(f, x)[1](along)
        step = 1e-2 * along
        return forward, (f(x + step) - f(x - step)) / 2e-2, (back * along).sum(), (forward * along).sum()

    forward, measured, back, there = slopes(X)
    np.testing.assert_allclose(forward, measured, atol=2e-2 * np.abs(measured).max())
    np.testing.assert_allclose(back, there, rtol=1e-3)


def test_channels_that_can_not_be_cut_into_heads_are_named():
    with pytest.raises(ValueError, match="4 channels can't be cut into 3 heads"):
        jax.eval_shape(NET.clone(num_heads=(3, 4)).init, jax.random.key(0), X, T, np.ones((4, 3, 5), np.float32))


def test_a_token_sees_itself_and_those_before():
    params = noise(ENCODER, TOKENS)
    whole = np.asarray(run(ENCODER, params, TOKENS))
    assert (whole.shape, whole.dtype) == ((2, 6, 4), np.float32)
    changed = TOKENS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    moved = np.abs(np.asarray(run(ENCODER, params, changed)) - whole).max(axis=(0, 2))
    assert (moved[:3] == 0).all()
    assert moved[3:].min() > 1e-3
    np.testing.assert_allclose(run(ENCODER, params, TOKENS[:, :4]), whole[:, :4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_layer_without_attention_by_hand(activation):
    """One token whose attention and final norm are neutral: the sum of its embeddings and of the perceptron."""
    encoder = ENCODER.clone(num_layers=1, width=2, mlp_width=1, num_heads=1, activation=activation)
    params = jax.tree.map(np.zeros_like, noise(encoder, TOKENS))
    params["embeddings"]["token_embedding"]["embedding"][3] = [1, 4]
    params["embeddings"]["position_embedding"]["embedding"][0] = [1, 2]
    layer = params["encoder"]["layers_0"]
    layer["layer_norm2"]["scale"][:] = 1
    layer["mlp"]["fc1"]["kernel"][:] = [[0], [2]]  # the norm of (2, 6) is (-1, 1)
    layer["mlp"]["fc2"]["kernel"][:] = [[10, 0]]
    params["final_layer_norm"]["scale"][:] = 1
    slope = 1 / (1 + np.exp(-1.702 * 2)) if activation == "quick_gelu" else 0.977249868
    hidden = np.asarray([2 + 10 * 2 * slope, 6])
    expected = np.sign(hidden - hidden.mean())
    out = run(encoder, params, np.asarray([[3]], np.int32))
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-4)
    # The norm hides the size, so look in front of it.
    _, state = encoder.apply(
        {"params": params}, np.asarray([[3]], np.int32), capture_intermediates=True, mutable=["intermediates"]
    )
    np.testing.assert_allclose(state["intermediates"]["encoder"]["__call__"][0][0, 0], hidden, rtol=1e-5)
