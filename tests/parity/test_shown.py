"""Models that other programs' networks learn here are audited from their files to the verdict, as the docs say."""

import json
import math
import warnings

import numpy as np
import pytest
import runs
from sklearn.datasets import load_digits

from parity.lucidrains_package import package
from parity.programs import DdpmUNet
from parity.theirs import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    monai = pytest.importorskip("monai.networks.nets")

MEMBERS, STEPS, T = 32, 500, 1000
IMAGES = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
ORDER = np.random.default_rng(0).permutation(len(IMAGES))
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0).float()


def noised_loss(net):
    """The loss of a program that predicts the noise, as w86763777/pytorch-ddpm has it."""

    def loss(clean):
        t, noise = torch.randint(T, (len(clean),)), torch.randn_like(clean)
        alpha_bar = ALPHA_BAR[t][:, None, None, None]
        return torch.square(net(alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise, t) - noise).mean()

    return loss


def trained(net, loss):
    """Learns the members by heart; returns the moving average of the weights."""
    clean = torch.from_numpy(IMAGES[ORDER[:MEMBERS]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / STEPS))
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(clean[torch.randint(MEMBERS, (32,))]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        decay = min(0.99, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            average[name] = torch.lerp(average[name], value, 1 - decay) if value.is_floating_point() else value
    return average


def pytorch_ddpm(path):
    net = DdpmUNet(channels=1)
    average = trained(net, noised_loss(net))
    saved = {"net_model": net.state_dict(), "ema_model": average, "step": STEPS, "x_T": torch.zeros(4, 1, 8, 8)}
    torch.save(saved, path / "ckpt.pt")
    return {"target__path": path / "ckpt.pt"}


def monai_bundle(path):
    levels = {"channels": (16, 32), "attention_levels": (False, True), "num_head_channels": 16, "norm_num_groups": 8}
    net = monai.DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=1, **levels)
    (path / "models").mkdir()
    loss = noised_loss(net)
    average = trained(net, lambda clean: loss((clean + 1) / 2))  # pixels in [0, 1], as MONAI's tutorials scale them
    torch.save(average, path / "models" / "model.pt")
    asked = {"target__schedule": "linear", "target__head_channels": 16, "target__norm_groups": 8}
    asked |= {"target__pixels": "unit"}
    return {"target__path": path} | asked


def lucidrains(path):
    net = package.Unet(dim=16, dim_mults=(1, 2), channels=1, attn_heads=2, attn_dim_head=16)
    process = package.GaussianDiffusion(net, image_size=8)
    average = trained(process, lambda clean: process((clean + 1) / 2))
    saved = {"step": STEPS, "model": process.state_dict(), "opt": {}, "scaler": None, "version": "2.3.4"}
    saved["ema"] = {f"ema_model.{name}": value for name, value in average.items()}
    torch.save(saved, path / "model-1.pt")
    return {"target__path": path / "model-1.pt"}


@pytest.mark.parametrize("program", [pytorch_ddpm, monai_bundle, lucidrains])
def test_a_model_is_audited_from_its_file_to_the_verdict(program, tmp_path):
    torch.manual_seed(0)
    for name, ids in (("seen", ORDER[:MEMBERS]), ("unseen", ORDER[MEMBERS : 2 * MEMBERS])):
        np.savez(tmp_path / f"{name}.npz", images=IMAGES[ids])
    (tmp_path / "model").mkdir()
    options = program(tmp_path / "model") | {
        "data__name": "npz",
        "data__path": tmp_path / "seen.npz",
        "data__heldout_from": tmp_path / "unseen.npz",
        "data__num_members": MEMBERS,
        "data__num_heldout": MEMBERS,
        "sampler__num_steps": 20,
        "extract__num_images": 128,
        "extract__attacks": "('unconditional','modes')",
    }
    assert runs.run(runs.arguments(tmp_path / "run", **options)) == 0
    results = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    assert results["target"]["denoising_loss_members"] < 0.95 * results["target"]["denoising_loss_heldout"]
    headline = [row for row in results["rows"] if (row["metric"], row["level"]) == ("normalized_l2", "high")]
    for row in headline:
        print(f"{program.__name__} {row['attack']}: {row['ams']:.1%}, {row['unique']} of {MEMBERS} members")
    assert headline[-1]["ams_ci"][0] > headline[-1]["heldout_ams_ci"][1]  # mode seeking
    manifest = json.loads((tmp_path / "run" / "train" / "manifest.json").read_text())
    assert manifest["target_format"] == {"monai_bundle": "monai"}.get(program.__name__, program.__name__)
    assert "Leaks" in (tmp_path / "run" / "report" / "index.html").read_text()
