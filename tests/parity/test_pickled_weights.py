"""Weights that PyTorch and diffusers wrote, by all their names; a pickle with more than tensors is never executed."""

import pickle
import sys
import types

import foreign
import jax
import numpy as np
import pytest
import safetensors

from parity.theirs import CONFIGS, EMAModel, UNet2DModel, random_unet, save, save_file, torch
from side_jax.errors import InputError
from side_jax.targets.diffusers_unet import from_diffusers

pytest.importorskip("safetensors.torch")
BIN, SAFE = "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(theirs, our parameters of the same) of a small U-Net."""
    theirs = random_unet(CONFIGS["scale_shift"])
    return theirs, from_diffusers(save(theirs, tmp_path_factory.mktemp("plain")))[1]


def assert_read(folder, params):
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(folder)[1], params)


@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shards", [True, False])
def test_every_name_of_theirs_is_read(pair, tmp_path, variant, safe, shards):
    theirs, params = pair
    options = {"max_shard_size": "40KB"} if shards else {}
    folder = save(theirs, tmp_path, variant=variant, safe_serialization=safe, **options)
    files = [path for path in folder.iterdir() if path.name.startswith("diffusion_pytorch_model")]
    assert (len(files) > 3) == shards
    assert_read(folder, params)


def test_their_moving_average_is_preferred(pair, tmp_path):
    theirs, params = pair
    save(random_unet(CONFIGS["scale_shift"], seed=1), tmp_path, "neighbours")
    average = EMAModel(theirs.parameters(), model_cls=UNet2DModel, model_config=theirs.config)
    average.save_pretrained(tmp_path / "unet_ema")
    assert_read(tmp_path, params)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_pickled_floats_are_read_as_float32_of_the_same_values(pair, tmp_path, kind):
    """Parameters too, which know their gradients."""
    theirs, _ = pair
    folder = save(theirs, tmp_path)
    state = {name: torch.nn.Parameter(value.to(kind)) for name, value in theirs.state_dict().items()}
    (folder / SAFE).unlink()
    torch.save(state, folder / BIN)
    read = from_diffusers(folder)[1]
    save_file({name: value.detach().float() for name, value in state.items()}, folder / SAFE)
    assert_read(folder, read)


def test_a_compiled_and_parallel_model_has_longer_names(pair, tmp_path):
    theirs, params = pair
    folder = save(theirs, tmp_path)
    wrapped = torch.nn.DataParallel(torch.compile(theirs, backend="eager"))
    assert all(name.startswith("module._orig_mod.") for name in wrapped.state_dict())
    (folder / SAFE).unlink()
    torch.save(wrapped.state_dict(), folder / BIN)
    assert_read(folder, params)


@pytest.mark.parametrize(
    "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["PyTorch's", "plain"]
)
def test_a_hostile_pickle_is_never_executed(pair, tmp_path, write):
    """Alone, or among the tensors."""
    theirs, _ = pair
    folder, made = save(theirs, tmp_path / "model"), tmp_path / "made"
    (folder / SAFE).unlink()
    for value in (foreign.Hostile(made), {**theirs.state_dict(), "conv_in.bias": foreign.Hostile(made)}):
        write(value, folder / BIN)
        with pytest.raises(InputError) as caught:
            from_diffusers(folder)
        for word in (f"{folder / BIN} is not a pickled dict of tensors", "can run any code", "best as safetensors"):
            assert word in str(caught.value)
        assert "weights_only=False" not in str(caught.value)
        assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"never read", "nested", "cut"])
def test_a_pickle_of_something_else_is_refused(pair, tmp_path, content):
    theirs, _ = pair
    folder = save(theirs, tmp_path)
    (folder / SAFE).unlink()
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, folder / BIN)
    if content != "nested":
        (folder / BIN).write_bytes((folder / BIN).read_bytes()[:-1000] if content == "cut" else content)
    said = r"not a pickled dict of tensors, or is damaged.*save the U-Net's"
    if content == "nested":
        said = r"holds state_dict, which is no tensor; give a file with the model's weights alone"
    with pytest.raises(InputError, match=said):
        from_diffusers(folder)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_pickled_numbers_that_are_no_weights_are_refused(pair, tmp_path, kind):
    theirs, _ = pair
    folder = save(theirs, tmp_path)
    (folder / SAFE).unlink()
    torch.save({name: value.to(kind) for name, value in theirs.state_dict().items()}, folder / BIN)
    name = str(kind).removeprefix("torch.")
    with pytest.raises(InputError, match=f"holds .* as {name}, which can't be read.*float32, float16 or bfloat16"):
        from_diffusers(folder)


def test_without_pytorch_the_advice_works(pair, tmp_path, monkeypatch):
    theirs, params = pair
    folder = save(theirs, tmp_path)
    (folder / SAFE).unlink()
    torch.save(theirs.state_dict(), folder / BIN)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=(2, 6)))
    with pytest.raises(InputError) as caught:
        from_diffusers(folder)
    monkeypatch.undo()
    command = str(caught.value).rpartition("without running code: ")[2].removesuffix(".")
    monkeypatch.chdir(folder)
    eval(command, {"safetensors": safetensors, "torch": torch})
    assert_read(folder, params)
