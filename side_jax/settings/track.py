"""Settings of where curves are drawn while a run goes on."""

import dataclasses

from side_jax.settings.checks import check, one_of

TENSORBOARD, WANDB = "tensorboard", "wandb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """Where curves are drawn while a run goes on, beside their files (JSON lines); no setting here changes a figure."""

    # "tensorboard": files in the workdir; "wandb": Weights & Biases (`pip install 'side_jax[wandb]'`), which gets the
    # figures of every curve and, unless report.private is on, the settings.
    to: tuple[str, ...] = (TENSORBOARD,)

    def __post_init__(self) -> None:
        for name in self.to:
            one_of("track.to", name, (TENSORBOARD, WANDB))
        check(len(set(self.to)) == len(self.to), "track.to", self.to, "different ones")
