"""Models on the hub: of all files of a repository those that are read, and no weights of what is refused."""

import functools
import json

import foreign
import hubs
import jax
import made_text
import numpy as np
import pytest
from hubs import refused
from safetensors.numpy import load_file, save_file

from side_jax import from_diffusers
from side_jax.targets import hub_checkpoint

pytestmark = hubs.needed
ID, STEM = "hf://me/model", "diffusion_pytorch_model"
PIPELINE = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """{file: its bytes} of a pipeline whose images are 8x8 and grey."""
    folder = tmp_path_factory.mktemp("pipeline")
    foreign.write(folder)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hubs.serving() as hub:
        hubs.connect(monkeypatch, hub.address, tmp_path / "cache")
        yield hub


def fetched(hub, files, text=ID, **options):
    """Publishes the files, fetches the id, and returns (where it lies, what was downloaded)."""
    hub.add("me/model", files)
    return hub_checkpoint.fetch(text, "", **options), sorted(hub.downloaded)


def test_a_pipeline_without_what_is_never_read(hub, pipeline):
    weights = pipeline[f"unet/{STEM}.safetensors"]
    more = {
        f"unet/{STEM}.bin": b"pickled",
        f"unet/{STEM}.fp16.safetensors": b"another variant",
        f"unet/{STEM}.onnx": b"another program's",
        **{"README.md": b"card", ".gitattributes": b"", "images/sample.png": b"picture", "model.safetensors": b"?"},
        "logs/unet/config.json": b"too deep",
    }
    folder, downloaded = fetched(hub, pipeline | more)
    assert downloaded == sorted([*PIPELINE, f"unet/{STEM}.safetensors"])
    module, params, schedule = from_diffusers(folder)
    assert (module.block_out_channels, schedule.prediction_type) == ((4, 8), "v")
    jax.tree.map(np.testing.assert_array_equal, params, foreign.random_params(foreign.TINY))
    assert (folder / f"unet/{STEM}.safetensors").read_bytes() == weights


def test_the_public_function_reads_ids(hub, pipeline):
    hub.add("me/model", pipeline)
    _, params, _ = from_diffusers(ID)
    jax.tree.map(np.testing.assert_array_equal, params, foreign.random_params(foreign.TINY))


def test_the_moving_average_comes_first(hub, pipeline):
    averaged = {name.replace("unet/", "unet_ema/"): content for name, content in pipeline.items() if "unet/" in name}
    folder, downloaded = fetched(hub, pipeline | averaged)
    assert f"unet_ema/{STEM}.safetensors" in downloaded
    assert f"unet/{STEM}.safetensors" not in downloaded
    assert from_diffusers(folder)[0] == from_diffusers(ID)[0]


@pytest.mark.parametrize("path", ["", "/unet", "/runs/7", "/runs/7/unet"])
def test_a_folder_in_a_repository(hub, pipeline, path):
    """Of a U-Net alone, the scheduler and the pipeline's other parts lie one folder higher."""
    deep = {f"runs/7/{name}": content for name, content in pipeline.items()}
    folder, downloaded = fetched(hub, pipeline | deep, ID + path)
    assert from_diffusers(folder)[2].prediction_type == "v"
    inside = [name.removeprefix("runs/7/") for name in downloaded if name.startswith("runs/7/") == ("runs" in path)]
    assert inside == sorted([*PIPELINE, f"unet/{STEM}.safetensors"])
    assert len(inside) == len(downloaded)


def test_shards_and_a_variant(hub, pipeline, tmp_path):
    (tmp_path / "whole.safetensors").write_bytes(pipeline[f"unet/{STEM}.safetensors"])
    state = load_file(tmp_path / "whole.safetensors")
    shards = {key: f"{STEM}.fp16-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
    index = f"unet/{STEM}.safetensors.index.fp16.json"
    files = {name: content for name, content in pipeline.items() if STEM not in name}
    files |= {index: json.dumps({"weight_map": shards}).encode(), f"unet/{STEM}.bin.index.json.bak": b""}
    for shard in set(shards.values()):
        save_file({key: state[key] for key in state if shards[key] == shard}, tmp_path / shard)
        files[f"unet/{shard}"] = (tmp_path / shard).read_bytes()
    folder, downloaded = fetched(hub, files | {f"unet/{STEM}-00001-of-00002.bin": b"of another index"})
    assert downloaded == sorted([*PIPELINE, index, *(f"unet/{shard}" for shard in set(shards.values()))])
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(folder)[1], foreign.random_params(foreign.TINY))
    del files[f"unet/{STEM}.fp16-00002-of-00002.safetensors"]
    refused(lambda: fetched(hub, files), "hf://me/model has no unet/", "00002-of-00002.safetensors", "lists")
    several = {f"unet/{STEM}.{name}.safetensors": b"" for name in ("one", "two")}
    refused(lambda: fetched(hub, {name: pipeline[name] for name in PIPELINE} | several), "has several weights", "unet")


