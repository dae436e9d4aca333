"""Pickles are read without running anything of them: what they may hold, and a sentence for each thing else."""

import contextlib
import pickle
import struct
import tracemalloc

import foreign
import numpy as np
import pytest
from made_pickles import MAGIC, Call, Name, New, Outside, Raw, code, dumps, persistent, scalar, storage, tensor

from side_jax.errors import InputError
from side_jax.targets.inert_pickle import Module, is_plain_pickle, read

RUN = "nothing of it was run"


def refused(path, *words):
    """Reads, expects one sentence, and looks for words in it."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert message.isprintable()
    for word in words:
        assert word in message, message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pkl"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_the_real_pickler_is_read(path, protocol):
    shared = ["again", 1.5]
    data = {"a": [1, -2, 2**40, True, None, "x" * 300], "b": (1.5, (), (2,), (1, 2, 3, 4)), "c": shared, "d": shared}
    data |= {"e": {"f": {}}} | ({"g": b"bytes", "h": b"x" * 300, "s": {"t"}} if protocol > 3 else {})
    path.write_bytes(pickle.dumps(data, protocol))
    assert is_plain_pickle(path)
    found = read(path)
    assert found == data
    assert found["c"] is found["d"]


@pytest.mark.parametrize("kind", ["torch.FloatStorage", "torch.DoubleStorage", "torch.HalfStorage"])
def test_a_tensor_is_a_view_of_its_storage(path, kind):
    dtype = {"F": np.float32, "D": np.float64, "H": np.float16}[kind[6]]
    values = np.arange(24, dtype=dtype)
    view = tensor([0.0], content=storage(values, kind), offset=2, size=(2, 3), stride=(1, 7))
    path.write_bytes(dumps({"all": tensor(np.ones((2, 3, 1, 1))), "view": view}))
    found = read(path)
    assert found["view"].dtype == dtype
    np.testing.assert_array_equal(found["view"], [[2, 9, 16], [3, 10, 17]])
    np.testing.assert_array_equal(found["all"], np.ones((2, 3, 1, 1)))


def test_modules_are_their_names_and_attributes(path):
    inner = New("torch.nn.modules.container.ModuleDict", {"_modules": Call("collections.OrderedDict")})
    value = persistent("Net", {"child": inner, "scale": scalar(0.5), "newer": scalar(2.5, "_core")})
    path.write_bytes(dumps([value, New("dnnlib.util.EasyDict"), New("torch.nn.modules.container.ModuleList")]))
    net, options, empty = read(path)
    assert (type(net), net.kind, net.state["scale"], net.state["newer"]) == (Module, "Net", 0.5, 2.5)
    assert (net.state["child"].kind, net.state["child"].state) == ("ModuleDict", {"_modules": {}})
    assert (options, empty.kind, empty.state) == ({}, "ModuleList", {})


def test_source_text_is_dropped_unread(path, tmp_path):
    """Whatever it says: hostile, or no Python at all."""
    made = tmp_path / "made"
    for source in (f"import os; os.mkdir({str(made)!r})", "(", b"\x00", None, 5):
        path.write_bytes(dumps(persistent("EDMPrecond", {"a": 1}, source)))
        found = read(path)
        assert (found.kind, found.state) == ("EDMPrecond", {"a": 1})
        assert not made.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["alone", "among others", "in a module"])
def test_a_hostile_object_is_named_and_not_made(path, tmp_path, protocol, place):
    made = tmp_path / "made"
    value = foreign.Hostile(made)
    if place == "in a module":
        hostile = pickle.dumps(value, protocol)[2:-1]
        frame = hostile[9:] if protocol > 3 else hostile
        path.write_bytes(dumps(persistent("Net", {"a": 1, "b": Raw(frame)})))
    else:
        path.write_bytes(pickle.dumps(value if place == "alone" else {"a": 1.0, "b": value}, protocol))
    refused(path, '.mkdir"', RUN)
    assert not made.exists()


COMMAND = ("echo run > made",)
STREAM = code(COMMAND)
HOSTILE = {
    "os.system": Call("os.system", COMMAND),
    "builtins.eval": Call("builtins.eval", ("1",)),
    "builtins.exec": Call("builtins.exec", ("1",)),
    "builtins.getattr": Call("builtins.getattr", (Name("os.path"), "system")),
    "builtins.__import__": Call("builtins.__import__", ("os",)),
    "subprocess.Popen": New("subprocess.Popen"),
    "_codecs.encode": Call("_codecs.encode", ("\x00", "latin1")),
    "copyreg._reconstructor": Call("copyreg._reconstructor", (Name("os.system"), Name("builtins.object"), None)),
    "copyreg.__newobj__": Call("copyreg.__newobj__", (Name("builtins.object"),)),
    "copyreg.add_extension": Call("copyreg.add_extension", ("os", "system", 1)),
    "numpy.core.multiarray._reconstruct": Call(
        "numpy.core.multiarray._reconstruct", (Name("numpy.ndarray"), (0,), b"b")
    ),
    "numpy.load": Call("numpy.load", ("x.npy",)),
    "torch.load": Call("torch.load", ("x.pt",)),
    "torch.hub.load": Call("torch.hub.load", ("x", "y")),
    "torch.FloatStorage": Name("torch.FloatStorage"),  # only where a storage is described
    "torch.jit._script.unpackage_script_module": Name("torch.jit._script.unpackage_script_module"),
    "collections.OrderedDict.__init__.__globals__": Raw(
        code("collections") + code("OrderedDict.__init__.__globals__") + b"\x93"
    ),
    "torch_utils.persistence._reconstruct_persistent_obj.__globals__": Raw(
        code("torch_utils.persistence") + code("_reconstruct_persistent_obj.__globals__") + b"\x93"
    ),
    "the instruction INST": Raw(b"(" + code(COMMAND[0]) + b"ios\nsystem\n"),
    "the instruction OBJ": Raw(b"(" + code("builtins.eval") + b"o"),
    "the instruction EXT1": Raw(b"\x82\x01"),
    "the instruction EXT4": Raw(b"\x84\x01\x00\x00\x00"),
    "the instruction NEWOBJ_EX": Raw(code("builtins.eval") + code(()) + code({}) + b"\x92"),
    "the instruction NEXT_BUFFER": Raw(b"\x97"),
    "the instruction BYTEARRAY8": Raw(b"\x96" + bytes(8)),
    "the instruction PERSID": Raw(b"Pos.system\n"),
    "the instruction LONG4": Raw(b"\x8b\x01\x00\x00\x00\x05"),
    "a reference to something outside": Outside(("storage", "x", "0", "cpu", 1, None)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_other_name_and_instruction_is_refused(path, tmp_path, monkeypatch, name):
    """Alone, in a module's attributes, and where a storage is described, whose bytes are pickles too."""
    monkeypatch.chdir(tmp_path)
    values = np.zeros(1, np.float32)
    for value in (HOSTILE[name], {"ema": persistent("EDMPrecond", {"x": [HOSTILE[name]]})}):
        path.write_bytes(dumps(value))
        refused(path, name, RUN)
    if name not in ("torch.FloatStorage", "a reference to something outside"):
        for changes in ({"keys": [HOSTILE[name]]}, {"key": HOSTILE[name]}, {"reference": HOSTILE[name]}):
            path.write_bytes(dumps(tensor(values, content=storage(values, **changes))))
            refused(path, name, RUN)
    assert not (tmp_path / "made").exists()


