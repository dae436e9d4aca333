"""NVlabs' EDM in PyTorch, from the paper and the names of its tensors, pickled with source text as its classes are."""

import math
import pickle
import sys
import types

import numpy as np

from parity.theirs import torch

nn, F = torch.nn, torch.nn.functional

# Source text that an unpickler of NVlabs' would run. It is never read here.
SOURCE = "raise SystemExit('the source text was run')"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the pickle was run")


_module = types.ModuleType("torch_utils.persistence")
_module._reconstruct_persistent_obj = _reconstruct_persistent_obj
_reconstruct_persistent_obj.__module__ = _module.__name__
sys.modules.setdefault("torch_utils", types.ModuleType("torch_utils"))
sys.modules["torch_utils.persistence"] = _module


class Persistent(nn.Module):
    """Pickled as a call with a dict of the source text, the class's name and the attributes, arguments among them."""

    def __init_subclass__(cls):
        made = cls.__init__

        def __init__(self, *args, **kwargs):
            made(self, *args, **kwargs)
            self._init_args, self._init_kwargs = args, dict(kwargs)

        cls.__init__ = __init__

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(self).__name__}
        return _reconstruct_persistent_obj, (meta | {"state": self.__dict__},)


class Linear(Persistent):
    def __init__(self, before, after, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(after, before))
        self.bias = nn.Parameter(torch.empty(after)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Conv2d(Persistent):
    """A convolution (kernel 0: none) behind a resampling; or in front of it, with all padding first, if fused."""

    def __init__(self, before, after, kernel, resize="", taps=(1, 1), fused=False):
        super().__init__()
        self.resize, self.fused = resize, fused
        self.weight = nn.Parameter(torch.empty(after, before, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(after)) if kernel else None
        taps = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer(
            "resample_filter", torch.outer(taps, taps)[None, None] / taps.sum() ** 2 if resize else None
        )

    def resample(self, x, padding):
        taps = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        if self.resize == "down":
            return F.conv2d(x, taps, groups=x.shape[1], stride=2, padding=padding)
        return F.conv_transpose2d(x, 4 * taps, groups=x.shape[1], stride=2, padding=padding)

    def forward(self, x):
        pad = (self.resample_filter.shape[-1] - 1) // 2 if self.resize else 0
        if self.fused:
            x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + pad)
            return self.resample(x, 0) + self.bias[:, None, None]
        if self.resize:
            x = self.resample(x, pad)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class GroupNorm(Persistent):
    def __init__(self, channels, eps):
        super().__init__()
        self.num_groups, self.eps = min(32, channels // 4), eps
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class UNetBlock(Persistent):
    def __init__(self, in_channels, out_channels, emb, song, taps=(1, 1), resize="", heads=0):
        super().__init__()
        self.in_channels, self.out_channels, self.num_heads, self.adaptive_scale = (
            in_channels,
            out_channels,
            heads,
            not song,
        )
        self.skip_scale = np.sqrt(0.5) if song else 1  # a scalar of NumPy's, as there
        eps, c = 1e-6 if song else 1e-5, out_channels
        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, c, 3, resize, taps)
        self.affine = Linear(emb, c if song else 2 * c)
        self.norm1, self.conv1, self.skip = GroupNorm(c, eps), Conv2d(c, c, 3), None
        if in_channels != c or resize:
            self.skip = Conv2d(in_channels, c, int(in_channels != c or song), resize, taps)
        if heads:
            self.norm2, self.qkv, self.proj = GroupNorm(c, eps), Conv2d(c, 3 * c, 1), Conv2d(c, c, 1)

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        affine = self.affine(emb)[..., None, None]
        if self.adaptive_scale:
            scale, shift = affine.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm1(h + affine))
        x = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if not self.num_heads:
            return x
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).view(b, self.num_heads, -1, 3, height * width).unbind(3)
        weights = torch.einsum("bhcq,bhck->bhqk", q, k).div(q.shape[2] ** 0.5).softmax(-1)
        y = self.proj(torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(b, c, height, width))
        return (x + y) * self.skip_scale


