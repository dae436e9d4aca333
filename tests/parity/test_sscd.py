"""SSCD's ResNet-50 and its conversion against one written in PyTorch, on random weights; preprocessing against PIL."""

import warnings
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from parity.theirs import nchw, nhwc, relative_error, save_file, torch
from side_jax.errors import InputError
from side_jax.features import preprocess, sscd_weights
from side_jax.models.sscd_encoder import SSCD
from side_jax.settings import Label

nn = torch.nn


class Bottleneck(nn.Module):
    """He et al. 2016, figure 5, with the stride in the 3x3 convolution ("v1.5")."""

    def __init__(self, inside, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.downsample = None
        if stride != 1 or inside != 4 * channels:
            conv = nn.Conv2d(inside, 4 * channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * channels))

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        h = torch.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return torch.relu(h + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """ResNet-50 with torchvision's names, whose average pool is the generalised mean."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            layer = nn.Sequential()
            for i in range(blocks):
                layer.append(Bottleneck(inside, 64 * 2**stage, 2 if stage and not i else 1))
                inside = 256 * 2**stage
            setattr(self, f"layer{stage + 1}", layer)
        self.fc = nn.Linear(2048, 512)

    def forward(self, x):
        h = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        h = h.clamp(min=1e-6).flatten(2).pow(3.0).mean(2).pow(1 / 3)
        return self.fc(h)


class Model(nn.Module):
    """The names of SSCD's .torchvision.pt files."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()

    def forward(self, x):
        return nn.functional.normalize(self.backbone(x))


class Classy(nn.Module):
    """The same tensors by Classy Vision's names, for a TorchScript file; it computes nothing that is compared."""

    def __init__(self, net):
        super().__init__()
        of = net.backbone
        self.backbone = nn.Module()
        self.backbone.initial_block = nn.Module()
        self.backbone.initial_block._module = nn.Sequential(of.conv1, of.bn1, nn.ReLU(), of.maxpool)
        stages = []
        for stage in range(4):
            blocks = OrderedDict()
            for i, block in enumerate(getattr(of, f"layer{stage + 1}")):
                named = nn.Module()
                parts = (block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU(), block.conv3)
                named.convolutional_block, named.bn = nn.Sequential(*parts), block.bn3
                if block.downsample is not None:
                    named.downsample = block.downsample
                blocks[f"block{stage}-{i}"] = named
            stages.append(nn.Sequential(blocks))
        self.backbone.blocks = nn.Sequential(*stages)
        self.embeddings = nn.Sequential(nn.Identity(), of.fc, nn.Identity())

    def forward(self, x):
        return x


def trace(net, path):
    """Writes a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(net, torch.zeros(1, 3, 64, 64), check_trace=False).save(str(path))
    return path


@pytest.fixture(scope="module")
def net():
    """Random numbers everywhere, running statistics too, of a size that keeps each layer's output near 1."""
    made, generator = Model().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                std = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(std * torch.randn(module.weight.shape, generator=generator))
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.bias.shape, generator=generator))
        made.backbone.fc.bias.copy_(torch.randn(512, generator=generator))
    return made