def test_names_that_are_allowed_make_only_what_they_should(path):
    """With other arguments or attributes, or in another place, they are damage."""
    view, hooks = "torch._utils._rebuild_tensor_v2", Call("collections.OrderedDict")
    base = Call("torch.storage._load_from_bytes", (storage(np.zeros(4, np.float32)),))
    easy, container = New("dnnlib.util.EasyDict"), "torch.nn.modules.container.ModuleDict"
    for value in (
        Call("collections.OrderedDict", ([("a", 1)],)),
        Call("dnnlib.util.EasyDict"),
        New("collections.OrderedDict"),
        New(container, ["_modules"]),
        New(container, (None, {"slot": 1})),
        Raw(code(easy) + code({"__class__": 1}) + b"b"),
        Raw(code("text") + code({"a": 1}) + b"b"),
        Raw(code(Name("collections.OrderedDict")) + code({"a": 1}) + b"b"),
        Raw(code(Name(container)) + code([]) + b"R"),
        Raw(code(Name(container)) + code((1,)) + b"\x81"),
        Raw(code("os.system") + code(COMMAND) + b"R"),
        Call("torch_utils.persistence._reconstruct_persistent_obj", ({"type": "function"},)),
        Call("torch_utils.persistence._reconstruct_persistent_obj", (easy,)),
        Call("torch_utils.persistence._reconstruct_persistent_obj", (5,)),
        persistent("Net", [1]),
        persistent(["Net"], {}),
        Call("torch._utils._rebuild_parameter", (easy, False, hooks)),
        Call("torch._utils._rebuild_parameter", (tensor([1.0]), False, {"hook": 1})),
        Call(view, (tensor([1.0]), 0, (1,), (1,), False, hooks)),
        Call(view, (base, 0, (1,), (1,), False, {"hook": 1})),
        Call(view, (base, 0, [4], [1], False, hooks)),
        Call(view, (base, 0, (4,), (1,), False, hooks, {"conj": True})),
        Call("numpy.core.multiarray.scalar", ("f8", bytes(8))),
        Call("numpy.core.multiarray.scalar", (Call("numpy.dtype", ("f8", False, True)), bytes(4))),
    ):
        path.write_bytes(dumps(value))
        refused(path, "is no whole pickle of a network")
    for value in (Call("numpy.dtype", ("O8", False, True)), Call("numpy.dtype", ([("a", "f8")], False, True))):
        path.write_bytes(dumps(value))
        refused(path, "numbers of another type", RUN)
    path.write_bytes(dumps(Raw(code(Call("numpy.dtype", ("f8", False, True))) + code((3, ">", None)) + b"b")))
    refused(path, "big-endian")


