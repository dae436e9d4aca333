"""Reads pickled networks without running anything of the file, by an interpreter of its own for few instructions.

Python's unpickler calls whatever a file names. Here the instructions are only decoded, by the standard library, and a
name of the file stands for a function of this module, which makes numbers, text, lists, dicts and arrays; any other
name, and any other instruction, is refused. Source text, as the persistent classes of NVlabs' programs hold it, is
dropped unread. Dicts have text as keys, so that no key is compared or hashed that the file could make deep.
"""

import dataclasses
import io
import json
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.errors import InputError

# How PyTorch writes a storage into a pickle: three pickles in front of the storage's own (legacy torch.save).
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")
_STORAGES = {"torch.DoubleStorage": "<f8", "torch.FloatStorage": "<f4", "torch.HalfStorage": "<f2"}
_SCALARS = ("f8", "f4", "f2", "i8", "i4", "b1")
_MOST_AXES = 8
# Many times those of a large network: an instruction of one byte can make an object of hundreds.
_MOST_INSTRUCTIONS = 2**21


class _Refused(ValueError):
    """What the file holds that is not read."""


class _Damaged(ValueError):
    """The file is not what a pickler writes."""


@dataclasses.dataclass(eq=False)
class Module:
    """A module of a network: the name of its class, and its attributes.

    Attributes:
      kind: the name.
      state: the attributes, such as _parameters, _buffers and _modules.
    """

    kind: str
    state: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class _Name:
    """A name that the file gives; nothing is imported for it."""

    full: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    values: np.ndarray = dataclasses.field(repr=False)


def is_plain_pickle(path: Path) -> bool:
    """Whether a file is a pickle of protocol 2 or later, and not what torch.save writes."""
    with path.open("rb") as file:
        head = file.read(2 + len(_LEGACY))
    return head[:1] == b"\x80" and head[2:] != _LEGACY


def read(path: Path) -> Any:
    """Reads a pickle of numbers, text, lists, dicts, tensors (as arrays) and modules (as Module).

    Raises:
      InputError: if the file holds anything else, or is damaged.
    """
    try:
        return _Machine(_CALLS, _CLASSES).run(io.BytesIO(path.read_bytes()))
    except _Refused as error:
        raise InputError(
            f"{path} holds {error}, which a network's weights do not need; loading a pickle can run any code in it, so "
            "nothing of it was run; give a file as the training program wrote it, or the weights as safetensors."
        ) from None
    except Exception:  # the file decides what goes wrong
        raise InputError(
            f"{path} is no whole pickle of a network; replace it with a whole copy of the original."
        ) from None


