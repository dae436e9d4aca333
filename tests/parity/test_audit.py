"""A foreign model is really attacked: diffusers trains and saves a DDPM of a few digits, the real command audits it."""

import json

import jax
import numpy as np
import pytest
import runs
import test_configs
from sklearn.datasets import load_digits

import side_jax
from side_jax import builders
from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.targets import from_torch
from side_jax.targets.diffusers_unet import from_diffusers
from side_jax.targets.unets import unet_config

from .theirs import DDPMPipeline, DDPMScheduler, UNet2DModel, torch

MEMBERS, STEPS = 32, 700


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """(pipeline folder, members.npz, heldout.npz): trained by torch alone on 32 digits, until it copies them."""
    folder = tmp_path_factory.mktemp("foreign")
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    for name, ids in (("members", order[:MEMBERS]), ("heldout", order[MEMBERS : 2 * MEMBERS])):
        np.savez(folder / f"{name}.npz", images=images[ids], labels=digits.target[ids])
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    options = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8}
    unet = UNet2DModel(block_out_channels=(16, 32), **blocks, **options)
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    clean = torch.from_numpy(images[order[:MEMBERS]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    for _ in range(STEPS):
        batch = clean[torch.randint(MEMBERS, (32,))]
        noise, t = torch.randn_like(batch), torch.randint(1000, (32,))
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(batch, noise, t), t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
    DDPMPipeline(unet.eval(), scheduler).save_pretrained(folder / "pipeline")
    return folder / "pipeline", folder / "members.npz", folder / "heldout.npz"


def arguments(foreign, workdir, **overrides):
    pipeline, members, heldout = foreign
    options = {
        "target__path": pipeline,
        "data__name": "npz",
        "data__path": members,
        "data__heldout_from": heldout,
        "data__num_members": MEMBERS,
        "data__num_heldout": MEMBERS,
        "sampler__num_steps": 20,
        "synthesize__num_images": 256,
        "label__num_clusters": 24,
        "label__cohesion_threshold": 0.5,
        "surrogate__num_steps": 150,
        "extract__num_images": 128,
        "extract__guidance_scales": "(3.0,)",
        "extract__attacks": "('unconditional','side')",
    }
    return runs.arguments(workdir, **(options | overrides))


def test_a_model_that_diffusers_trained_gives_up_its_members(foreign, tmp_path):
    """Members come out of it and held-out digits do not; its samples are those that diffusers' scheduler would draw."""
    assert runs.run(arguments(foreign, tmp_path / "run")) == 0
    results = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    assert results["target"]["step"] == 0
    assert results["target"]["denoising_loss_members"] < 0.7 * results["target"]["denoising_loss_heldout"]
    for row in results["rows"]:
        if (row["metric"], row["level"]) == ("normalized_l2", "high"):
            assert row["ams_ci"][0] > row["heldout_ams_ci"][1], row
            assert row["unique"] > row["heldout_unique"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert config["diffusion"]["num_timesteps"] == 1000
    # The workdir holds the weights: another stage needs neither the folder nor the config file.
    foreign[0].rename(foreign[0].with_name("moved"))
    try:
        assert runs.run([f"--workdir={tmp_path / 'run'}"], ("evaluate", "report")) == 0
    finally:
        foreign[0].with_name("moved").rename(foreign[0])


REFUSED = [
    ({"data__heldout_from": ""}, "data.heldout_from is ''", "never saw"),
    ({"data__image_size": 16}, "generates images of 8x8 pixels and 1 channels", "set config.data.image_size = 8"),
    ({"data__num_members": 33, "data__num_heldout": 33}, "num_members = 33", "has only 32 different images"),
    ({"target__sha256": "abc"}, "config.target.sha256 is abc", "not the ones audited before"),
]


@pytest.mark.parametrize(("overrides", "words"), [(row[0], row[1:]) for row in REFUSED], ids=lambda x: str(x)[:30])
def test_what_cannot_be_audited_is_refused(foreign, tmp_path, capsys, overrides, words):
    assert runs.run(arguments(foreign, tmp_path / "run", **overrides)) == 1
    error = capsys.readouterr().err
    for word in words:
        assert word in error


@pytest.mark.parametrize("variant", sorted(test_configs.PARAMETERS))
def test_configs_have_diffusers_number_of_parameters(variant):
    """tests/test_configs.py counts ours."""
    settings = from_config(test_configs.load(variant))
    with torch.device("meta"):
        theirs = UNet2DModel(in_channels=settings.data.channels, **unet_config(builders.build_network(settings)))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == test_configs.PARAMETERS[variant]


def test_the_module_itself_gives_the_results_of_its_checkpoint(foreign, tmp_path):
    """By calls of PyTorch, without conversion; images differ by the rounding of a level, if at all."""
    attacks = {"extract__attacks": "('unconditional','modes','black_box_modes')", "evaluate__divergence": False}
    assert runs.run(arguments(foreign, tmp_path / "converted", **attacks)) == 0
    net = UNet2DModel.from_pretrained(foreign[0], subfolder="unet", use_safetensors=True)
    target = from_torch(net, from_diffusers(foreign[0])[2], (8, 8, 1))
    with jax.numpy_dtype_promotion("standard"):
        side_jax.audit_config(saved_config(tmp_path / "converted"), tmp_path / "called", target=target)
    found = [
        json.loads((tmp_path / name / "evaluate" / "results.json").read_text()) for name in ("converted", "called")
    ]
    assert found[1]["target"]["parameters"] == found[0]["target"]["parameters"]
    for ours, theirs in zip(*(one["rows"] for one in found), strict=True):
        assert ours["attack"] == theirs["attack"]
        assert abs(ours["ams"] - theirs["ams"]) <= 1 / 128
        assert abs(ours["unique"] - theirs["unique"]) <= 1
    loss = [one["target"]["denoising_loss_members"] for one in found]
    assert loss[1] == pytest.approx(loss[0], rel=1e-4)
