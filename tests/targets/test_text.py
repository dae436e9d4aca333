"""Text-conditional pipelines without PyTorch: prompts as labels, a whole audit, and a sentence for what is refused."""

import json
import shutil

import adapted
import foreign
import jax
import made_text
import numpy as np
import pytest
import runs
from made_text import VOCABULARY
from safetensors.numpy import load_file, save_file

from side_jax import builders
from side_jax.diffusion.pixel_range import to_uint8
from side_jax.diffusion.sampler import sample, sample_keys
from side_jax.errors import InputError
from side_jax.models.latent import Latent
from side_jax.models.prompted import Prompted
from side_jax.sampling import shards
from side_jax.settings import Diffusion, random_streams
from side_jax.settings import Target as Section
from side_jax.stages import fit_adapters, stage_inputs, stage_table
from side_jax.targets import networks
from side_jax.targets.clip_tokens import Tokenizer
from side_jax.targets.diffusers_unet import from_diffusers
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

tokenizers = pytest.importorskip("tokenizers")

PROMPTS = "a cat\nA  CAT's 12\n"
START, END, PAD = (VOCABULARY[word] for word in ("<|startoftext|>", "<|endoftext|>", "!"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made_text.write(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def pipeline(whole, tmp_path):
    """To be damaged."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


def hints(prompts="", **options):
    return Hints(target=Section(path="model", prompts=str(prompts), **options), diffusion=Diffusion())


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(directory, prompts, *words, **options):
    """Reads, weights too, expects a refusal, and looks for words in its one sentence."""
    with pytest.raises(InputError) as caught:
        read_target(directory, hints(prompts, **options)).origin.read_params()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message, message


def test_tokens_by_hand(whole, tmp_path):
    """Lower case, merged where merges.txt says so, with both ends, padded by the token that the maps name."""
    shutil.copytree(whole / "tokenizer", tmp_path, dirs_exist_ok=True)
    texts = ["a  cat", "A\tCAT's 1", "", "cat " * 9]
    rows, cut = Tokenizer(tmp_path).encode(texts, 8)
    expected = [
        ["<|startoftext|>", "a</w>", "cat</w>", "<|endoftext|>", "!", "!", "!", "!"],
        ["<|startoftext|>", "a</w>", "cat</w>", "'", "s</w>", "1</w>", "<|endoftext|>", "!"],
        ["<|startoftext|>", "<|endoftext|>", *["!"] * 6],
        ["<|startoftext|>", *["cat</w>"] * 6, "<|endoftext|>"],
    ]
    np.testing.assert_array_equal(rows, [[VOCABULARY[word] for word in row] for row in expected])
    assert cut == [3]
    change(tmp_path / "tokenizer_config.json", added_tokens_decoder={})  # newer files: the map does not count
    assert Tokenizer(tmp_path).encode([""], 3)[0].tolist() == [[START, END, END]]
    change(tmp_path / "tokenizer_config.json", pad_token={"content": "!"})
    assert Tokenizer(tmp_path).encode([""], 3)[0].tolist() == [[START, END, PAD]]


def test_a_pipeline_of_text_is_read_with_its_prompts(whole, prompts):
    for path in (whole, whole / "unet"):
        target = read_target(path, hints(prompts))
        net = Prompted(net=made_text.NET, num_labels=2, tokens=8, width=4)
        assert target.network == Latent(net=net, autoencoder=made_text.AUTOENCODER, scaling_factor=0.5)
        assert (target.num_labels, target.null_label, target.size) == (2, True, (8, 8))
        assert target.origin.notes == ("its safety_checker is ignored: no image is blanked",)
        files = [f"{file.parent.name}/{file.name}" for file in target.origin.weights]
        tokenizer, weights = ("tokenizer/vocab.json", "tokenizer/merges.txt"), "diffusion_pytorch_model.safetensors"
        assert files == [f"unet/{weights}", "text_encoder/model.safetensors", *tokenizer, f"vae/{weights}"]
        assert networks.build(networks.describe(target.network)) == target.network
    params = target.origin.read_params()
    jax.tree.map(np.testing.assert_array_equal, params["net"]["net"], made_text.net_params())
    tokens, _ = Tokenizer(whole / "tokenizer").encode(["a cat", "a cat's 12", ""], 8)
    table = jax.jit(made_text.ENCODER.apply)({"params": made_text.encoder_params()}, tokens)
    np.testing.assert_allclose(params["net"]["prompt_embedding"], table, rtol=1e-5, atol=1e-6)


def test_more_prompts_than_are_embedded_at_once(whole, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join("cat " * (1 + i % 3) for i in range(17)))
    table = read_target(whole, hints(path)).origin.read_params()["net"]["prompt_embedding"]
    assert table.shape == (18, 8, 4)
    np.testing.assert_array_equal(table[:3], table[3:6])
    np.testing.assert_array_equal(table[15:17], table[:2])
    assert (table[17] != table[0]).any()


def test_a_tokenizer_in_one_file_is_the_same(whole, prompts, pipeline):
    expected = read_target(whole, hints(prompts)).origin.read_params()["net"]["prompt_embedding"]
    tokenizer = Tokenizer(pipeline / "tokenizer")
    tokenizer._bpe.save(str(pipeline / "tokenizer" / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (pipeline / "tokenizer" / name).unlink()
    target = read_target(pipeline, hints(prompts))
    assert target.origin.weights[2] == pipeline / "tokenizer" / "tokenizer.json"
    np.testing.assert_array_equal(target.origin.read_params()["net"]["prompt_embedding"], expected)


def test_long_prompts_are_cut_and_named(whole, prompts):
    prompts.write_text("cat\n" + "cat " * 7 + "\ncat\n" + "cats\n" * 2)
    (*_, note) = read_target(whole, hints(prompts)).origin.notes
    assert note == "1 prompt is longer than the model's 8 tokens and cut there (line 2)"
    prompts.write_text(("cat " * 7 + "\n") * 6)
    (*_, note) = read_target(whole, hints(prompts)).origin.notes
    assert note == "6 prompts are longer than the model's 8 tokens and cut there (lines 1, 2, 3, 4, 5, ...)"


def test_prompts_are_asked_for(whole, prompts, tmp_path):
    refused(whole, "", str(whole), "text_encoder", "set config.target.prompts to a text file", "one a line")
    refused(whole, tmp_path / "none.txt", "none.txt", "can't be read as text (No such file", "one a line")
    for content, words in (
        (b"", ("has no prompts; write one a line",)),
        (b" \n\n", ("has no prompts",)),
        (b"cat\n\ncat\n", ("no prompt in line 2", "remove the line", "always added")),
        (b"\xff\xfe", ("no UTF-8",)),
    ):
        prompts.write_bytes(content)
        refused(whole, prompts, str(prompts), "config.target.prompts", *words)
    prompts.write_bytes(b"\xef\xbb\xbfcat\r\na cat\r\n")
    assert read_target(whole, hints(prompts)).num_labels == 2
    refused(whole, prompts, "config.target.null_label is 0", "set it to -1", null_label=0)


def test_prompts_are_of_text_alone(pipeline, prompts):
    for name in ("text_encoder", "tokenizer", "safety_checker", "feature_extractor"):
        change(pipeline / "model_index.json", **{name: [None, None]})
    refused(pipeline, prompts, "describes a UNet2DConditionModel", "whole pipeline", "config.target.prompts")
    foreign.write(pipeline.parent / "pixels")
    refused(pipeline.parent / "pixels", prompts, "config.target.prompts is", "takes no text; leave the setting empty")
    with pytest.raises(InputError, match="text_encoder"):
        from_diffusers(made_text.write(pipeline.parent / "other"))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            ("several text encoders", "Diffusion XL"),
        ),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, ("with controlnet beside a text_encoder", "give one of")),
        ({"vae": [None, None]}, ("with a text_encoder and without a vae", "give one of")),
    ],
)
def test_other_pipelines_of_text_are_refused(pipeline, prompts, parts, words):
    change(pipeline / "model_index.json", **parts)
    refused(pipeline, prompts, f"{pipeline} is a pipeline ", *words)


def test_without_an_index_the_folders_tell(pipeline, prompts):
    (pipeline / "model_index.json").unlink()
    assert read_target(pipeline, hints(prompts)).origin.notes == ()
    (pipeline / "text_encoder_2").mkdir()
    refused(pipeline, prompts, "several text encoders")


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("unet", {"addition_embed_type": "text_time"}, ('"text_time"', "Stable Diffusion XL's", "give a model")),
        ("unet", {"_class_name": "UNet2DModel"}, ("describes a UNet2DModel", "UNet2DConditionModel alone")),
        ("unet", {"in_channels": 9}, ("in_channels = 9 and out_channels = 2", "from text alone")),
        ("unet", {"down_block_types": ["AttnDownBlock2D"]}, ('"AttnDownBlock2D"', '"CrossAttnDownBlock2D"')),
        ("unet", {"up_block_types": []}, ("lists of one length", "replace it")),
        ("unet", {"dual_cross_attention": True}, ("dual_cross_attention = true", "not supported", "false")),
        ("unet", {"encoder_hid_dim": 3}, ("encoder_hid_dim = 3", "null")),
        ("unet", {"attention_head_dim": [2, 2]}, ("2 numbers as attention_head_dim", "one for each level")),
        ("unet", {"attention_head_dim": "2"}, ('"2" as attention_head_dim', "replace it")),
        ("unet", {"attention_head_dim": 3}, ("describes no network", "cut into 3 heads", "replace it")),
        ("unet", {"layers_per_block": [1]}, ("[1] as layers_per_block",)),
        ("unet", {"cross_attention_dim": 8}, ("embeds tokens in 4 numbers", "takes 8", "same checkpoint")),
        ("unet", {"norm_num_groups": 3}, ("describes no network", "replace it")),
        ("text_encoder", {"model_type": "t5"}, ('that is "t5"', "only CLIPTextModel is read")),
        ("text_encoder", {"architectures": ["CLIPTextModelWithProjection"]}, ('"CLIPTextModelWithProjection"',)),
        ("text_encoder", {"hidden_act": "relu"}, ('hidden_act = "relu"', '"quick_gelu", "gelu"')),
        ("text_encoder", {"use_attention_mask": True}, ("use_attention_mask = true", "not supported")),
        ("text_encoder", {"num_hidden_layers": 0}, ("num_hidden_layers = 0", "replace it")),
        ("text_encoder", {"layer_norm_eps": None}, ("layer_norm_eps = null", "replace it")),
        ("text_encoder", {"num_attention_heads": 3}, ("hidden_size = 4", "num_attention_heads = 3")),
        ("text_encoder", {"num_hidden_layers": 2}, ("lack 16 tensors", "encoder.layers.1.", "same checkpoint")),
        ("text_encoder", {"vocab_size": 50}, ("has the token 191", "knows 50", "same checkpoint")),
    ],
)
def test_other_models_of_text_are_refused(pipeline, prompts, part, values, words):
    change(pipeline / part / "config.json", **values)
    refused(pipeline, prompts, str(pipeline / part), *words)


def test_other_tokenizers_are_refused(pipeline, prompts, monkeypatch):
    folder = pipeline / "tokenizer"
    change(folder / "tokenizer_config.json", model_max_length=2)
    refused(pipeline, prompts, str(folder), "cuts prompts to 2 tokens")
    change(folder / "tokenizer_config.json", model_max_length=10**30)
    assert read_target(pipeline, hints(prompts)).network.net.tokens == 8
    change(folder / "special_tokens_map.json", pad_token="<pad>")
    refused(pipeline, prompts, "does not know the token <pad>", "replace it")
    change(folder / "tokenizer_config.json", tokenizer_class="T5Tokenizer")
    refused(pipeline, prompts, 'a "T5Tokenizer"', 'give a model with "CLIPTokenizer"')
    (folder / "tokenizer_config.json").unlink()
    (folder / "merges.txt").write_text("#version: 0.2\nx y z\n")
    refused(pipeline, prompts, "can't be read as a tokenizer", "replace it")
    (folder / "merges.txt").unlink()
    refused(pipeline, prompts, "neither vocab.json and merges.txt nor tokenizer.json")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    refused(pipeline, prompts, "package tokenizers is missing", "pip install 'side_jax[text]'")


def test_weights_of_the_text_encoder_that_are_missing_are_named(pipeline, prompts):
    path = pipeline / "text_encoder" / "model.safetensors"
    state = load_file(path)
    save_file({name: value for name, value in state.items() if "fc1" not in name}, path)
    refused(pipeline, prompts, f"the weights in {path.parent}", "lack 2 tensors", "mlp.fc1.bias")
    path.rename(path.with_name("model.fp16.safetensors"))
    refused(pipeline, prompts, "lack 2 tensors")  # a single variant is read
    save_file(state, path.with_name("model.bf16.safetensors"))
    refused(pipeline, prompts, "several weights", "no model.safetensors")
    for name in ("fp16", "bf16"):
        path.with_name(f"model.{name}.safetensors").unlink()
    refused(pipeline, prompts, f"{path} is missing", "put it there")


def test_the_whole_audit_runs_on_prompts(whole, prompts, tmp_path, capsys):
    """Plain sampling, adapters and mode seeking by the empty prompt, conditional_model by prompts."""
    attacks = ("unconditional", "conditional_model", "modes", "side_lora")
    settings, workdir = adapted.audit(
        tmp_path,
        whole,
        8,
        stages=None,
        target__prompts=prompts,
        extract__attacks=attacks,
        extract__guidance_scales="(3.0,)",
        modes__rounds="(1,)",
        modes__noise_levels="(1.0,)",
    )
    assert (settings.condition.num_labels, len(settings.target.prompts_sha256)) == (2, 64)
    units = {run.name: unit for run, unit in stage_table.extraction_units(settings, workdir)}
    drawn = {name: shards.read(stage_table.extracted_shards(settings, unit)) for name, unit in units.items()}
    assert set(drawn["conditional_model_3"]["label"].tolist()) == {0, 1}
    params = stage_inputs.load_target(settings, workdir).trees["ema"]
    target = read_target(whole, hints(prompts))
    jax.tree.map(np.testing.assert_array_equal, params, target.origin.read_params())
    # By hand: the noise of the empty prompt, and three times what an image's prompt changes it by.
    keys = sample_keys(random_streams.stream_key(settings, "extract"), np.arange(adapted.BATCH, dtype=np.uint32))
    table, labels = params["net"]["prompt_embedding"], drawn["conditional_model_3"]["label"]

    def predict(x, t, rows):
        return made_text.NET.apply({"params": params["net"]["net"]}, x, t, table[rows])

    def guided(x, t):
        plain = predict(x, t, np.full(adapted.BATCH, 2))
        return plain + 3 * (predict(x, t, labels) - plain)

    grid = builders.build_step_table(settings, settings.guided_sampler)
    with jax.numpy_dtype_promotion("standard"):
        z = sample(guided, grid, keys, (4, 4, 2))
        expected = to_uint8(target.network.apply({"params": params}, z, method="decode"))
    images = drawn["conditional_model_3"]["images"]
    assert images.shape == (adapted.BATCH, 8, 8, 1)
    assert np.abs(images.astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(images.astype(int) - drawn["unconditional"]["images"]).mean() > 1
    merged, _ = fit_adapters.load(settings, workdir)
    before, after = params["net"], merged["net"]["net"]
    np.testing.assert_array_equal(after["prompt_embedding"], before["prompt_embedding"])
    for name in ("mid_block", "attentions_0", "transformer_blocks_0", "attn2", "to_k", "kernel"):
        before, after = (tree.get("net", tree)[name] for tree in (before, after))
    assert (before != after).any()
    results = json.loads((workdir / "evaluate" / "results.json").read_text())
    assert results["target"]["latent"]
    assert {row["attack"] for row in results["rows"]} >= set(attacks)
    assert ", used with 2 prompts; denoising loss" in (workdir / "report" / "index.html").read_text()
    manifest = json.loads((workdir / "train" / "manifest.json").read_text())
    assert "safety_checker" in manifest["notes"][0]
    assert runs.run([f"--workdir={workdir}"]) == 0  # without the prompts, which the finished run does not need
    prompts.unlink()
    assert runs.run([f"--workdir={workdir}"]) == 0
    prompts.write_text("another\nprompt\n")
    capsys.readouterr()
    assert runs.run([f"--workdir={workdir}"]) == 1
    assert "config.target.prompts) has the SHA-256" in capsys.readouterr().err