FOUR = np.arange(4, dtype=np.float32)
HUGE = 2**40


@pytest.mark.parametrize(
    "value",
    [
        tensor(FOUR, size=(5,)),
        tensor(FOUR, offset=1),
        tensor(FOUR, offset=-1, size=(1,)),
        tensor(FOUR, size=(2,), stride=(-1,)),
        tensor(FOUR, size=(-1, -4), stride=(1, 1)),
        tensor(FOUR, size=(2, 2), stride=(1,)),
        tensor(FOUR, size=(2, 2), stride=(3, 1)),
        tensor(FOUR, size=(True,), stride=(1,)),
        tensor(FOUR, size=(1.0,), stride=(1,)),
        tensor(FOUR, size=(1,) * 9, stride=(1,) * 9),
        tensor(FOUR, content=b""),
        tensor(FOUR, content=storage(FOUR, count=3)),
        tensor(FOUR, content=storage(FOUR, count=5)),
        tensor(FOUR, content=storage(FOUR, end=b"more")),
        tensor(FOUR, content=storage(FOUR)[:-1]),
        tensor(FOUR, content=storage(FOUR, keys=["1"])),
        tensor(FOUR, content=storage(FOUR, keys=[])),
        tensor(FOUR, content=storage(FOUR, reference=("module", Name("torch.FloatStorage"), "0", "cpu", 4, None))),
        tensor(
            FOUR, content=storage(FOUR, reference=("storage", Name("torch.FloatStorage"), "0", "cpu", 4, ("0", 0, 1)))
        ),
        tensor(FOUR, content=storage(FOUR, reference=("storage", "torch.FloatStorage", "0", "cpu", 4, None))),
        tensor(
            FOUR,
            content=storage(FOUR).replace(b"X\x0d\x00\x00\x00little_endian\x88", b"X\x0d\x00\x00\x00little_endian\x89"),
        ),
        tensor(FOUR, content=dumps(MAGIC + 1) + storage(FOUR)[len(dumps(MAGIC)) :]),
    ],
)
def test_tensors_outside_of_their_storages_are_refused(path, value):
    path.write_bytes(dumps(value))
    refused(path, "no whole pickle")


