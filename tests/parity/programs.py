"""The U-Nets of training programs that no package has, in PyTorch, from their descriptions and names of tensors."""

import math

from parity.theirs import torch

nn, F = torch.nn, torch.nn.functional


class _Residual(nn.Module):
    """A residual block of either program, whose parts have the names that a subclass gives them."""

    def shortcut_of(self, before, after):
        return nn.Conv2d(before, after, 1) if before != after else nn.Identity()


class DdpmBlock(_Residual):
    """w86763777/pytorch-ddpm's, with attention inside."""

    def __init__(self, before, after, time, attend):
        super().__init__()
        self.block1 = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(time, after))
        norm, conv = nn.GroupNorm(32, after), nn.Conv2d(after, after, 3, padding=1)
        self.block2 = nn.Sequential(norm, nn.SiLU(), nn.Dropout(0.1), conv)
        self.shortcut = self.shortcut_of(before, after)
        self.attn = DdpmAttention(after) if attend else nn.Identity()

    def forward(self, x, emb):
        h = self.block1(x) + self.temb_proj(emb)[..., None, None]
        return self.attn(self.block2(h) + self.shortcut(x))


class DdpmAttention(nn.Module):
    """One head over all channels, of 1x1 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.group_norm = nn.GroupNorm(32, channels)
        for name in ("proj_q", "proj_k", "proj_v", "proj"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        h = self.group_norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.proj_q, self.proj_k, self.proj_v))
        weights = torch.einsum("bcq,bck->bqk", q, k).div(x.shape[1] ** 0.5).softmax(-1)
        return x + self.proj(torch.einsum("bqk,bck->bcq", weights, v).view_as(x))


class DdpmResize(nn.Module):
    """A convolution of stride 2, or one after nearest-neighbour upsampling."""

    def __init__(self, channels, down):
        super().__init__()
        self.main, self.down = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=1), down

    def forward(self, x, emb):
        return self.main(x if self.down else F.interpolate(x, scale_factor=2, mode="nearest"))


class DdpmUNet(nn.Module):
    """w86763777/pytorch-ddpm's; sines and cosines alternate in its table of times."""

    def __init__(self, width=32, multiples=(1, 2), attend=(1,), blocks=1, channels=3, timesteps=1000):
        super().__init__()
        half = width // 2
        angles = torch.arange(timesteps)[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(timesteps, width)
        layers = nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        self.time_embedding = nn.Module()
        self.time_embedding.timembedding = nn.Sequential(nn.Embedding.from_pretrained(table), *layers)
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.downblocks, self.upblocks, skips, now = nn.ModuleList(), nn.ModuleList(), [width], width
        for i, multiple in enumerate(multiples):
            for _ in range(blocks):
                self.downblocks.append(DdpmBlock(now, width * multiple, 4 * width, i in attend))
                now = width * multiple
                skips.append(now)
            if i + 1 < len(multiples):
                self.downblocks.append(DdpmResize(now, down=True))
                skips.append(now)
        self.middleblocks = nn.ModuleList([DdpmBlock(now, now, 4 * width, attend) for attend in (True, False)])
        for i, multiple in reversed([*enumerate(multiples)]):
            for _ in range(blocks + 1):
                self.upblocks.append(DdpmBlock(skips.pop() + now, width * multiple, 4 * width, i in attend))
                now = width * multiple
            if i:
                self.upblocks.append(DdpmResize(now, down=False))
        self.tail = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, channels, 3, padding=1))

    def forward(self, x, t):
        emb, h = self.time_embedding.timembedding(t), self.head(x)
        skips = [h]
        for block in self.downblocks:
            h = block(h, emb)
            skips.append(h)
        for block in self.middleblocks:
            h = block(h, emb)
        for block in self.upblocks:
            h = block(torch.cat([h, skips.pop()], dim=1) if isinstance(block, DdpmBlock) else h, emb)
        return self.tail(h)


