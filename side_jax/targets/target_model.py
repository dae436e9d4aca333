"""What is audited: a network, its noise schedule, and what its file says about both.

Every model is a network that predicts at the timesteps t = 0..T-1 of a variance-preserving schedule (schedule.py), so
that one sampler, one likelihood and one mode seeking serve all. Models of other noise become such a network:

    discrete    the network gets (x_t, t) itself, with x_t = a_t x_0 + s_t e,  s_t = sqrt(1 - a_t^2)    (1)
    EDM         D(y; sigma) predicts x_0 from y = x_0 + sigma e (Karras et al. 2022). Timestep t has the noise
                sigma_t of a grid, a_t = (1 + sigma_t^2)^(-1/2), and x_0 = D(x_t / a_t; sigma_t)        (2)
    flow        v(z, s) predicts the velocity at z = s x_0 + (1 - s) e (Lipman et al. 2023; s = 1 is data), so that
                x_0 = z + (1 - s) v(z, s). Timestep t has the sigma_t of such a grid, s_t = 1 / (1 + sigma_t),
                and z = x_t s_t / a_t                                                                   (3)

Between two timesteps t is a real number, linear in log sigma, as mode seeking and the likelihood need it.

What x_t is of is what a model samples: images, or latents, which its network encodes and decodes (models/latent.py).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from side_jax import settings
from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.models.latent import Latent

MIDDLE = "mid_block"
DECODED = 4  # images that one device decodes at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A model, trained here or read from a file.

    Attributes:
      network: a Flax module; apply({"params": params}, x, t, labels=labels) is its prediction for x, float32
        [b, h, w, c], at t, int32 or float32 [b], of the schedule's prediction type, with the shape of x.
      diffusion: the settings of its noise schedule.
      channels: of its images, which a model of latents decodes.
      num_labels: number of labels; 0: an unconditional model.
      null_label: whether it can be used without a label.
      size: (height, width) of its images; None: the file does not say.
      origin: where it was read from; None: it is trained here.
    """

    network: Any
    diffusion: settings.Diffusion
    channels: int
    num_labels: int = 0
    null_label: bool = True
    size: tuple[int, int] | None = None
    origin: "Origin | None" = None

    @property
    def schedule(self) -> Schedule:
        """Its noise schedule."""
        return self.diffusion.make()

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """The (height, width, channels) of x: of the images, or of their latents.

        Args:
          size: (height, width) of the images.

        Raises:
          InputError: if no latents have images of that size.
        """
        height, width = size
        if not self.latent:
            return height, width, self.channels
        factor = self.network.factor
        if height % factor or width % factor:
            raise InputError(
                f"the images are of {height}x{width} pixels, but the model's autoencoder makes one pixel of {factor}x"
                f"{factor}; set config.data.image_size to a multiple of {factor}, what the model was trained with."
            )
        return height // factor, width // factor, self.network.latent_channels

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if the network can't process images of this (height, width)."""
        x = jax.ShapeDtypeStruct((1, *self.shape(size)), jnp.float32)
        try:
            jax.eval_shape(self.network.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.int32))
        except (ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"the model can't process images of {size[0]}x{size[1]} pixels ({reason}); set config.data.image_size "
                "to what it was trained with."
            ) from None

    @property
    def latent(self) -> bool:
        """Whether it samples latents, which have no bounds, and not images."""
        return isinstance(self.network, Latent)

    def encode(self, params: Any, images: jax.Array) -> jax.Array:
        """What the model would sample for images, float32 [b, h, w, c] in [-1, 1]: themselves, or their latents."""
        if not self.latent:
            return images
        return self.network.apply({"params": params}, images, method="encode")

    def decode(self, params: Any, x: jax.Array) -> jax.Array:
        """The images of what the model sampled, in about [-1, 1]; see encode. Few at a time, since images are large."""
        if not self.latent:
            return x

        def one(z: jax.Array) -> jax.Array:
            return self.network.apply({"params": params}, z[None], method="decode")[0]

        return jax.lax.map(one, x, batch_size=DECODED)

    def denoise(self, params: Any, x: jax.Array, t: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The network's prediction; labels int32 [b], -1 for none; None: no image has one."""
        if not self.num_labels:
            return self.network.apply({"params": params}, x, t)
        return self.network.apply({"params": params}, x, t, labels=labels)

    def activations(
        self, params: Any, x: jax.Array, t: jax.Array, labels: jax.Array | None, block: str = MIDDLE
    ) -> jax.Array:
        """A feature map of the network, [b, h', w', c'], as denoise computes it.

        Args:
          params: of the network.
          x: what the model samples, noised.
          t: int32 [b].
          labels: as for denoise.
          block: name of the module whose output it is; MIDDLE: the one before the decoder, which every network has.
        """
        network = self.network
        while hasattr(network, "net"):
            network = network.net
        name = getattr(network, "middle", block) if block == MIDDLE else block
        _, state = self.network.apply(
            {"params": params},
            x,
            t,
            **({"labels": labels} if self.num_labels else {}),
            capture_intermediates=lambda module, method: module.name == name and method == "__call__",
            mutable=["intermediates"],
        )
        return jax.tree.leaves(state["intermediates"])[0]  # a block on the way down returns its skip connections too

    def default_labels(self, index: jax.Array | None) -> jax.Array | None:
        """The labels of images where nothing asks for others: none, or those in turn if the model always needs one.

        So plain samples of a model that always needs a label are a mixture of all its labels in equal shares.

        Args:
          index: int [b], the images' global indices; None will do for a model without labels, or with one for none.
        """
        if not self.num_labels or self.null_label:
            return None
        if index is None:
            raise ValueError("a model that always needs a label needs the indices of the images")
        return (index % self.num_labels).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """The files of a model.

    Attributes:
      format: name of their format.
      weights: the files that hold the weights; their digest identifies the model.
      name: of a Python object, which has no files.
      digest: SHA-256 of a Python object.
      read_params: reads the parameters of the network.
      notes: what the files do not say and was taken from the settings or the format, each a clause for the log.
    """

    format: str
    weights: tuple[Path, ...]
    read_params: Callable[[], Any] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    name: str = ""
    digest: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What a file may not say: the settings of the section target, and those of its noise."""

    target: settings.Target
    diffusion: settings.Diffusion

    def noise(self, where: Path, *, per_thousand: bool = False) -> tuple[settings.Diffusion, tuple[str, ...]]:
        """(the noise that target.schedule names, a note), of a file that does not say its own.

        Args:
          where: the file.
          per_thousand: whether linear betas are given for 1000 timesteps, and are larger the fewer there are, as
            openai's programs have it.

        Raises:
          InputError: if no schedule is named.
        """
        name, given = self.target.schedule, self.diffusion
        if not name:
            raise InputError(
                f"{where} does not say the noise that it was trained with; set config.target.schedule to linear, "
                "scaled_linear or cosine, and num_timesteps, beta_start, beta_end and prediction_type of "
                f"config.diffusion where they are not {given.num_timesteps}, {given.beta_start:g}, {given.beta_end:g} "
                f"and {given.prediction_type}."
            )
        noise = dataclasses.replace(given, schedule=name, trained_betas=())
        if per_thousand and name == "linear" and given.num_timesteps != 1000:
            betas = noise.make().betas * (1000 / given.num_timesteps)
            noise = dataclasses.replace(noise, trained_betas=tuple(betas.tolist()))
        return noise, (f"its noise is taken as {name} with {given.num_timesteps} timesteps, as config.target says",)


def heads_of(channels: int, where: str, hints: Hints) -> int:
    """The number of heads of attention over so many channels, of a file that does not say it.

    Raises:
      InputError: if no setting says it, or the channels can't be cut into so many.
    """
    heads, width = hints.target.num_heads, hints.target.head_channels
    if not (heads or width):
        raise InputError(
            f"{where} does not say how many heads its attention has; set config.target.num_heads or "
            "config.target.head_channels to what it was trained with."
        )
    if channels % (heads or width):
        name, value = ("num_heads", heads) if heads else ("head_channels", width)
        raise InputError(
            f"config.target.{name} is {value}, but {where} has attention over {channels} channels, which can't be cut "
            "so; set it to what the model was trained with."
        )
    return heads or channels // width
