"""ResNet-34 with BatchNorm against the same in plain PyTorch, by torchvision's names, on random weights; inference."""

import functools

import jax
import numpy as np

from parity.theirs import nchw, relative_error, torch
from side_jax.models.classifier import log_probs
from side_jax.models.resnet import ResNet

STAGES = (3, 4, 6, 3)
CLASSES = 10
functional = torch.nn.functional


def convolution(channels, out, size, stride=1):
    return torch.nn.Conv2d(channels, out, size, stride, size // 2, bias=False)


class BasicBlock(torch.nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1, self.bn1 = convolution(channels, out, 3, stride), torch.nn.BatchNorm2d(out)
        self.conv2, self.bn2 = convolution(out, out, 3), torch.nn.BatchNorm2d(out)
        self.downsample = None
        if channels != out:
            self.downsample = torch.nn.Sequential(convolution(channels, out, 1, stride), torch.nn.BatchNorm2d(out))

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet34(torch.nn.Module):
    """With a 3x3 stem and no pooling after it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 3), torch.nn.BatchNorm2d(64)
        channels = 64
        for stage, blocks in enumerate(STAGES):
            made = []
            for i in range(blocks):
                made.append(BasicBlock(channels, 64 * 2**stage, 2 if stage and not i else 1))
                channels = 64 * 2**stage
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*made))
        self.fc = torch.nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return functional.log_softmax(self.fc(x.mean((2, 3))), dim=1)


def random_resnet():
    """Random numbers in every parameter and statistic; small last norms keep the sums of 16 blocks from blowing up."""
    net = ResNet34().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif value.ndim == 1:
                scale = name.endswith("weight")
                value.copy_(0.2 * noise + scale * (0.4 if "bn2" in name else 1.0))
    return net


def to_tree(net):
    """Its weights as a parameter tree."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}

    def conv(name):
        return {"kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0)}

    def norm(name):
        scale_bias = {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}
        return scale_bias, {"mean": state[f"{name}.running_mean"], "var": state[f"{name}.running_var"]}

    tree, statistics = {"conv_in": conv("conv1")}, {}
    tree["norm_in"], statistics["norm_in"] = norm("bn1")
    for stage, blocks in enumerate(STAGES):
        for i in range(blocks):
            theirs, ours = f"layer{stage + 1}.{i}", f"stage_{stage}_{i}"
            names = {"1": ("conv1", "bn1"), "2": ("conv2", "bn2")}
            if f"{theirs}.downsample.0.weight" in state:
                names["_shortcut"] = ("downsample.0", "downsample.1")
            tree[ours], statistics[ours] = {}, {}
            for name, (a, b) in names.items():
                tree[ours][f"conv{name}"] = conv(f"{theirs}.{a}")
                tree[ours][f"norm{name}"], statistics[ours][f"norm{name}"] = norm(f"{theirs}.{b}")
    tree["head"] = {"kernel": state["fc.weight"].T, "bias": state["fc.bias"]}
    return tree | {"batch_stats": statistics}


def test_resnet_34_agrees():
    net = random_resnet()
    x = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = net(nchw(x)).numpy()
    # So that an error would show: the classes differ, and so do the images.
    assert theirs.std() > 0.2
    assert theirs.std(axis=0).mean() > 0.05
    module = ResNet(CLASSES, STAGES, 64, time_dependent=False, norm="batch")
    ours = jax.jit(functools.partial(log_probs, module))(to_tree(net), x, np.zeros(4, np.int32))
    assert relative_error(ours, theirs) < 2e-5  # 1e-4 would do, but only the order of sums differs