def deep(levels):
    return Raw(b")" + b"\x85" * levels)


@pytest.mark.parametrize(
    "value",
    [
        Raw(b"\x8e" + struct.pack("<Q", 2**62)),  # bytes, and text, of so many
        Raw(b"\x8d" + struct.pack("<Q", 2**62)),
        Raw(b"B" + struct.pack("<I", 2**32 - 1)),
        Raw(b"\x95" + struct.pack("<Q", 2**62) + b"\x8e" + struct.pack("<Q", 2**62)),
        Raw(b"r" + struct.pack("<I", 2**32 - 1)),  # a memo without a value
        tensor(FOUR, size=(HUGE,), stride=(0,)),
        tensor(FOUR, size=(HUGE, 0), stride=(HUGE, 1)),
        tensor(FOUR, content=storage(FOUR, count=HUGE)),
        Raw(b"}" + code(deep(10**5)) + b"Ns"),  # a key whose hash is deep
        Raw(b"\x8f(" + code(deep(10**5)) + b"\x90"),
        Raw(b"}" + code((1, 2)) + b"Ns"),
        tensor(FOUR, content=storage(FOUR, keys=[deep(10**5)], key=deep(10**5))),
        Raw(b"t"),
        Raw(b"((" + b"t" * 3),
        Raw(b"R"),
        Raw(b"(e"),
        Raw(b"]u"),
    ],
)
def test_bombs_are_refused_in_little_memory(path, value):
    path.write_bytes(dumps(value))
    tracemalloc.start()
    refused(path, "no whole pickle")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20


def test_instructions_that_make_more_than_they_are_long_are_counted(path, monkeypatch):
    monkeypatch.setattr("side_jax.targets.inert_pickle._MOST_INSTRUCTIONS", 100)
    path.write_bytes(dumps(Raw(b"\x8f" * 99)))
    read(path)
    path.write_bytes(dumps(Raw(b"\x8f" * 100)))
    refused(path, "more than 100 instructions", RUN)


def test_what_is_deep_or_inside_itself_is_only_held(path):
    """A billion laughs are few lists; a list may hold itself."""
    for value in (
        deep(10**5),
        Raw(b"]" + b"\x94h\x00a"),
        Raw(b"]" + b"".join(b"\x94](h%ch%ce" % (i, i) for i in range(99))),
    ):
        path.write_bytes(dumps(value))
        read(path)


def test_a_damaged_file_is_always_one_sentence(path):
    """Cut anywhere, or with any byte changed: never another error, never a name that is not known."""
    whole = dumps({"ema": persistent("Net", {"w": tensor(FOUR), "s": scalar(0.5), "m": New("dnnlib.util.EasyDict")})})
    for end in range(0, len(whole), 2):
        path.write_bytes(whole[:end])
        refused(path)
    rng = np.random.default_rng(0)
    for place, value in enumerate(rng.integers(0, 256, len(whole))):
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            read(path)


def test_only_pickles_of_a_known_protocol_that_are_not_pytorchs_are_taken_for_plain(path):
    for content, plain in (
        (dumps(1), True),
        (dumps(MAGIC), False),
        (pickle.dumps(MAGIC, 2), False),
        (pickle.dumps(MAGIC, 0), False),
        (b"PK\x03\x04", False),
        (b"", False),
        (b"\x80", True),
    ):
        path.write_bytes(content)
        assert is_plain_pickle(path) == plain
