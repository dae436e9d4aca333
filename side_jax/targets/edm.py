"""Reads checkpoints of NVlabs' EDM (Karras et al. 2022): network-snapshot-*.pkl, of which ema is taken.

They are pickles of modules with their source text, which inert_pickle reads without running any of it. So what a model
computes is known by the names of its classes and their attributes alone, and is compared with NVlabs' own program.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from side_jax.errors import InputError
from side_jax.models import song_unet
from side_jax.models.continuous import Edm, EdmVe, EdmVp
from side_jax.models.dhariwal_unet import HEAD_CHANNELS, DhariwalUNet
from side_jax.models.song_unet import SongUNet
from side_jax.settings import Diffusion
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import REPLACE, arrays
from side_jax.targets.inert_pickle import Module
from side_jax.targets.target_model import Hints, Origin, Target

FORMAT = "edm"
# The noises between which EDM samples (table 1), where the model itself does not have a smaller range.
_ENDS = 0.002, 80.0
_DENOISERS: dict[str, type[nn.Module]] = {"EDMPrecond": Edm, "VPPrecond": EdmVp, "VEPrecond": EdmVe}
_NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
_FIX = "give a model of NVlabs' own program, unchanged"
# Options of the networks that have no attribute here: of training alone, or equal to others.
_OTHERS = {"in_channels": 0, "augment_dim": 0, "label_dropout": 0.0}
_WORDS = {
    "embedding_type": song_unet.EMBEDDINGS,
    "encoder_type": song_unet.ENCODERS,
    "decoder_type": song_unet.DECODERS,
}
_MOST, _MOST_BLOCKS, _MOST_LEVELS = 2**14, 32, 14  # far beyond any model; a file with more is damaged, or hostile


def matches(content: Any) -> bool:
    """Whether a file's content is of this format."""
    return isinstance(content, Mapping) and isinstance(content.get("ema"), Module)


def read(path: Path, content: Any, hints: Hints) -> Target:
    """Reads a checkpoint.

    Raises:
      InputError: if it is of another preconditioning or network, of a changed program, or damaged.
    """
    ema, where = content["ema"], str(path)
    if ema.kind not in _DENOISERS:
        raise InputError(f"{path} holds a model of the class {ema.kind[:40]!r}; give one of {', '.join(_DENOISERS)}.")
    modules = _modules(ema, where)
    unet = modules.get("model", ema)
    if unet.kind not in _NETWORKS:
        raise InputError(f"{path} holds a network of the class {unet.kind[:40]!r}; give one of {', '.join(_NETWORKS)}.")
    options = _options(unet, where)
    if hints.target.null_label >= 0:
        raise InputError(
            f"config.target.null_label is {hints.target.null_label}, but no label of {path} stands for none, for which "
            "its program has zeros; set it to -1."
        )
    known = {field.name for field in dataclasses.fields(_NETWORKS[unet.kind])}
    net = _NETWORKS[unet.kind](**{name: value for name, value in options.items() if name in known})
    network = _denoiser(ema, net, where)
    _check_program(modules, net, where)
    state = _state(modules, where, path.stat().st_size, net)
    return Target(
        network=network,
        diffusion=Diffusion(trained_betas=network.betas, prediction_type="x0"),
        channels=net.out_channels,
        num_labels=net.label_dim,
        # A model that was never trained without its label answers zeros at random, and its program samples all labels.
        null_label=not net.label_dim or options["label_dropout"] > 0,
        size=(net.img_resolution, net.img_resolution),
        origin=Origin(format=FORMAT, weights=(path,), read_params=lambda: {"net": _params(state, net, where)}),
    )


def _denoiser(ema: Module, net: nn.Module, where: str) -> nn.Module:
    """The preconditioned network, with the attributes of the file's."""
    cls = _DENOISERS[ema.kind]
    own = {field.name for field in dataclasses.fields(cls)} & {"sigma_data", "beta_d", "beta_min", "M"}
    values = {name: ema.state.get(name) for name in (*sorted(own), "sigma_min", "sigma_max")}
    for name, value in values.items():
        number = type(value) in (int, float) and (value > 0 or (name == "sigma_min" and value == 0))
        if not number or (value > _MOST and name != "sigma_max"):
            raise InputError(f"{where} has {name} = {_shown(value)}, which is not possible; {REPLACE}.")
    low, high = max(_ENDS[0], values.pop("sigma_min")), min(_ENDS[1], values.pop("sigma_max"))
    if low >= high:
        raise InputError(f"{where} supports no noise between {_ENDS[0]} and {_ENDS[1]}; {_FIX}.")
    return cls(net=net, sigma_min=float(low), sigma_max=float(high), **values)


def _options(unet: Module, where: str) -> dict[str, Any]:
    """The arguments that the network was made with.

    Raises:
      InputError: if one is unknown, or of another kind or size than the program's can be.
    """
    given, cls = unet.state.get("_init_kwargs"), _NETWORKS[unet.kind]
    if not isinstance(given, dict) or unet.state.get("_init_args") not in ((), []):
        raise InputError(f"{where} does not say the options of its {unet.kind}; {_FIX}.")
    fields = dataclasses.fields(cls)
    defaults: dict[str, Any] = {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in fields
        if field.name not in ("dtype", "remat", "parent", "name")
    }
    defaults |= _OTHERS
    options = {**defaults}
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in defaults:
            raise InputError(f"{where} has the option {name[:40]!r}, which a {unet.kind} does not know; {_FIX}.")
        if not _possible(name, value, defaults[name]):
            raise InputError(f"{where} has {name} = {_shown(value)}, which is not possible; {REPLACE}.")
        options[name] = value
    sides = {name: options[name] for name in ("img_resolution", "in_channels", "out_channels")}
    if any(type(value) is not int for value in sides.values()) or sides["in_channels"] != sides["out_channels"]:
        raise InputError(f"{where} has {_shown(sides)}; give a model whose input and output are one image.")
    if options["img_resolution"] % 2 ** (len(options["channel_mult"]) - 1):
        raise InputError(
            f"{where} has img_resolution = {options['img_resolution']}, which can't be halved "
            f"{len(options['channel_mult']) - 1} times; {REPLACE}."
        )
    return options


