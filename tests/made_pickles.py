"""Pickles written by their instructions, good and hostile, without the libraries that their names are of."""

import dataclasses
import struct
from typing import Any

import numpy as np

from side_jax.targets.parameters import to_state_dict

MAGIC = 0x1950A86A20F9469CFC6C
SOURCE = "raise SystemExit('the source text was run')"


class Node:
    """What has instructions of its own."""


@dataclasses.dataclass
class Name(Node):
    """A function or a class, by its module and name."""

    full: str


@dataclasses.dataclass
class Call(Node):
    function: str
    arguments: tuple = ()


@dataclasses.dataclass
class New(Node):
    """An object without arguments, and its attributes."""

    cls: str
    state: Any = None


@dataclasses.dataclass
class Outside(Node):
    """A persistent reference."""

    reference: Any


@dataclasses.dataclass
class Raw(Node):
    """Instructions as they are, which leave one value."""

    code: bytes


def code(value):
    """The instructions that leave a value on the stack."""
    match value:
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int() if abs(value) < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case set():
            return b"\x8f(" + b"".join(map(code, value)) + b"\x90"
        case dict():
            return b"}(" + b"".join(code(item) for pair in value.items() for item in pair) + b"u"
        case Name(full):
            module, _, name = full.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return code(Name(function)) + code(arguments) + b"R"
        case New(cls, state):
            return code(Name(cls)) + b")\x81" + (b"" if state is None else code(state) + b"b")
        case Outside(reference):
            return code(reference) + b"Q"
        case Raw(instructions):
            return instructions
    raise TypeError(value)


def dumps(value):
    return b"\x80\x04" + code(value) + b"."


def storage(values, kind="torch.FloatStorage", count=None, reference=(), key="0", keys=None, end=b""):
    """A storage as torch.save wrote it before it wrote archives."""
    count = len(values) if count is None else count
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    described = Outside(reference or ("storage", Name(kind), key, "cpu", count, None))
    heads = b"".join(dumps(value) for value in (MAGIC, 1001, system, described, [key] if keys is None else keys))
    return heads + struct.pack("<q", count) + values.tobytes() + end


def tensor(values, **changes):
    """A parameter; changes are of its storage's bytes, its offset, size or strides."""
    values = np.ascontiguousarray(values, np.float32)
    stride = tuple(step // values.itemsize for step in values.strides)
    parts = {"content": storage(values.reshape(-1)), "offset": 0, "size": values.shape, "stride": stride} | changes
    base = Call("torch.storage._load_from_bytes", (parts.pop("content"),))
    hooks = Call("collections.OrderedDict")
    view = Call("torch._utils._rebuild_tensor_v2", (base, *parts.values(), False, hooks))
    return Call("torch._utils._rebuild_parameter", (view, False, hooks))


def persistent(name, state, source=SOURCE):
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", (meta,))


def scalar(value, package="core"):
    """A float64 of NumPy's, of before its version 2 or since."""
    kind = Raw(code(Call("numpy.dtype", ("f8", False, True))) + code((3, "<", None, None, None, -1, -1, 0)) + b"b")
    return Call(f"numpy.{package}.multiarray.scalar", (kind, struct.pack("<d", value)))


def module(kind, values, path=(), **state):
    """A module of named arrays or nodes, whose names have dots where modules begin."""
    parts, own = {}, {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = value
        else:
            own[name] = value if isinstance(value, Node) else tensor(value)
    children = {name: module("Part", inner, (*path, name)) for name, inner in parts.items()}
    attributes = {"_parameters": own, "_buffers": {}, "_modules": children, "_non_persistent_buffers_set": set()}
    if path and path[-1] in ("enc", "dec"):
        return New("torch.nn.modules.container.ModuleDict", attributes)
    return persistent(kind, attributes | state)


def snapshot(net, params, kind="EDMPrecond", options=None, more=None, extra=None):
    """What NVlabs' program pickles, of a Flax network.

    Args:
      net: a SongUNet or DhariwalUNet.
      params: its parameters.
      kind: the class around it.
      options: changes of the arguments of the network.
      more: changes of the attributes of the class around it.
      extra: more arrays or nodes by name, as of the state dict.
    """
    fields = {field.name for field in dataclasses.fields(net)} - {"dtype", "remat", "parent", "name"}
    given = {name: getattr(net, name) for name in sorted(fields)} | {"in_channels": net.out_channels} | (options or {})
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    state = {}
    for name, value in to_state_dict(params).items():
        state[name.replace("enc_", "enc.", 1).replace("dec_", "dec.", 1)] = value
    inner = module(type(net).__name__, state | (extra or {}), ("model",), _init_args=(), _init_kwargs=given)
    attributes = {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": scalar(0.5), "training": False}
    attributes |= {"_parameters": {}, "_buffers": {}, "_modules": {"model": inner}} | (more or {})
    return {"ema": persistent(kind, attributes), "loss_fn": persistent("EDMLoss", {"P_mean": -1.2})}