class AdmBlock(_Residual):
    """openai's, which may halve or double the image."""

    def __init__(self, before, after, time, shift, resize=""):
        super().__init__()
        self.shift, self.resize = shift, resize
        self.in_layers = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * after if shift else after))
        norm, conv = nn.GroupNorm(32, after), nn.Conv2d(after, after, 3, padding=1)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(0.1), conv)
        self.skip_connection = self.shortcut_of(before, after)

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resize:
            x, h = (resized(part, self.resize) for part in (x, h))
        h, emb = conv(h), self.emb_layers(emb)[..., None, None]
        norm, *rest = self.out_layers
        if self.shift:
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        return self.skip_connection(x) + nn.Sequential(*rest)(h)


def resized(x, how):
    """Halved by averages, or doubled by repetition."""
    return F.avg_pool2d(x, 2) if how == "down" else F.interpolate(x, scale_factor=2, mode="nearest")


class AdmAttention(nn.Module):
    """openai's: queries, keys and values of one layer, for each head in turn (legacy) or all queries first (new)."""

    def __init__(self, channels, heads, order):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb):
        flat = x.flatten(2)
        y, (b, c, n) = self.qkv(self.norm(flat)), flat.shape
        if self.order == "legacy":
            q, k, v = y.view(b, self.heads, 3, c // self.heads, n).unbind(2)
        else:
            q, k, v = y.view(b, 3, self.heads, c // self.heads, n).unbind(1)
        weights = torch.einsum("bhcq,bhck->bhqk", q, k).div((c // self.heads) ** 0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(b, c, n)).view_as(x)


class AdmResize(nn.Module):
    """A convolution of stride 2 (`op`), or one after doubling (`conv`)."""

    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        setattr(self, "op" if down else "conv", nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=1))

    def forward(self, x, emb):
        return self.op(x) if self.down else self.conv(resized(x, "up"))


class AdmUNet(nn.Module):
    """openai/improved-diffusion's and guided-diffusion's.

    Args:
      heads: the number of every attention layer's heads; or of channels of a head, if negative.
      scale: what timesteps are multiplied with; flow matching has 1 and times in [0, 1].
    """

    def __init__(
        self,
        width=32,
        multiples=(1, 2),
        attend=(1,),
        blocks=1,
        channels=3,
        out_channels=3,
        heads=2,
        order="legacy",
        shift=False,
        residual_resize=False,
        labels=0,
        scale=1.0,
    ):
        super().__init__()
        self.width, self.scale, time = width, scale, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        if labels:
            self.label_emb = nn.Embedding(labels, time)

        def attention(channels):
            return AdmAttention(channels, heads if heads > 0 else channels // -heads, order)

        def resize(channels, how):
            if residual_resize:
                return AdmBlock(channels, channels, time, shift, how)
            return AdmResize(channels, down=how == "down")

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1)])])
        self.output_blocks, skips, now = nn.ModuleList(), [width], width
        for i, multiple in enumerate(multiples):
            for _ in range(blocks):
                parts = [AdmBlock(now, width * multiple, time, shift)]
                now = width * multiple
                self.input_blocks.append(nn.ModuleList(parts + [attention(now)] * (i in attend)))
                skips.append(now)
            if i + 1 < len(multiples):
                self.input_blocks.append(nn.ModuleList([resize(now, "down")]))
                skips.append(now)
        middle = AdmBlock(now, now, time, shift), attention(now), AdmBlock(now, now, time, shift)
        self.middle_block = nn.ModuleList(middle)
        for i, multiple in reversed([*enumerate(multiples)]):
            for j in range(blocks + 1):
                parts = [AdmBlock(now + skips.pop(), width * multiple, time, shift)]
                now = width * multiple
                parts += [attention(now)] * (i in attend)
                parts += [resize(now, "up")] * (i > 0 and j == blocks)
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, out_channels, 3, padding=1))

    def forward(self, x, t, labels=None):
        half = self.width // 2
        angles = self.scale * t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        (first,), skips = self.input_blocks[0], []
        h = first(x)
        skips.append(h)
        for parts in self.input_blocks[1:]:
            for part in parts:
                h = part(h, emb)
            skips.append(h)
        for part in self.middle_block:
            h = part(h, emb)
        for parts in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for part in parts:
                h = part(h, emb)
        return self.out(h)