def _possible(name: str, value: Any, default: Any) -> bool:
    """Whether an option can have a value; the default, None if it has none, shows of which kind it is."""
    if name in _WORDS:
        return value in _WORDS[name]
    if name in ("dropout", "label_dropout"):
        return type(value) in (int, float) and 0 <= value < 1
    if isinstance(default, tuple):
        kinds, fewest = ((int, float), 2) if name == "resample_filter" else ((int,), 1)
        fewest = 0 if name == "attn_resolutions" else fewest
        if type(value) is not tuple or not fewest <= len(value) <= _MOST_LEVELS:
            return False
        if not all(type(number) in kinds and 0 < number <= _MOST for number in value):
            return False
        return name != "resample_filter" or len(value) % 2 == 0
    fewest = 0 if name in ("label_dim", "augment_dim") else 1
    return type(value) is int and fewest <= value <= (_MOST_BLOCKS if name == "num_blocks" else _MOST)


def _modules(root: Module, where: str) -> dict[str, Module]:
    """All modules by their names, the root's own being ""; each once, so that no file takes forever."""
    found, seen, waiting = {}, set(), [("", root)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            raise InputError(f"{where} holds a module inside itself, or twice; {REPLACE}.")
        seen.add(id(module))
        found[name] = module
        for part, child in _entries(module, "_modules", Module, where):
            waiting.append((f"{name}.{part}" if name else part, child))
    return found


def _entries(module: Module, attribute: str, kind: type, where: str) -> Iterator[tuple[str, Any]]:
    """The parts of a module, without those that are None."""
    values = module.state.get(attribute, {})
    if not isinstance(values, dict) or not all(
        name.isprintable() and (value is None or isinstance(value, kind)) for name, value in values.items()
    ):
        raise InputError(f"{where} holds a {module.kind[:40]!r} whose {attribute} are something else; {REPLACE}.")
    return ((name, value) for name, value in values.items() if value is not None)


def _check_program(modules: Mapping[str, Module], net: Any, where: str) -> None:
    """Raises InputError if attributes of the modules are not those that NVlabs' program gives them.

    What forks change in the source text would otherwise be read as another model without a word.
    """
    song = isinstance(net, SongUNet)
    fixed = {
        "GroupNorm": {"eps": 1e-6 if song else 1e-5},
        "PositionalEmbedding": {"endpoint": song, "max_positions": 10000},
        "UNetBlock": {"skip_scale": math.sqrt(0.5) if song else 1, "adaptive_scale": not song},
    }
    for name, module in modules.items():
        expected = dict(fixed.get(module.kind, {}))
        if module.kind == "UNetBlock" and f"{name}.qkv" in modules:
            channels = module.state.get("out_channels")
            channels = channels if type(channels) is int else 0
            expected["num_heads"] = 1 if song else channels // HEAD_CHANNELS
        for attribute, value in expected.items():
            given = module.state.get(attribute, value)
            number = type(given) in (bool, int, float) and abs(given) <= _MOST
            if not number or not math.isclose(given, value, rel_tol=1e-6):
                raise InputError(
                    f"{where} has {name[:80]}.{attribute} = {_shown(given)}, but NVlabs' {type(net).__name__} has "
                    f"{value:g}: another program wrote it; {_FIX}."
                )


def _state(modules: Mapping[str, Module], where: str, most_bytes: int, net: Any) -> dict[str, np.ndarray]:
    """The network's tensors, by the names of its Flax module's parameters as a state dict has them.

    Raises:
      InputError: if they are more than the file has bytes, or a filter is not that of the options.
    """
    state = {}
    for name, module in modules.items():
        for attribute in ("_parameters", "_buffers"):
            for part, value in _entries(module, attribute, np.ndarray, where):
                state[f"{name}.{part}".removeprefix("model.")] = value
    if sum(value.nbytes for value in state.values()) > most_bytes:
        raise InputError(f"{where} names the same numbers as several tensors; {REPLACE}.")
    taps = np.asarray(getattr(net, "resample_filter", (1, 1)), np.float64)
    expected = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    for name in [name for name in state if name.endswith(".resample_filter")]:
        value = state.pop(name)
        if value.shape != expected.shape or not np.allclose(value, expected, rtol=1e-6):
            raise InputError(f"{where} has a {name[:80]} that is not the one of its options; {_FIX}.")
    state.pop("map_augment.weight", None)  # adds nothing to images that are not augmented
    names = {name: name.replace("enc.", "enc_", 1).replace("dec.", "dec_", 1) for name in state}
    names["map_noise.freqs"] = "map_noise.weight"
    return arrays({names[name]: value for name, value in state.items()}, where)


def _params(state: dict[str, np.ndarray], net: Any, where: str) -> Any:
    shapes = parameters.described_shapes(where, net, net.out_channels, net.img_resolution)
    return parameters.from_state_dict(
        state, shapes, where, model=f"the {type(net).__name__} that it describes", fix=_FIX
    )


def _shown(value: Any) -> str:
    """A value of the file, for a message: numbers and text, never deep."""
    simple = (bool, int, float, str, type(None))
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_shown(part)}" for name, part in value.items())
    if isinstance(value, tuple) and all(isinstance(part, simple) for part in value):
        return repr(list(value))[:80]
    return repr(value)[:80] if isinstance(value, simple) else f"a {type(value).__name__}"
