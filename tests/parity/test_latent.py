"""Autoencoders and whole latent pipelines against diffusers and MONAI, on random weights and through our readers."""

import warnings

import foreign
import jax
import numpy as np
import pytest

from parity.theirs import (
    DDIMScheduler,
    UNet2DModel,
    apply,
    diffusers,
    nchw,
    nhwc,
    random_numbers,
    relative_error,
    torch,
)
from side_jax.diffusion import sampler
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.targets import networks
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

monai = pytest.importorskip("monai.networks.nets")

STEPS = 20
LDM = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}
SMALL = {"norm_num_groups": 4, "layers_per_block": 1}
PLAIN = ("DownEncoderBlock2D", "UpDecoderBlock2D")
ATTENDED = ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")


def levels(*kinds):
    """Block types of the levels of an autoencoder, from the images' resolution to the latents'."""
    return {
        "down_block_types": tuple(down for down, _ in kinds),
        "up_block_types": tuple(up for _, up in kinds[::-1]),
    }


KL = {
    "of three levels": dict(
        **SMALL | {"layers_per_block": 2},
        **levels(PLAIN, PLAIN, PLAIN),
        block_out_channels=(8, 16, 24),
        scaling_factor=0.7,
        shift_factor=0.3,
    ),
    "without convolutions around latents": dict(
        **SMALL,
        **levels(PLAIN, PLAIN),
        block_out_channels=(8, 16),
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
    "with attention": dict(**SMALL, **levels(PLAIN, ATTENDED), block_out_channels=(8, 12), act_fn="swish"),
}
VQ = {
    "of three levels": dict(
        **SMALL | {"layers_per_block": 2},
        **levels(PLAIN, PLAIN, PLAIN),
        block_out_channels=(8, 16, 24),
        num_vq_embeddings=40,
        scaling_factor=0.6,
    ),
    "with attention and another width of codes": dict(
        **SMALL,
        **levels(ATTENDED, PLAIN),
        block_out_channels=(8, 12),
        in_channels=1,
        out_channels=1,
        num_vq_embeddings=9,
        vq_embed_dim=4,
    ),
}
MONAI = {
    "of three levels": {
        "channels": (8, 16, 24),
        "attention_levels": (False, True, True),
        "num_res_blocks": (1, 2, 1),
        "norm_num_groups": 4,
    },
    "without attention in levels": {
        "channels": (8, 16),
        "attention_levels": (False, False),
        "num_res_blocks": 2,
        "norm_num_groups": 8,
        "in_channels": 3,
        "out_channels": 3,
    },
    "without attention between levels": {
        "channels": (8, 12),
        "attention_levels": (False, True),
        "num_res_blocks": 2,
        "norm_num_groups": 4,
        "latent_channels": 2,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "use_combined_linear": True,
        "include_fc": False,
    },
}


def hints(**options):
    return Hints(target=Section(**options), diffusion=Diffusion())


def unet(channels):
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return random_numbers(UNet2DModel(**config).eval(), seed=1)


class Diffusers:
    """A pipeline's folder, read by us, and its autoencoder."""

    def __init__(self, cls, config, folder):
        self.net = random_numbers(cls(**config).eval())
        vq = cls is diffusers.VQModel
        self.unet = unet(config.get("vq_embed_dim") or self.net.config.latent_channels)
        self.scheduler = DDIMScheduler(**LDM)
        self.unet.save_pretrained(folder / "unet")
        self.net.save_pretrained(folder / ("vqvae" if vq else "vae"))
        self.scheduler.save_pretrained(folder / "scheduler")
        self.target = read_target(folder, hints())
        self.scale, self.shift = self.net.config.scaling_factor, getattr(self.net.config, "shift_factor", None) or 0.0
        assert self.target.size == (8 * self.target.network.factor,) * 2

    def encode(self, images):
        encoded = self.net.encode(nchw(images))
        mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return nhwc((mean - self.shift) * self.scale)

    def decode(self, z):
        return nhwc(self.net.decode(nchw(z) / self.scale + self.shift).sample)


class Monai:
    """A bundle's folder of MONAI, read by us, and its autoencoder; with GenerativeModels' names if `old`."""

    def __init__(self, config, folder, old):
        common = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "latent_channels": 3}
        self.net = random_numbers(monai.AutoencoderKL(**(common | config)).eval())
        channels, pixels = self.net.latent_channels, "" if old else "signed"
        common = {"spatial_dims": 2, "channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1}
        common |= {"in_channels": channels, "out_channels": channels, "norm_num_groups": 4, "num_head_channels": 8}
        diffusion = random_numbers(monai.DiffusionModelUNet(**common).eval(), seed=1)
        (folder / "models").mkdir(parents=True)
        torch.save(diffusion.state_dict(), folder / "models" / "model.pt")
        state = self.net.state_dict()
        for new, before in ((".attn.to_", ".to_"), (".attn.out_proj.", ".proj_attn."), (".postconv.", ".conv.")):
            state = {name.replace(new, before) if old else name: value for name, value in state.items()}
        torch.save(state, folder / "models" / ("model_autoencoder.pt" if old else "autoencoder.pt"))
        options = {"schedule": "scaled_linear", "head_channels": 8, "norm_groups": 4, "pixels": pixels}
        self.target = read_target(folder, hints(latent_scale=1.7, latent_groups=config["norm_num_groups"], **options))
        self.unit, self.scale = old, 1.7
        assert self.target.size is None

    def encode(self, images):
        return nhwc(self.net.encode(nchw((images + 1) / 2 if self.unit else images))[0] * self.scale)

    def decode(self, z):
        images = nhwc(self.net.decode(nchw(z) / self.scale))
        return 2 * images - 1 if self.unit else images


CASES = {
    f"AutoencoderKL {name}": lambda folder, c=c: Diffusers(diffusers.AutoencoderKL, c, folder) for name, c in KL.items()
}
CASES |= {f"VQModel {name}": lambda folder, c=c: Diffusers(diffusers.VQModel, c, folder) for name, c in VQ.items()}
CASES |= {f"MONAI {name}": lambda folder, c=c: Monai(c, folder, old=False) for name, c in MONAI.items()}
CASES["GenerativeModels"] = lambda folder: Monai(MONAI["of three levels"], folder, old=True)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_encoding_and_decoding_agree(tmp_path, name):
    case = CASES[name](tmp_path)
    target = case.target
    params, rng = target.origin.read_params(), np.random.default_rng(0)
    side = 8 * target.network.factor
    images = rng.uniform(-1, 1, (3, side, side, target.channels)).astype(np.float32)
    theirs = case.encode(images)
    assert theirs.shape == (3, *target.shape((side, side)))
    assert 0.05 < theirs.std() < 10
    assert relative_error(jax.jit(target.encode)(params, images), theirs) < 2e-5
    z = rng.standard_normal(theirs.shape).astype(np.float32) * np.float32(theirs.std()) + np.float32(theirs.mean())
    theirs = case.decode(z)
    assert relative_error(case.decode(z + theirs.std()), theirs) > 0.05  # latents matter
    assert (np.abs(theirs) < 1).mean() > 0.3
    assert relative_error(jax.jit(target.decode)(params, z), theirs.clip(-1, 1)) < 2e-5
    assert len(target.origin.weights) == 2
    assert networks.build(networks.describe(target.network)) == target.network


@pytest.mark.parametrize(
    ("cls", "config"), [("VQModel", config) for config in VQ.values()] + [("AutoencoderKL", KL["of three levels"])]
)
def test_sampling_and_decoding_agree_with_the_pipeline(tmp_path, cls, config):
    """20 steps of DDIM from the same latents; LDMPipeline decodes by any autoencoder whose latents have no shift."""
    case = Diffusers(
        getattr(diffusers, cls), config | ({"shift_factor": 0.0} if cls == "AutoencoderKL" else {}), tmp_path
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.LDMPipeline(vqvae=case.net, unet=case.unet, scheduler=case.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": STEPS, "output_type": "np"}
        theirs = pipeline(batch_size=2, generator=torch.Generator().manual_seed(5), **options).images * 2 - 1
    target = case.target
    params = target.origin.read_params()
    shape = target.shape(target.size)
    x = nhwc(torch.randn((2, shape[2], *shape[:2]), generator=torch.Generator().manual_seed(5)))
    table = step_table(target.schedule, STEPS, spacing="leading", clip=False)
    keys = sampler.sample_keys(jax.random.key(0), np.arange(2))
    state = sampler.State(x, np.zeros_like(x))
    for step in range(STEPS):
        state = sampler.sample_step(lambda x, t: apply(target.network, params, x, t), table[step], state, keys)
    assert np.abs(np.asarray(state.x)).max() < 1e3
    ours = np.asarray(jax.jit(target.decode)(params, state.x))
    assert (np.abs(theirs) < 0.98).mean() > 0.2
    assert np.abs(ours - theirs).max() < 1e-3


def test_a_saved_pipeline_and_its_unet_alone_are_the_same_model(tmp_path):
    """With model_index.json, by any of its folders."""
    case = Diffusers(diffusers.VQModel, VQ["of three levels"], tmp_path / "parts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.LDMPipeline(vqvae=case.net, unet=case.unet, scheduler=case.scheduler)
        pipeline.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model_index.json").is_file()
    expected = case.target.origin.read_params()
    for folder in (tmp_path / "whole", tmp_path / "whole" / "unet"):
        target = read_target(folder, hints())
        assert target.network == case.target.network
        assert [path.parent.name for path in target.origin.weights] == ["unet", "vqvae"]
        jax.tree.map(np.testing.assert_array_equal, target.origin.read_params(), expected)


def test_what_a_bundle_does_not_say_is_asked_for_and_its_pickles_never_run(tmp_path):
    Monai(MONAI["of three levels"], tmp_path, old=False)
    options = {"schedule": "scaled_linear", "head_channels": 8, "norm_groups": 4}
    path = tmp_path / "models" / "autoencoder.pt"
    with pytest.raises(
        InputError, match=r"autoencoder.pt does not say .* config.target.latent_scale to the scale_factor"
    ):
        read_target(tmp_path, hints(**options))
    torch.save(monai.AutoencoderKL(2, latent_channels=4).state_dict(), path)
    with pytest.raises(InputError, match=r"latents of 4 channels.* beside it is of 3; take both from the same"):
        read_target(tmp_path, hints(**options, latent_scale=1.0))
    for content in ([1, 2], {"encoder.blocks.0.conv.weight": 1}, foreign.Hostile(tmp_path / "made")):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"autoencoder.pt (holds no AutoencoderKL of MONAI|is not a pickled dict)"):
            read_target(tmp_path, hints(**options, latent_scale=1.0))
    assert not (tmp_path / "made").exists()
    path.unlink()
    with pytest.raises(InputError, match=r"model.pt does not say the range of its pixels; set config.target.pixels"):
        read_target(tmp_path, hints(**options))