def test_a_single_file_or_a_bundle(hub):
    files = {"ckpt.pt": b"pickled", "a/b.pt": b"deep"}
    files |= {"models/model.pt": b"of a bundle", "models/autoencoder.pt": b"of latents"}
    path, downloaded = fetched(hub, files, f"{ID}/a/b.pt")
    assert (path.name, path.read_bytes(), downloaded) == ("b.pt", b"deep", ["a/b.pt"])
    hub.downloaded.clear()
    folder, downloaded = fetched(hub, files, bundle="models/model.pt")
    assert downloaded == ["models/autoencoder.pt", "models/model.pt"]  # of a bundle, which may be one of latents
    assert (folder / "models/model.pt").read_bytes() == b"of a bundle"
    hub.downloaded.clear()
    refused(lambda: fetched(hub, files), f"{ID} holds neither config.json", "such as .../ckpt.pt")
    refused(lambda: fetched(hub, files, f"{ID}/b"), f"{ID}/b does not exist", "no file or folder b")
    refused(lambda: fetched(hub, {"README.md": b""}), "name a repository of a model")
    assert not hub.downloaded


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, ["a text_encoder and without a vae"]),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, ["describes a UNet2DConditionModel"]),
        ("text_encoder/config.json", None, ["pipeline with a text_encoder and without a vae"]),
    ],
)
def test_what_is_refused_is_not_downloaded(hub, pipeline, name, content, words):
    """Weights of such models can have many gigabytes."""
    files = pipeline | {name: json.dumps((json.loads(pipeline[name]) if content else {}) | (content or {})).encode()}
    if not content:
        del files["model_index.json"]
    refused(lambda: fetched(hub, files), *words)
    assert not [file for file in hub.downloaded if STEM in file]


def test_a_pipeline_of_text(hub, tmp_path):
    """With prompts all that is read, and nothing of the safety checker; without them no weights."""
    source = made_text.write(tmp_path / "source")
    files = {file.relative_to(source).as_posix(): file.read_bytes() for file in source.rglob("*.*") if file.is_file()}
    more = {"safety_checker/model.safetensors": b"", "text_encoder/pytorch_model.bin": b"", "v1-5.ckpt": b""}
    hub.add("me/model", files | more)
    refused(lambda: hub_checkpoint.fetch(ID, ""), "set config.target.prompts to a text file")
    assert not [file for file in hub.downloaded if "safetensors" in file]
    fetch = functools.partial(hub_checkpoint.fetch, ID, "", prompts="prompts.txt")
    folder = fetch()
    assert sorted({*hub.downloaded}) == sorted(files)
    assert (folder / "tokenizer" / "merges.txt").read_text() == made_text.MERGES
    del files["text_encoder/model.safetensors"]
    hub.add("me/model", files)
    refused(fetch, "hf://me/model/text_encoder has no model.safetensors")


def test_a_model_without_weights(hub, pipeline):
    files = {name: pipeline[name] for name in PIPELINE}
    refused(lambda: fetched(hub, files), "hf://me/model/unet has no diffusion_pytorch_model.safetensors")


def test_the_cache_alone(hub, pipeline):
    """As a run that is done needs it: nothing is asked, and half a model is none."""
    hub.add("me/model", pipeline)
    refused(lambda: hub_checkpoint.fetch(ID, hubs.MAIN, cached=True), "is not in the hub's cache")
    folder = hub_checkpoint.fetch(ID, hubs.MAIN)
    hub.asked.clear()
    assert hub_checkpoint.fetch(ID, hubs.MAIN, cached=True) == folder
    (folder / f"unet/{STEM}.safetensors").unlink()
    refused(
        lambda: hub_checkpoint.fetch(ID, hubs.MAIN, cached=True), "is not in the hub's cache", "hf download me/model"
    )
    assert not hub.asked