class PositionalEmbedding(Persistent):
    def __init__(self, num_channels, endpoint=False):
        super().__init__()
        self.num_channels, self.max_positions, self.endpoint = num_channels, 10000, endpoint

    def forward(self, x):
        half = self.num_channels // 2
        angles = x[:, None] * 10000 ** (-torch.arange(half) / (half - self.endpoint))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(Persistent):
    def __init__(self, num_channels):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(num_channels // 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        angles = 2 * math.pi * x[:, None] * self.freqs
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class SongUNet(Persistent):
    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        channel_mult_emb=4,
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.1,
        label_dropout=0,
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=(1, 1),
    ):
        super().__init__()
        self.label_dropout = label_dropout
        noise, width = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        taps, last = resample_filter, len(channel_mult) - 1

        def block(before, after, attend=False, resize=""):
            return UNetBlock(before, after, width, True, taps, resize, int(attend))

        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise, endpoint=True) if positional else FourierEmbedding(noise)
        self.map_label = Linear(label_dim, noise) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, width), Linear(width, width)
        self.enc, self.dec, skips, now, aux = nn.ModuleDict(), nn.ModuleDict(), [], model_channels, in_channels
        for level, multiple in enumerate(channel_mult):
            side = img_resolution >> level
            at = f"{side}x{side}"
            if level == 0:
                self.enc[f"{at}_conv"] = Conv2d(in_channels, now, 3)
            else:
                self.enc[f"{at}_down"] = block(now, now, resize="down")
                if encoder_type == "skip":
                    self.enc[f"{at}_aux_down"] = Conv2d(aux, aux, 0, "down", taps)
                    self.enc[f"{at}_aux_skip"] = Conv2d(aux, now, 1)
                if encoder_type == "residual":
                    self.enc[f"{at}_aux_residual"] = Conv2d(aux, now, 3, "down", taps, fused=True)
                    aux = now
            skips.append(now)
            for i in range(num_blocks):
                self.enc[f"{at}_block{i}"] = block(now, model_channels * multiple, side in attn_resolutions)
                now = model_channels * multiple
                skips.append(now)
        for level, multiple in reversed([*enumerate(channel_mult)]):
            side = img_resolution >> level
            at = f"{side}x{side}"
            if level == last:
                self.dec[f"{at}_in0"], self.dec[f"{at}_in1"] = block(now, now, True), block(now, now)
            else:
                self.dec[f"{at}_up"] = block(now, now, resize="up")
            for i in range(num_blocks + 1):
                attend = i == num_blocks and side in attn_resolutions
                self.dec[f"{at}_block{i}"] = block(now + skips.pop(), model_channels * multiple, attend)
                now = model_channels * multiple
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    self.dec[f"{at}_aux_up"] = Conv2d(out_channels, out_channels, 0, "up", taps)
                self.dec[f"{at}_aux_norm"] = GroupNorm(now, 1e-6)
                self.dec[f"{at}_aux_conv"] = Conv2d(now, out_channels, 3)

    def forward(self, x, c_noise, labels):
        emb = torch.cat(self.map_noise(c_noise).chunk(2, dim=1)[::-1], dim=1)  # sines first
        if self.map_label is not None:
            emb = emb + self.map_label(labels * labels.shape[1] ** 0.5)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        h, skips, image = x, [], x
        for name, part in self.enc.items():
            if "aux_down" in name:
                image = part(image)
            elif "aux_skip" in name:
                h = skips[-1] = h + part(image)
            elif "aux_residual" in name:
                h = skips[-1] = image = (h + part(image)) / 2**0.5
            else:
                h = part(h, emb) if isinstance(part, UNetBlock) else part(h)
                skips.append(h)
        image = None
        for name, part in self.dec.items():
            if "aux_up" in name:
                image = part(image)
            elif "aux_norm" in name:
                normed = F.silu(part(h))
            elif "aux_conv" in name:
                image = part(normed) if image is None else part(normed) + image
            else:
                h = part(torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, emb)
        return image