class _Machine:
    """Runs a pickle's instructions on a stack (see the comments of the standard library's pickletools).

    Args:
      calls: name -> a function of this module that makes what the name, called, would return.
      classes: name -> a function that makes an object of the class without its attributes.
      persistent: makes an object from what a persistent reference holds; None: there are no such references.
      others: further names that a pickle may hold.
    """

    def __init__(
        self,
        calls: dict[str, Callable[..., Any]],
        classes: dict[str, Callable[[], Any]],
        persistent: Callable[[Any], Any] | None = None,
        others: tuple[str, ...] = (),
    ) -> None:
        self.calls, self.classes, self.persistent = calls, classes, persistent
        self.names = {*calls, *classes, *others}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """The object of the pickle at the stream's place, which moves behind it."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if count == _MOST_INSTRUCTIONS:
                raise _Refused(f"more than {_MOST_INSTRUCTIONS} instructions")
            self.step(opcode.name, argument)
        raise _Damaged

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name]())
        elif name in _PUT:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GET:
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            stack.append(self.popped(_TUPLES[name]))
        elif name not in ("PROTO", "FRAME"):
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise _Refused(f"the instruction {name}")
            method(argument)

    def popped(self, count: int) -> tuple[Any, ...]:
        """The topmost values, from the lowest."""
        if count > len(self.stack):
            raise _Damaged
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def marked(self) -> tuple[Any, ...]:
        """The values above the last mark."""
        return self.popped(len(self.stack) - self.marks.pop())

    def top(self, kind: type) -> Any:
        """The topmost value, which has to be exactly of this type."""
        if type(self.stack[-1]) is not kind:
            raise _Damaged
        return self.stack[-1]

    def do_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def do_tuple(self, _: Any) -> None:
        self.stack.append(self.marked())

    def do_append(self, _: Any) -> None:
        values = self.popped(1)
        self.top(list).extend(values)

    def do_appends(self, _: Any) -> None:
        values = self.marked()
        self.top(list).extend(values)

    def do_setitem(self, _: Any) -> None:
        values = self.popped(2)
        self.top(dict).update(_pairs(values))

    def do_setitems(self, _: Any) -> None:
        values = self.marked()
        self.top(dict).update(_pairs(values))

    def do_additems(self, _: Any) -> None:
        values = self.marked()
        self.top(set).update(_texts(values))

    def do_global(self, argument: str) -> None:
        self.push_name(argument.replace(" ", ".", 1))

    def do_stack_global(self, _: Any) -> None:
        self.push_name(".".join(_texts(self.popped(2))))

    def push_name(self, full: str) -> None:
        if full not in self.names:
            raise _Refused(json.dumps(full[:80]))
        self.stack.append(_Name(full))

    def do_reduce(self, _: Any) -> None:
        function, arguments = self.popped(2)
        make = self.calls[_checked(function, _Name).full]
        self.stack.append(make(*_checked(arguments, tuple)))

    def do_newobj(self, _: Any) -> None:
        cls, arguments = self.popped(2)
        make = self.classes[_checked(cls, _Name).full]
        if _checked(arguments, tuple):
            raise _Damaged
        self.stack.append(make())

    def do_build(self, _: Any) -> None:
        (state,) = self.popped(1)
        if isinstance(self.stack[-1], np.dtype):
            if state[1] not in ("<", "|"):  # the order of bytes
                raise _Refused("numbers in big-endian order")
            return
        self.top(Module).state = _checked(state, dict)

    def do_binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise _Refused("a reference to something outside of it")
        self.stack.append(self.persistent(*self.popped(1)))


_ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_ARGUMENTS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_VALUES: dict[str, Callable[[], Any]] = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
_VALUES |= {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_PUT, _GET = {"MEMOIZE", "BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _checked(value: Any, kind: type) -> Any:
    """A value that has to be exactly of this type."""
    if type(value) is not kind:
        raise _Damaged
    return value


def _texts(values: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(_checked(value, str) for value in values)


def _pairs(values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_texts(values[::2]), values[1::2], strict=True))


def _persistent_object(meta: Any) -> Module:
    """An object of a class that the file holds as source text: what the text says is not asked."""
    if _checked(meta, dict).get("type") != "class":
        raise _Damaged
    return Module(_checked(meta["class_name"], str), _checked(meta["state"], dict))


def _storage(content: Any) -> _Storage:
    """A storage as PyTorch writes it: four pickles, the number of values, and the values."""
    stream = io.BytesIO(_checked(content, bytes))
    kinds: list[tuple[Any, ...]] = []

    def described(reference: Any) -> None:
        kinds.append(reference)

    names = tuple(_STORAGES)
    magic, protocol, system, _, keys = (_Machine({}, {}, described, names).run(stream) for _ in range(5))
    ((word, kind, key, _, count, *view),) = kinds
    if (magic, protocol, system["little_endian"], word, keys, view) not in [
        (_MAGIC, _PROTOCOL, True, "storage", [key], rest) for rest in ([], [None])
    ]:
        raise _Damaged
    stored = int.from_bytes(stream.read(8), "little")
    values = np.frombuffer(content, _STORAGES[_checked(kind, _Name).full], offset=stream.tell())
    if not count == stored == len(values):
        raise _Damaged
    return _Storage(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> np.ndarray:
    """A view of a storage, of values that are all different ones of it."""
    values = _checked(storage, _Storage).values
    numbers = [_checked(n, int) for n in (offset, *_checked(size, tuple), *_checked(stride, tuple))]
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    outside = min(numbers) < 0 or last >= len(values) or math.prod(size) > len(values)
    if outside or hooks or len(size) > _MOST_AXES:
        raise _Damaged
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def _parameter(values: Any, requires_grad: Any, hooks: Any) -> np.ndarray:
    if hooks:
        raise _Damaged
    return _checked(values, np.ndarray)


def _scalar(kind: Any, content: Any) -> Any:
    (value,) = np.frombuffer(_checked(content, bytes), kind if isinstance(kind, np.dtype) else _checked(kind, np.dtype))
    return value.item()


def _scalar_type(name: Any, align: Any, copy: Any) -> np.dtype:
    if name not in _SCALARS:
        raise _Refused("numbers of another type than weights are")
    return np.dtype(name)


# By their names in files: of NVlabs' programs, and of the libraries of any version since they exist.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "collections.OrderedDict": lambda: {},
    "numpy.dtype": _scalar_type,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
_CLASSES: dict[str, Callable[[], Any]] = {
    "dnnlib.util.EasyDict": dict,
    "torch.nn.modules.container.ModuleDict": lambda: Module("ModuleDict"),
    "torch.nn.modules.container.ModuleList": lambda: Module("ModuleList"),
}