@pytest.fixture(scope="module")
def params(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("sscd") / "sscd.safetensors"
    save_file(net.state_dict(), path)
    return sscd_weights.from_sscd(path)


def test_every_layer_and_the_embedding_agree(net, params):
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    theirs = {}
    for name in ("layer1", "layer2", "layer3", "layer4", "fc"):
        getattr(net.backbone, name).register_forward_hook(lambda _, __, out, name=name: theirs.update({name: out}))
    with torch.no_grad():
        theirs["embedding"] = net(nchw(x))
    ends = {"layer1_2": "layer1", "layer2_3": "layer2", "layer3_5": "layer3", "layer4_2": "layer4", "fc": "fc"}

    @jax.jit
    def ours(params):
        return SSCD().apply({"params": params}, x, capture_intermediates=lambda module, _: module.name in ends)

    embedding, state = ours(params)
    got = {ends[name]: value["__call__"][0] for name, value in state["intermediates"].items() if name in ends}
    errors = {}
    for name, out in (got | {"embedding": embedding}).items():
        expected = nhwc(theirs[name]) if theirs[name].ndim == 4 else theirs[name].numpy()
        assert out.shape == expected.shape
        errors[name] = relative_error(out, expected)
    assert len(errors) == 6
    assert max(errors.values()) < 2e-5, errors  # 1e-4 would do, but only the order of sums differs
    assert embedding.dtype == jnp.float32
    assert np.abs(embedding[0] - embedding[1]).max() > 1e-2  # the image counts, not the bias alone


@pytest.mark.parametrize("names", ["torchvision", "classy"])
@pytest.mark.parametrize("form", ["safetensors", "torchscript"])
def test_both_namings_and_forms_load_the_same(net, params, tmp_path, names, form):
    model = net if names == "torchvision" else Classy(net)
    assert ("backbone.blocks.1.block1-3.convolutional_block.3.weight" in model.state_dict()) == (names == "classy")
    path = tmp_path / f"sscd.{form}.pt"
    if form == "torchscript":
        trace(model, path)
    else:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    jax.tree.map(np.testing.assert_array_equal, sscd_weights.from_sscd(path), params)


def test_torchscript_without_names_and_pickles_are_refused(net, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval())).save(str(tmp_path / "frozen.pt"))
        trace(nn.Conv2d(3, 3, 1), tmp_path / "other.pt")
    for legacy in (False, True):
        torch.save(
            {"fc.weight": torch.zeros(2)},
            tmp_path / f"pickled{int(legacy)}.pt",
            _use_new_zipfile_serialization=not legacy,
        )
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:-500])
    for name, words in (
        ("frozen.pt", ("frozen for inference", "torchvision.pt", "weights_only=True")),
        ("other.pt", ("are not those of SSCD's ResNet-50", "lack 267 tensors", "conv1.weight", "sscd_disc_mixup")),
        ("pickled0.pt", ("pickled", "can run any code", "weights_only=True", "'pickled0.safetensors'")),
        ("pickled1.pt", ("pickled", "can run any code", "weights_only=True", "'pickled1.safetensors'")),
        ("cut.pt", ("cut.pt can't be read as TorchScript", "replace it")),
    ):
        with pytest.raises(InputError) as caught:
            sscd_weights.from_sscd(tmp_path / name)
        for word in (name, *words):
            assert word in str(caught.value)


@pytest.mark.parametrize(("size", "to"), [(32, 288), (128, 288), (300, 288), (512, 288), (48, 17), (20, 20)])
def test_resizing_is_pil_s(size, to):
    """But for sums that end in .5, which float32 here and fixed point there round either way, once in each pass.

    So at most 2 levels of 255, and 0.05 on average: without the rounding between the passes it would be 0.28.
    """
    images = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
    images[1] = np.repeat(np.arange(size)[:, None, None] * 255 // size, size, axis=1)  # a ramp, where ties are common
    theirs = np.stack([Image.fromarray(image).resize((to, to), Image.Resampling.BILINEAR) for image in images])
    ours = np.asarray(jax.jit(preprocess.resize, static_argnums=1)(images, to))
    off = np.abs(ours - theirs.astype(np.float32))
    assert off.max() <= 2
    assert off.mean() < 0.05


def test_the_encoder_sees_what_the_readme_of_sscd_makes():
    """transforms.Resize(288), ToTensor and Normalize, by their definitions; grey becomes RGB by convert('RGB')."""
    label = Label()
    mean, std = (np.asarray(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for shape in ((40, 40, 3), (40, 40, 1)):
        image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        rgb = Image.fromarray(image.squeeze()).convert("RGB").resize((288, 288), Image.Resampling.BILINEAR)
        theirs = (np.asarray(rgb, np.float32) / 255 - mean) / std
        ours = np.asarray(preprocess.prepare(jnp.asarray(image[None]), label))
        assert ours.shape == (1, 288, 288, 3)
        off = np.abs(ours[0] - theirs) * std * 255  # in levels of 255, as above
        assert off.max() < 2.01
        assert off.mean() < 0.05
