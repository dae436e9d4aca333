"""Reads checkpoints of lucidrains' denoising-diffusion-pytorch, versions 1.8.0 to 2.3.4: model-N.pt of its Trainer.

Of `ema` the averaged GaussianDiffusion is taken, which holds its betas. Its loss weights tell what it predicts: with a
signal-to-noise ratio snr_t, clipped to some gamma or not, they are

    min(snr, gamma) / snr   (noise),     min(snr, gamma)   (x_0),     min(snr, gamma) / (snr + 1)   (v).

Layers changed between versions: attention has memory since 1.9.0, and residual blocks have RMSNorm since 2.0.0, in
place of a group normalisation. All three kinds are read. Before 1.8.0, norms, convolutions and attention were others;
such files are refused. A LearnedGaussianDiffusion, whose network predicts a variance too, is trained to predict noise
whatever its loss weights say.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.models.memory_unet import MemoryUNet
from side_jax.settings import Diffusion
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import REPLACE, arrays
from side_jax.targets.target_model import Hints, Origin, Target, heads_of
from side_jax.targets.unet_shapes import State, first_half, numbers

FORMAT = "lucidrains"
_LIBRARY = "denoising-diffusion-pytorch"
_GIVE = f"give a model-N.pt of the Trainer of {_LIBRARY}, version 1.8.0 or later, with GaussianDiffusion and its Unet"
_FIRST = "init_conv.weight"
_GROUPS = 8  # its default, resnet_block_groups
# In this order, names of its modules and MemoryUNet's.
_NAMES = (
    (r"^init_conv\.", "conv_in."),
    (r"^final_conv\.", "conv_out."),
    (r"^time_mlp\.1\.", "time_1."),
    (r"^time_mlp\.3\.", "time_2."),
    (r"^mid_block1\.", "middle_block_0."),
    (r"^mid_block2\.", "middle_block_1."),
    (r"^mid_attn\.", "middle_attention."),
    (r"^final_res_block\.", "final_block."),
    (r"^(down|up)s\.(\d+)\.([01])\.", r"\1_\2_block_\3."),
    (r"^(down|up)s\.(\d+)\.2\.", r"\1_\2_attention."),
    (r"^(down|up)s\.(\d+)\.3\.(1\.)?", r"\1_\2_resize."),
    (r"\.mlp\.1\.", ".time_emb_proj."),
    (r"\.block([12])\.proj\.", r".conv\1."),
    (r"\.block([12])\.norm\.", r".norm\1."),
    (r"\.res_conv\.", ".conv_shortcut."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"\.to_out\.1\.", ".out_norm."),
    (r"\.g$", ".weight"),
)


def matches(content: Any) -> bool:
    """Whether a file's content is of this format."""
    return any(isinstance(name, str) and name.endswith(_FIRST) for part in _parts(content) for name in part)


def _parts(content: Any) -> Iterator[Mapping[Any, Any]]:
    """What may hold the weights: the average, the last ones, or the content itself as a state dict."""
    if isinstance(content, Mapping):
        yield from (part for part in (content.get("ema"), content.get("model"), content) if isinstance(part, Mapping))


def read(path: Path, content: Any, hints: Hints) -> Target:
    """Reads a checkpoint.

    Raises:
      InputError: if it is of another version or of another of the library's models, tensors are missing or left over,
        its betas and loss weights belong to none of its objectives, or a setting is that the file does not replace.
    """
    where = str(path)
    process, note = _process(content, where)
    _refuse_others(process, where)
    named = _renamed(process, where)
    network, more = _network(named, where, hints)
    diffusion = _noise(process, where)
    if len(named["conv_out.weight"]) != network.out_channels:
        diffusion = dataclasses.replace(diffusion, prediction_type="epsilon")
        more = (*more, "as it predicts a variance too, it is taken to predict noise, as the library trains such models")
    state = first_half(_with_tables(named), network.out_channels)

    def read_params() -> Any:
        shapes = parameters.shapes_of(network, network.out_channels, 2 ** (len(network.block_out_channels) - 1))
        return parameters.from_state_dict(
            state, shapes, where, model=f"the Unet of {_LIBRARY} that their shapes describe", fix=_GIVE
        )

    defaults = (
        "its images are taken to be in [-1, 1], and the longest period of its time embedding as 10000, as by default"
    )
    return Target(
        network=network,
        diffusion=diffusion,
        channels=network.out_channels,
        origin=Origin(
            format=FORMAT,
            weights=(path,),
            read_params=read_params,
            notes=(_version(content), *note, *more, defaults),
        ),
    )


