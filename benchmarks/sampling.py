"""Compares sampling speed with diffusers and PyTorch: python benchmarks/sampling.py --sizes digits colour colour64

Measures images per second of whole DDIM trajectories, in one process, by turns, with the same converted weights, time
grid and initial noise. Unguided: side_jax's Generator against diffusers' DDIMPipeline, eager with channels-last and
compiled. Guided: against a PyTorch loop with autograd through the classifier, eager and compiled. All must first
produce the same images; otherwise no ratio is printed. `bare step` calls the jitted guided step in a loop, which shows
the overhead of the Generator. --peak adds the fraction of the measured matrix-product rate that the U-Net reaches;
--profile DIR writes a trace of one batch for TensorBoard or xprof. The machine must be idle, since PyTorch's threads
wait for each other.
"""

import argparse
import copy
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import contest
import jax
import jax.numpy as jnp
import numpy as np
from contest import SEED, diffusers, torch
from diffusers.pipelines.ddim import pipeline_ddim

from side_jax import builders
from side_jax.devices import placement
from side_jax.diffusion import guidance, sampler
from side_jax.sampling.generation import Generator
from side_jax.settings import Settings

CLASSES, SCALE = 10, 10.0


class HalfUNet(torch.nn.Module):
    """models/half_unet.py built from diffusers' blocks, with the same parameter names."""

    def __init__(self, settings: Settings):
        super().__init__()
        network, levels = settings.classifier, range(len(settings.classifier.stage_sizes))
        widths = tuple(network.width * 2**i for i in levels)
        head = np.gcd(64, widths[-1]).item()
        if len(set(network.stage_sizes)) > 1:
            sys.exit("this benchmark's classifier has as many blocks in each stage; change classifier.stage_sizes.")
        types = ("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",)
        groups = builders.build_classifier(settings, CLASSES, time_dependent=True).capped_groups
        whole = diffusers.UNet2DModel(
            in_channels=settings.data.channels,
            block_out_channels=widths,
            down_block_types=types,
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=network.stage_sizes[0],
            norm_num_groups=groups,
            attention_head_dim=head,
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=groups,
        )
        self.conv_in, self.time_embedding, self.mid_block = whole.conv_in, whole.time_embedding, whole.mid_block
        self.down_blocks, self.norm_out = whole.down_blocks, torch.nn.GroupNorm(groups, widths[-1], eps=1e-5)
        self.pool = AttentionPool(widths[-1], head, (settings.data.image_size // 2 ** (len(widths) - 1)) ** 2 + 1)
        self.__dict__["_time_proj"] = whole.time_proj  # without parameters

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [b, CLASSES]."""
        emb = self.time_embedding(self._time_proj(t))
        h = self.conv_in(x)
        for block in self.down_blocks:
            h, _ = block(h, emb)
        h = torch.nn.functional.silu(self.norm_out(self.mid_block(h, emb)))
        return torch.nn.functional.log_softmax(self.pool(h), dim=1)


class AttentionPool(torch.nn.Module):
    """The attention pool of half_unet.py."""

    def __init__(self, channels: int, head: int, tokens: int):
        super().__init__()
        self.positions = torch.nn.Parameter(torch.randn(tokens, channels) * channels**-0.5)
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(channels, channels) for _ in range(3))
        self.to_out, self._head = torch.nn.Linear(channels, CLASSES), head

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, CLASSES]."""
        b, c = h.shape[:2]
        tokens = h.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positions
        q, k, v = (
            to(x).view(b, -1, c // self._head, self._head).transpose(1, 2)
            for to, x in ((self.to_q, tokens[:, :1]), (self.to_k, tokens), (self.to_v, tokens))
        )
        return self.to_out(torch.nn.functional.scaled_dot_product_attention(q, k, v).reshape(b, c))


def classifier_params(net: HalfUNet, settings: Settings) -> Any:
    """The classifier's parameters, converted to ours; the position embedding is not a layer and is copied by hand."""
    module = builders.build_classifier(settings, CLASSES, time_dependent=True)
    shapes = jax.eval_shape(builders.init_fn(module, settings, SEED))
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    positions = state.pop("pool.positions")
    rest = shapes | {"pool": {name: value for name, value in shapes["pool"].items() if name != "positions"}}
    params = contest.parameters.from_state_dict(state, rest, "the benchmark")
    params["pool"]["positions"] = positions
    return params


class Ours:
    """side_jax's Generator, as used by every stage."""

    def __init__(self, generator: Generator, params: Any, labels: np.ndarray):
        self._make = functools.partial(generator, params, jax.random.key(SEED), np.arange(len(labels)), labels, SCALE)

    def step(self) -> np.ndarray:
        """A batch of images, uint8 NHWC."""
        return self._make()

    def sync(self) -> None:
        """Does nothing: the images are on the host."""


class Bare:
    """The jitted guided step alone, on one device."""

    def __init__(self, settings: Settings, params: Any, labels: np.ndarray):
        classifier = builders.build_classifier(settings, CLASSES, time_dependent=True)
        denoise = builders.build_denoise(settings)
        log_prob = builders.build_log_prob(settings, classifier, at_x0=False)
        self._table, self._labels = builders.build_step_table(settings, settings.sampler), jnp.asarray(labels)
        self._keys = sampler.sample_keys(jax.random.key(SEED), jnp.arange(len(labels), dtype=jnp.uint32))
        self._start = jax.jit(lambda keys: sampler.start(keys, builders.image_shape(settings)))
        self._params = jax.device_put(params, jax.local_devices()[0])

        def step(params, labels, scale, keys, at, state):
            gradient = guidance.classifier_gradient(functools.partial(log_prob, params), labels)
            guide = guidance.Guidance(gradient_fn=gradient, scale=scale)
            return sampler.sample_step(functools.partial(denoise, params), at, state, keys, guide)

        self._step = jax.jit(step, donate_argnums=5)

    def step(self) -> None:
        """Samples one trajectory."""
        state = self._start(self._keys)
        for i in range(self._table.num_steps):
            state = self._step(self._params, self._labels, np.float32(SCALE), self._keys, self._table[i], state)
        jax.block_until_ready(state)

    def sync(self) -> None:
        """Does nothing: each trajectory is waited for."""


class Theirs:
    """DDIM in PyTorch: diffusers' pipeline, or a loop with a classifier's gradient."""

    def __init__(self, settings: Settings, net: Any, classifier: Any, noise: np.ndarray, labels: np.ndarray, **options):
        device, compiled = options["device"], options["compiled"]
        d = settings.diffusion
        self._scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=d.num_timesteps,
            beta_start=d.beta_start,
            beta_end=d.beta_end,
            beta_schedule=d.schedule,
            timestep_spacing=settings.sampler.spacing,
        )
        self._steps, self._device, self._classifier = settings.sampler.num_steps, device, None
        to = {"device": device, "memory_format": torch.channels_last}
        self._net = copy.deepcopy(net).to(**to).eval().requires_grad_(False)
        self._noise = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()).to(**to)
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=settings.model.dtype == "bfloat16")
        if compiled:
            self._net.compile()
        if classifier is not None:
            self._classifier = copy.deepcopy(classifier).to(**to).eval().requires_grad_(False)
            self._labels = torch.from_numpy(labels).long().to(device)
            self._gradient = torch.compile(self._log_prob) if compiled else self._log_prob
            return
        self._pipeline = diffusers.DDIMPipeline(unet=self._net, scheduler=self._scheduler)
        self._pipeline.set_progress_bar_config(disable=True)
        pipeline_ddim.randn_tensor = lambda *args, **kwargs: self._noise.clone()

    def _log_prob(self, x, t):
        return self._classifier(x, t)[torch.arange(len(x), device=x.device), self._labels].sum()

    def step(self) -> np.ndarray:
        """A batch of images, uint8 NHWC."""
        if self._classifier is None:
            pipeline_ddim.randn_tensor = lambda *args, **kwargs: self._noise.clone()
            with self._autocast:
                images = self._pipeline(
                    batch_size=len(self._noise),
                    num_inference_steps=self._steps,
                    use_clipped_model_output=True,
                    output_type="np",
                ).images
            return np.round(images * 255).astype(np.uint8)
        self._scheduler.set_timesteps(self._steps)
        x = self._noise.clone()
        for t in self._scheduler.timesteps:
            with torch.no_grad(), self._autocast:
                epsilon = self._net(x, t).sample.float()
            at = x.detach().requires_grad_(True)
            times = torch.full((len(x),), int(t), device=self._device)
            (gradient,) = torch.autograd.grad(self._gradient(at, times), at)
            sigma = (1 - self._scheduler.alphas_cumprod[t]).sqrt()
            with torch.no_grad():
                epsilon = epsilon - SCALE * sigma.to(self._device) * gradient
                x = self._scheduler.step(epsilon, t, x, use_clipped_model_output=True).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return np.round(images * 255).astype(np.uint8)

    def sync(self) -> None:
        """Does nothing: the images are on the host."""