class DhariwalUNet(Persistent):
    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        channel_mult_emb=4,
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
        dropout=0.1,
        label_dropout=0,
    ):
        super().__init__()
        width, now = model_channels * channel_mult_emb, model_channels * channel_mult[0]

        def block(before, after, attend=False, resize=""):
            return UNetBlock(before, after, width, False, resize=resize, heads=after // 64 if attend else 0)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(model_channels, width), Linear(width, width)
        self.map_label = Linear(label_dim, width, bias=False) if label_dim else None
        self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), [now]
        sides = [img_resolution >> level for level in range(len(channel_mult))]
        self.enc[f"{sides[0]}x{sides[0]}_conv"] = Conv2d(in_channels, now, 3)
        for side, multiple in zip(sides, channel_mult, strict=True):
            if side != sides[0]:
                self.enc[f"{side}x{side}_down"] = block(now, now, resize="down")
                skips.append(now)
            for i in range(num_blocks):
                self.enc[f"{side}x{side}_block{i}"] = block(now, model_channels * multiple, side in attn_resolutions)
                now = model_channels * multiple
                skips.append(now)
        self.dec[f"{side}x{side}_in0"], self.dec[f"{side}x{side}_in1"] = block(now, now, True), block(now, now)
        for side, multiple in zip(sides[::-1], channel_mult[::-1], strict=True):
            if side != sides[-1]:
                self.dec[f"{side}x{side}_up"] = block(now, now, resize="up")
            for i in range(num_blocks + 1):
                after = model_channels * multiple
                self.dec[f"{side}x{side}_block{i}"] = block(now + skips.pop(), after, side in attn_resolutions)
                now = after
        self.out_norm, self.out_conv = GroupNorm(now, 1e-5), Conv2d(now, out_channels, 3)

    def forward(self, x, c_noise, labels):
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(c_noise))))
        if self.map_label is not None:
            emb = emb + self.map_label(labels)
        emb, h, skips = F.silu(emb), x, []
        for part in self.enc.values():
            h = part(h, emb) if isinstance(part, UNetBlock) else part(h)
            skips.append(h)
        for name, part in self.dec.items():
            h = part(torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, emb)
        return self.out_conv(F.silu(self.out_norm(h)))


class _Preconditioned(Persistent):
    """D(y; sigma) at noises [b], with one-hot labels [b, n], or zeros for none."""

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, model_type="", **options):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16, self.sigma_min, self.sigma_max = use_fp16, 0, math.inf
        sides = {"img_resolution": img_resolution, "in_channels": img_channels, "out_channels": img_channels}
        self.model = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[model_type](
            **sides, label_dim=label_dim, **options
        )

    def forward(self, y, sigma, labels=None):
        if self.label_dim and labels is None:
            labels = torch.zeros(len(y), self.label_dim)
        *scale, c_noise = self.scales(sigma)
        c_skip, c_out, c_in = (value[:, None, None, None] for value in scale)
        return c_skip * y + c_out * self.model(c_in * y, c_noise, labels)


class EDMPrecond(_Preconditioned):
    def __init__(self, sigma_data=0.5, **options):
        super().__init__(**options)
        self.sigma_data = sigma_data

    def scales(self, sigma):
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


class VPPrecond(_Preconditioned):
    def __init__(self, beta_d=19.9, beta_min=0.1, M=1000, **options):
        super().__init__(**options)
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M
        self.sigma_min, self.sigma_max = (math.expm1(beta_d * u * u / 2 + beta_min * u) ** 0.5 for u in (1e-5, 1))

    def scales(self, sigma):
        log = (1 + sigma.double() ** 2).log()
        u = (((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d).float()
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * u


class VEPrecond(_Preconditioned):
    def __init__(self, **options):
        super().__init__(**options)
        self.sigma_min, self.sigma_max = 0.02, 100

    def scales(self, sigma):
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (0.5 * sigma).log()


class EDMLoss(Persistent):
    """Stands beside the network in a snapshot; this one is no module there, but pickled alike."""


def save(net, path, **more):
    """A snapshot as the program of NVlabs writes it."""
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    loss = EDMLoss()
    loss.P_mean = -1.2
    data = {"ema": net.eval(), "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "x", "max_size": 5}}
    path.write_bytes(pickle.dumps(data | more))


def euler(denoise, y, sigmas):
    """The deterministic sampler of EDM's algorithm 1, of first order: y at sigmas[0] goes down to noise 0."""
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        slope = (y - denoise(y, np.full(len(y), sigma))) / np.float32(sigma)
        y = y + np.float32(following - sigma) * slope
    return y


def rho_grid(steps, low=0.002, high=80.0, rho=7):
    """The noises of the sampler (equation 5), the largest first."""
    return (np.linspace(high ** (1 / rho), low ** (1 / rho), steps)) ** rho