def _version(content: Mapping[Any, Any]) -> str:
    """A note on the version of the library that wrote the file."""
    version = content.get("version")
    if isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version, re.ASCII):
        return f"it was written by version {version} of {_LIBRARY}"
    return f"it does not say which version of {_LIBRARY} wrote it"


def _process(content: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the state dict of GaussianDiffusion, a note if its weights are not the average)."""
    for part in _parts(content):
        averaged = part is content.get("ema")
        prefix = "ema_model." if averaged else ""
        names = [name for name in part if isinstance(name, str) and name.startswith(prefix)]
        if any(name.endswith(_FIRST) for name in names):
            note = () if averaged else ("it holds no moving average of the weights, so the last ones are taken",)
            return {name.removeprefix(prefix): part[name] for name in names}, note
    raise InputError(f"{where} holds neither averaged nor last weights under the names that are read; {_GIVE}.")


def _refuse_others(process: Mapping[str, Any], where: str) -> None:
    """Raises InputError for models of other versions, and the library's other models, by their tensors' names."""
    if "p2_loss_weight" in process or any(".fn." in name for name in process):
        what = "has layers of a version before 1.8.0, or of a model with labels, which are not read"
    elif f"model.{_FIRST}" not in process or not {"betas", "loss_weight"} <= process.keys():
        what = "does not hold model, betas and loss_weight together, as a GaussianDiffusion does"
    elif "model.time_mlp.0.weights" in process:
        what = "has a time embedding with random or learned frequencies, which no GaussianDiffusion has"
    elif getattr(process[f"model.{_FIRST}"], "ndim", 4) != 4:
        what = "is a model of sequences or volumes, but only models of 2-D images are read"
    else:
        return
    raise InputError(f"{where} {what}; {_GIVE}.")


def _renamed(process: Mapping[str, Any], where: str) -> State:
    """The network's weights by MemoryUNet's names, but for the memory."""
    prefix = "model."
    old = {name.removeprefix(prefix): value for name, value in process.items() if name.startswith(prefix)}
    last = max(numbers(old, "ups"), default=0)  # where MemoryUNet has level 0

    def renamed(name: str) -> str:
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        return re.sub(r"^up_(\d+)_", lambda found: f"up_{last - int(found[1])}_", name)

    state = {}
    for name, value in arrays(old, where).items():
        if name.endswith(".mem_kv") and (value.ndim != 4 or len(value) != 2 or not value.size):
            raise InputError(f"{where} has {name} of shape {value.shape}, but it must be two of 3 axes; {_GIVE}.")
        state[renamed(name)] = value.reshape(-1) if name.endswith(".g") else value
    return state


def _with_tables(state: State) -> State:
    """The same with each layer's memory as two tables, [memory, heads x channels of a head]."""
    whole = {name: value for name, value in state.items() if not name.endswith(".mem_kv")}
    for name in state.keys() - whole.keys():
        layer = name.removesuffix(".mem_kv")
        for part, value in zip(("memory_keys", "memory_values"), _memory(state, layer), strict=True):
            whole[f"{layer}.{part}.weight"] = value.reshape(len(value), -1)
    return whole


def _memory(state: State, layer: str) -> np.ndarray:
    """The memory's keys and values, [2, memory, heads, channels of a head]."""
    # In the file, it is [2, heads, channels, memory] where attention is linear, else [2, heads, memory, channels].
    return np.moveaxis(state[f"{layer}.mem_kv"], 3 if _is_linear(state, layer) else 2, 1)


def _is_linear(state: State, layer: str) -> bool:
    return f"{layer}.out_norm.weight" in state