def check_same(ours: np.ndarray, theirs: np.ndarray, exact: bool, name: str) -> dict[str, float]:
    """Exits if the images differ."""
    difference = np.abs(ours.astype(int) - theirs)
    inside = float(((ours > 2) & (ours < 253)).mean())
    same = {"mean_levels": float(difference.mean()), "max_levels": int(difference.max()), "not_clipped": inside}
    # Without TF32 (10 bits) and bfloat16 (8 bits), images differ only by the order of float32 additions.
    if inside < 0.01 or (same["max_levels"] > 2 if exact else same["mean_levels"] > 4):
        sys.exit(f"side_jax and {name} don't draw the same images, so there is no ratio: {json.dumps(same)}")
    return same


def run_size(size: str, options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """All measurements of one size, unguided and guided."""
    settings = contest.load_settings(size, options.batch_size, options.dtype)
    batch_size, shape = settings.sampler.batch_size, builders.image_shape(settings)
    net, classifier = contest.make_unet(settings), HalfUNet(settings)
    params = {
        "dpm": contest.converted(net, builders.build_network(settings), settings),
        "classifier": classifier_params(classifier, settings),
        "temperature": np.ones(settings.diffusion.num_timesteps, np.float32),
    }
    labels = np.arange(batch_size, dtype=np.int32) % CLASSES
    keys = sampler.sample_keys(jax.random.key(SEED), jnp.arange(batch_size, dtype=jnp.uint32))
    noise = np.asarray(sampler.initial_noise(keys, shape))
    skipped = "--no-compile was given" if options.no_compile else contest.why_not_compile(device)
    exact, results = device == "cpu" and options.dtype == "float32", []
    for guided in (False, True):
        module = builders.build_classifier(settings, CLASSES, time_dependent=True) if guided else None
        generator = builders.build_generator(settings, module)
        contestants = {"side_jax": Ours(generator, placement.place(params, placement.local_mesh()), labels)}
        if guided and device == "cpu":
            contestants["bare step"] = Bare(settings, params, labels)
        for compiled in (False, True):
            if not (compiled and skipped):
                contestants[f"pytorch {'compiled' if compiled else 'eager'}"] = Theirs(
                    settings, net, classifier if guided else None, noise, labels, device=device, compiled=compiled
                )
        images = contestants["side_jax"].step()
        same = {
            name: check_same(images, contestant.step(), exact, name)
            for name, contestant in contestants.items()
            if name.startswith("pytorch")
        }
        rates = contest.measure(contestants, batch_size, options.rounds, options.seconds)
        result = {"size": size, "guided": guided, "image": shape, "batch_size": batch_size, "same": same}
        results.append(result | {"not_compiled": skipped} | contest.summary(rates, "side_jax"))
        if options.profile and not guided:
            with jax.profiler.trace(str(options.profile / size)):
                contestants["side_jax"].step()
    if options.peak:
        results[0]["peak"] = peak_share(settings, params, batch_size, results[0]["median"]["side_jax"])
    return results


def peak_share(settings: Settings, params: Any, batch_size: int, rate: float) -> dict[str, float]:
    """Floating-point operations per second of a large matrix product, and of the U-Net in unguided sampling."""
    n = 8192 if jax.default_backend() != "cpu" else 2048
    a = jnp.ones((n, n), settings.model.dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        product(a).block_until_ready()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    x = jnp.zeros((batch_size, *builders.image_shape(settings)))
    # Counted before compilation, since calls of cuDNN's convolutions would count as nothing.
    once = jax.jit(builders.build_denoise(settings)).lower(params, x, jnp.zeros(batch_size, jnp.int32))
    flops = once.cost_analysis()["flops"] / batch_size * settings.sampler.num_steps
    return {"matrix_product": best, "unet": flops * rate, "share": flops * rate / best}


def main() -> None:
    """Runs the command line."""
    parser = contest.parser(__doc__, ["digits", "colour", "colour64"])
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    device, about = contest.start(options)
    results = []
    for size in dict.fromkeys(options.sizes):
        for result in run_size(size, options, device):
            results.append(result)
            worst = max(same["max_levels"] for same in result["same"].values())
            print(
                f"{size}, {'guided' if result['guided'] else 'unguided'}: {'x'.join(map(str, result['image']))}, batch "
                f"{result['batch_size']}; images agree to {worst} grey levels"
            )
            print("\n".join(contest.text(result, result["not_compiled"])), flush=True)
            if "bare step" in result["median"]:
                ratio = result["median"]["bare step"] / result["median"]["side_jax"]
                print(f"  side_jax takes {ratio:.3f} times its bare jitted step")
            if "peak" in result:
                print(f"  the U-Net reaches {100 * result['peak']['share']:.0f}% of the matrix-product rate")
            if options.json:
                options.json.write_text(json.dumps(about | {"sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
