"""Codes are the nearest; latents are scaled and shifted; one initialisation makes the parameters of all parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models import autoencoders
from side_jax.models.autoencoders import Autoencoder, Codebook
from side_jax.models.latent import Latent
from side_jax.models.unet import UNet

NET = UNet(
    out_channels=3,
    block_out_channels=(4,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    attention_head_dim=None,
    norm_num_groups=2,
)
AUTOENCODER = Autoencoder(
    channels=1,
    latent_channels=3,
    block_out_channels=(4, 6),
    encoder_layers=(1, 2),
    decoder_layers=(2, 1),
    encoder_attention=(False, True),
    decoder_attention=(True, False),
    encoder_middle="plain",
    decoder_middle="",
    encoded_channels=4,
    decoded_channels=5,
    codes=7,
    norm_num_groups=2,
)


@pytest.mark.parametrize("most", [2**22, 70])
def test_latents_become_the_nearest_codes(monkeypatch, most):
    """All at once, or ten at a time, whose number does not divide theirs."""
    monkeypatch.setattr(autoencoders, "_MOST_DISTANCES", most)
    rng = np.random.default_rng(0)
    codes, z = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 3), (2, 4, 6, 3)))
    distances = np.square(z[..., None, :] - codes).sum(-1)
    found = jax.jit(Codebook(7, 3).apply)({"params": {"embedding": {"embedding": codes}}}, z)
    np.testing.assert_array_equal(found, codes[distances.argmin(-1)])


def test_one_initialisation_makes_all_parts():
    module = Latent(net=NET, autoencoder=AUTOENCODER, scaling_factor=0.5, shift_factor=0.1)
    x, t = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t)["params"]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    assert set(params) == {"net", "autoencoder"}
    assert set(params["autoencoder"]) == {"encoder", "decoder", "quant_conv", "post_quant_conv", "quantize"}
    assert set(params["autoencoder"]["encoder"]) == {
        *("conv_in", "down_blocks_0", "down_blocks_1", "mid_block", "conv_norm_out", "conv_out")
    }
    assert "mid_block" not in params["autoencoder"]["decoder"]
    alone = jax.eval_shape(NET.init, jax.random.key(0), x, t)["params"]
    assert jax.tree.map(jnp.shape, params["net"]) == jax.tree.map(jnp.shape, alone)

    @jax.jit
    def run(params, images, z):
        variables = {"params": params}
        encoded = module.apply(variables, images, method="encode")
        return encoded, module.apply(variables, z, method="decode"), module.apply(variables, z, t)

    encoded, decoded, predicted = run(params, jnp.ones((2, 8, 8, 1)), x)
    assert [value.shape for value in (encoded, decoded, predicted)] == [(2, 4, 4, 3), (1, 8, 8, 1), (1, 4, 4, 3)]
    assert (module.factor, module.latent_channels) == (2, 3)


class Toy:
    """An autoencoder whose latents are 3 x images + 2."""

    def encode(self, images):
        return 3.0 * images + 2.0

    def decode(self, z):
        return (z - 2.0) / 3.0


@pytest.mark.parametrize("unit", [False, True])
def test_latents_are_shifted_and_scaled_and_images_clipped(unit):
    module = Latent(net=None, autoencoder=Toy(), scaling_factor=0.5, shift_factor=2.0, unit_pixels=unit)
    images = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 2, 3, 1)
    z = module.apply({}, images, method="encode")
    np.testing.assert_allclose(z, 1.5 * ((images + 1) / 2 if unit else images), atol=1e-6)
    np.testing.assert_allclose(module.apply({}, z, method="decode"), images, atol=1e-6)
    np.testing.assert_array_equal(module.apply({}, jnp.full((1, 2, 3, 1), 9.0), method="decode"), 1.0)
    np.testing.assert_array_equal(module.apply({}, jnp.full((1, 2, 3, 1), -9.0), method="decode"), -1.0)