def _network(state: State, where: str, hints: Hints) -> tuple[MemoryUNet, tuple[str, ...]]:
    """(the network of these weights, notes on it)."""
    levels = max(1, sum(re.fullmatch(r"down_\d+_resize\.weight", name) is not None for name in state))
    layers = [f"down_{i}_attention" for i in range(levels)]
    try:
        channels, out_channels = state["conv_in.weight"].shape[1], len(state["conv_out.weight"])
        hidden = [len(state[f"{layer}.to_qkv.weight"]) // 3 for layer in layers]
        remembers = f"{layers[0]}.mem_kv" in state
        num_memory = _memory(state, layers[0]).shape[1] if remembers else 0
        heads = tuple(
            _memory(state, layer).shape[2] if remembers else heads_of(count, where, hints)
            for layer, count in zip(layers, hidden, strict=True)
        )
        groups, notes = _groups(state, where, hints)
        network = MemoryUNet(
            out_channels=channels,
            time_channels=state["time_1.weight"].shape[1],
            stem_channels=len(state["conv_in.weight"]),
            block_out_channels=tuple(len(state[f"down_{i}_resize.weight"]) for i in range(levels)),
            heads=heads,
            head_channels=tuple(count // number for count, number in zip(hidden, heads, strict=True)),
            full_attention=tuple(not _is_linear(state, layer) for layer in layers),
            num_memory=num_memory,
            norm_groups=groups,
        )
    except (KeyError, IndexError, TypeError) as error:
        what = f"lack {error}" if isinstance(error, KeyError) else "have other shapes"
        raise InputError(
            f"the weights in {where} are not those of a Unet of {_LIBRARY}: they {what}; {_GIVE}."
        ) from None
    if channels == 2 * out_channels:
        raise InputError(
            f"{where} is a model with self-conditioning, which gets its last estimate of the image too; this is not "
            "supported, so give a model trained without self_condition."
        )
    if out_channels not in (channels, 2 * channels):
        raise InputError(
            f"{where} is a model of {channels} channels that predicts {out_channels}; its output must be an image, or "
            f"one and its variance, so {_GIVE}."
        )
    return network, notes


def _groups(state: State, where: str, hints: Hints) -> tuple[int, tuple[str, ...]]:
    """(the groups of the residual blocks' normalisations, 0 for RMSNorm; a note if they are the default)."""
    if "final_block.norm1.bias" not in state:
        return 0, ()
    groups = hints.target.norm_groups or _GROUPS
    sizes = {len(value) for name, value in state.items() if re.search(r"_block(_\d)?\.norm[12]\.weight$", name)}
    if any(size % groups for size in sizes):
        raise InputError(
            f"{where} has group normalisations of {', '.join(map(str, sorted(sizes)))} channels, which {groups} groups "
            "do not divide; set config.target.norm_groups to what it was trained with (resnet_block_groups)."
        )
    note = f"its normalisations are taken to have {groups} groups, the default; config.target.norm_groups sets it"
    return groups, () if hints.target.norm_groups else (note,)


def _noise(process: Mapping[str, Any], where: str) -> Diffusion:
    """The betas, and what the network predicts by the loss weights."""
    found = arrays({name: process[name] for name in ("betas", "loss_weight")}, where)
    betas, weights = (found[name].astype(np.float64) for name in ("betas", "loss_weight"))
    try:
        alpha_bar = Schedule(betas=betas).alpha_bar
    except ValueError as error:
        raise InputError(f"{where} has betas that are no noise schedule ({error}); {REPLACE}.") from None
    snr = alpha_bar / (1.0 - alpha_bar)
    kinds = (("epsilon", snr), ("x0", np.ones_like(snr)), ("v", snr + 1.0)) if weights.shape == snr.shape else ()
    for prediction, factor in kinds:
        clipped = weights * factor
        # Both are float32 in the file, where the last of the betas may be 0.999.
        if np.allclose(clipped, np.minimum(snr, clipped.max()), rtol=1e-3, atol=0.0):
            return Diffusion(num_timesteps=len(betas), trained_betas=tuple(betas.tolist()), prediction_type=prediction)
    raise InputError(
        f"{where} has loss weights that are of none of pred_noise, pred_x0 and pred_v with its betas, so what it "
        f"predicts is not known; {_GIVE}."
    )
