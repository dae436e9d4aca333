"""Mixed labels: their law in closed form and by a test, labels themselves, and the networks that are asked by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from side_jax.models import label_table
from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.continuous import Flow
from side_jax.models.latent import Latent
from side_jax.models.prompted import Prompted
from side_jax.models.unet import UNet

LABELS = 3
UNET = UNet(
    out_channels=1,
    layers_per_block=1,
    norm_num_groups=4,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    num_labels=LABELS,
)
TEXT = ConditionUNet(
    out_channels=1,
    layers_per_block=1,
    norm_num_groups=4,
    block_out_channels=(8,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    num_heads=(2,),
    transformer_layers_per_block=(1,),
)
NETWORKS = {
    "with a label for none": UNET,
    "always a label": UNET.clone(null_label=False),
    "in a wrapper": Flow(net=UNET, sigma_min=0.01, sigma_max=10.0, num_timesteps=100),
    "prompts of latents": Latent(net=Prompted(net=TEXT, num_labels=LABELS, tokens=4, width=8), autoencoder=None),
}
X, T = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 1)), jnp.float32), jnp.asarray([3, 50, 99, 20, 7])
SHAPES = [(7, 4), (3, 16), (5, 2, 3)]  # more labels than dimensions, fewer, and prompts of two tokens


def table(shape, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * 3 + rng.normal(size=shape[1:]), jnp.float32)


def moments(rows):
    """Mean and covariance of a table's rows, over their number, as vectors."""
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    return flat.mean(axis=0), np.cov(flat.T, bias=True).reshape(flat.shape[1], -1)


def mixed(rows, genomes):
    found = label_table.mixed(rows, jnp.asarray(genomes, jnp.float32))
    return np.asarray(found, np.float64).reshape(len(genomes), -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_map_is_affine_with_the_mean_and_a_root_of_the_covariance(shape):
    """embedding = mean + L g with L L^T the covariance, so that the law of g ~ N(0, I) is known."""
    rows, (mean, covariance) = table(shape), moments(table(shape))
    np.testing.assert_allclose(mixed(rows, np.zeros((1, shape[0])))[0], mean, atol=1e-5)
    root = mixed(rows, np.eye(shape[0])).T - mean[:, None]
    np.testing.assert_allclose(root @ root.T, covariance, atol=1e-4)
    genomes = np.random.default_rng(2).normal(size=(6, shape[0]))
    np.testing.assert_allclose(mixed(rows, genomes), mean + genomes @ root.T, atol=1e-4)
    np.testing.assert_allclose(mixed(rows, genomes + 2.5), mixed(rows, genomes), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_label_is_a_genome_of_the_length_of_the_others(shape):
    """sqrt(C) times a unit vector is that label's row up to rounding, and as long as g ~ N(0, I) in the mean square."""
    rows = table(shape)
    genomes = label_table.of_labels(jnp.arange(shape[0]), shape[0])
    np.testing.assert_allclose(label_table.mixed(rows, genomes), rows, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(np.square(genomes).sum(axis=1), shape[0], rtol=1e-6)
    # Of labels drawn at random the covariance is I, but for the direction of all numbers alike, which changes nothing.
    expected = np.eye(shape[0]) - 1 / shape[0]
    np.testing.assert_allclose(np.cov(np.transpose(genomes), bias=True), expected, atol=1e-6)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network and random parameters of it; those of Latent without its autoencoder."""
    own = NETWORKS[request.param]
    net = own.net if isinstance(own, Latent) else own
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return own, {"net": params} if isinstance(own, Latent) else params


def test_a_labels_genome_gives_what_asking_for_the_label_gives(network):
    """Where each image of the batch has a label of its own."""
    own, params = network
    labels = np.asarray([2, 0, 1, 1, 2])
    genomes = label_table.of_labels(jnp.asarray(labels), LABELS)
    expected = own.apply({"params": params}, X, T, labels=jnp.asarray(labels))
    np.testing.assert_allclose(label_table.predict(own, params, X, T, genomes), expected, rtol=1e-6, atol=2e-6)
    assert np.abs(expected - own.apply({"params": params}, X, T, labels=jnp.asarray(labels[::-1]))).max() > 1e-3


def test_a_mixture_is_of_its_image_alone(network):
    """Whatever is beside it in the batch; and it is neither a label nor none."""
    own, params = network
    genomes = np.random.default_rng(4).normal(size=(5, LABELS)).astype(np.float32)
    whole = label_table.predict(own, params, X, T, genomes)
    for i in (0, 3):
        alone = label_table.predict(own, params, X[i : i + 1], T[i : i + 1], genomes[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-5)
    plain = own.apply({"params": params}, X, T, labels=jnp.full(5, -1))
    others = [plain, *(own.apply({"params": params}, X, T, labels=jnp.full(5, k)) for k in range(LABELS))]
    assert min(np.abs(whole - other).max(axis=(1, 2, 3)).min() for other in others) > 1e-4


def test_drawn_genomes_have_the_law_of_the_table():
    """Whitened by the table's own moments they are N(0, I); by 15 tests at 0.001 / 15, a false alarm in 1,000 runs."""
    rows = table((5, 8))
    (mean, covariance), count = moments(rows), 4000
    genomes = np.random.default_rng(5).normal(size=(count, 5))
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-6 * values[-1]
    assert kept.sum() == 4  # C - 1
    z = (mixed(rows, genomes) - mean) @ vectors[:, kept] / np.sqrt(values[kept])
    pairs = [z[:, i] * z[:, j] for i in range(4) for j in range(i)]
    found = [stats.kstest(column, "norm").pvalue for column in z.T]
    found += [stats.kstest(np.square(z).sum(axis=1), stats.chi2(4).cdf).pvalue]
    found += [2 * stats.norm.sf(abs(pair.mean()) * np.sqrt(count)) for pair in pairs]  # of variance 1
    found += [2 * stats.norm.sf(abs(np.square(column).mean() - 1) * np.sqrt(count / 2)) for column in z.T]
    assert len(found) == 15
    assert min(found) > 0.001 / len(found)
