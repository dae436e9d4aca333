"""Text-conditional U-Nets, CLIP and whole pipelines against diffusers and transformers, on random weights."""

import itertools
import json
import warnings

import jax
import made_text
import numpy as np
import pytest
import runs

from parity.theirs import DDIMScheduler, diffusers, nchw, nhwc, random_numbers, relative_error, torch
from side_jax import builders
from side_jax.config import from_config
from side_jax.diffusion import sampler
from side_jax.diffusion.steps import step_table
from side_jax.models.condition_unet import SpatialTransformer
from side_jax.pipeline.saved_config import saved_config
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.stages import fit_adapters, stage_inputs
from side_jax.targets import clip_text, parameters
from side_jax.targets.clip_tokens import Tokenizer
from side_jax.targets.condition_unets import read_condition_unet
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

STEPS, SCALE = 10, 3.0


def levels(text, channels, **options):
    """A config; `text` says of each level, by C or D, whether it has cross-attention."""
    down = {"C": "CrossAttnDownBlock2D", "D": "DownBlock2D"}
    up = {"C": "CrossAttnUpBlock2D", "D": "UpBlock2D"}
    return {
        "sample_size": 8,
        "block_out_channels": channels,
        "down_block_types": tuple(down[letter] for letter in text),
        "up_block_types": tuple(up[letter] for letter in text[::-1]),
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
    } | options


UNETS = {
    # Stable Diffusion 1: eight heads at every level, 1x1 convolutions around transformers; 1/20 of the channels.
    "stable diffusion 1": levels("CCCD", (16, 32, 64, 64), attention_head_dim=8),
    # Stable Diffusion 2: linear layers, and as many heads at each level as make them of equal width.
    "stable diffusion 2": levels(
        "CCCD", (16, 32, 64, 64), attention_head_dim=(1, 2, 4, 4), use_linear_projection=True, upcast_attention=True
    ),
    "other options": levels(
        "DC",
        (8, 12),
        layers_per_block=1,
        attention_head_dim=(2, 3),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        in_channels=3,
        out_channels=3,
        norm_eps=1e-3,
        mid_block_scale_factor=2**0.5,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        center_input_sample=True,
        act_fn="swish",
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=24,
        dropout=0.3,
    ),
}
PROMPTS = [
    "a cat",
    "A  photograph of CATS,\tin the 1990s!",
    "it's we'll I'd can't",
    "na\u00efve caf\u00e9 \u65e5\u672c\u8a9e \U0001f408 e\u0301",
    "1234 cat123 <|endoftext|> cat <b>",
    "cat " * 30,
    "...---... \u00a0 cat",
]


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_predictions_agree(tmp_path, name):
    theirs = random_numbers(diffusers.UNet2DConditionModel(**UNETS[name]).eval())
    theirs.save_pretrained(tmp_path)
    module, width = read_condition_unet(tmp_path)
    rng, t = np.random.default_rng(0), np.asarray([0, 417, 999], np.int32)
    x = rng.standard_normal((3, 8, 8, module.out_channels)).astype(np.float32)
    context = rng.standard_normal((3, 7, width)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t, context)["params"]
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = jax.jit(module.apply)({"params": parameters.from_state_dict(state, shapes, name)}, x, t, context)

    def predict(context, t=t):
        return nhwc(theirs(nchw(x), torch.from_numpy(t), torch.from_numpy(context)).sample)

    expected = predict(context)
    assert 0.2 < expected.std() < 2
    assert relative_error(predict(context[::-1].copy()), expected) > 1e-2  # the context matters
    assert relative_error(predict(context, t[::-1].copy()), expected) > 1e-2
    error = relative_error(ours, expected)
    print(f"{name}: {error:.1e}")
    assert error < 2e-5


@pytest.mark.parametrize("linear", [True, False])
@torch.no_grad()
def test_what_a_transformer_adds_agrees(linear):
    """On small features, where epsilons count, and without the skip, which would hide the rest."""
    config = {"num_attention_heads": 2, "attention_head_dim": 6, "in_channels": 12, "norm_num_groups": 4}
    config |= {"cross_attention_dim": 12, "num_layers": 2, "use_linear_projection": linear}
    theirs = random_numbers(diffusers.Transformer2DModel(**config).eval())
    module, rng = SpatialTransformer(2, 2, 4, np.float32), np.random.default_rng(0)
    x = 0.01 * rng.standard_normal((2, 4, 6, 12)).astype(np.float32)
    context = 3 * rng.standard_normal((2, 7, 12)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, context)["params"]
    params = parameters.from_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()}, shapes, "theirs")
    ours = jax.jit(module.apply)({"params": params}, x, context) - x
    (expected,) = theirs(nchw(x), encoder_hidden_states=torch.from_numpy(context), return_dict=False)
    error = relative_error(ours, nhwc(expected) - x)
    print(f"a transformer: {error:.1e}")
    assert error < 2e-6  # an approximate GELU, or a tenth of the layers' epsilon, would make more


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_embedded_texts_agree(tmp_path, activation):
    theirs = text_encoder(60, hidden_act=activation)
    theirs.save_pretrained(tmp_path)
    encoder = clip_text.read_encoder(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 60, (5, 12)).astype(np.int32)
    ours = clip_text.embed(encoder, clip_text.read_encoder_params(tmp_path, encoder), tokens)
    expected = theirs(torch.from_numpy(tokens).long()).last_hidden_state.numpy()
    error = relative_error(ours, expected)
    print(f"{activation}: {error:.1e}")
    assert error < 1e-4
    other = theirs(torch.from_numpy(tokens[:, ::-1].copy()).long()).last_hidden_state.numpy()
    assert relative_error(other, expected) > 0.1
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    again = clip_text.embed(encoder, clip_text.read_encoder_params(tmp_path, encoder), tokens)
    np.testing.assert_array_equal(again, ours)


def text_encoder(vocabulary, **options):
    config = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    config |= {"max_position_embeddings": 12, "vocab_size": vocabulary, "eos_token_id": vocabulary - 1}
    return random_numbers(CLIPTextModel(CLIPTextConfig(**(config | options))).eval())


def write_tokenizer(folder, pad="<|endoftext|>"):
    """vocab.json and merges.txt of all bytes; every pair of some letters is merged, and then pairs of these."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in letters]
    merges = [(a, b) for a, b in itertools.product("acgoprt", "ahot")] + [
        ("ca", "t</w>"),
        ("t", "s</w>"),
        ("ca", "ts</w>"),
    ]
    words = [*letters, *ends, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    return len(words)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_tokens_agree(tmp_path, pad):
    """From the files of the model's authors, and from the one that transformers writes today."""
    write_tokenizer(tmp_path / "old", pad)
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "old")
    theirs.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert not (tmp_path / "new" / "merges.txt").exists()
    expected = theirs([*PROMPTS, ""], padding="max_length", max_length=12, truncation=True).input_ids
    for folder in ("old", "new"):
        tokenizer = Tokenizer(tmp_path / folder)
        rows, _ = tokenizer.encode([*PROMPTS, ""], tokenizer.length(77))
        np.testing.assert_array_equal(rows, expected, err_msg=folder)


def pipeline_of(folder):
    """A saved StableDiffusionPipeline, and itself."""
    vocabulary = write_tokenizer(folder / "tokenizer")
    vae = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "scaling_factor": 0.7}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    unet = levels("CD", (8, 16), layers_per_block=1, attention_head_dim=2)
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline(
            vae=random_numbers(diffusers.AutoencoderKL(**vae, **kinds).eval(), seed=2),
            text_encoder=text_encoder(vocabulary),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            unet=random_numbers(diffusers.UNet2DConditionModel(**unet).eval(), seed=1),
            scheduler=DDIMScheduler(**scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(folder / "whole")
    pipeline.scheduler = DDIMScheduler(**scheduler)  # without the offset of one timestep that the pipeline sets
    return folder / "whole", pipeline


@torch.no_grad()
def test_guided_images_agree_with_the_pipeline(tmp_path):
    """What diffusers saves is read; its prompts, noise and images are ours."""
    folder, pipeline = pipeline_of(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(" ".join(prompt.split()) for prompt in PROMPTS))
    target = read_target(folder, Hints(target=Section(path="model", prompts=str(path)), diffusion=Diffusion()))
    assert (target.num_labels, target.size) == (len(PROMPTS), (16, 16))
    params = target.origin.read_params()
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    embedded, empty = pipeline.encode_prompt(PROMPTS, **options)
    table = params["net"]["prompt_embedding"]
    error = relative_error(table[:-1], embedded.numpy())
    assert error < 1e-4
    assert relative_error(table[-1], empty[0].numpy()) < 1e-4
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
    labels = np.asarray([3, 0, 5], np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"prompt": [PROMPTS[i] for i in labels], "latents": nchw(x), "guidance_scale": SCALE}
        theirs = pipeline(**given, num_inference_steps=STEPS, output_type="np").images * 2 - 1
    grid = step_table(target.schedule, STEPS, spacing="leading", clip=False)
    keys, state = sampler.sample_keys(jax.random.key(0), np.arange(3)), sampler.State(x, np.zeros_like(x))
    denoise = jax.jit(target.denoise)

    def guided(x, t):
        plain = denoise(params, x, t, np.full(3, -1, np.int32))
        return plain + SCALE * (denoise(params, x, t, labels) - plain)

    for step in range(STEPS):
        state = sampler.sample_step(guided, grid[step], state, keys)
    ours = np.asarray(jax.jit(target.decode)(params, state.x))
    difference = np.abs(ours - theirs).max()
    print(f"embedded prompts: {error:.1e}; guided images: {difference:.1e} of 2")
    assert (np.abs(theirs) < 0.98).mean() > 0.2
    assert difference < 1e-3


@torch.no_grad()
def test_our_tiny_pipeline_is_one_of_theirs(tmp_path):
    """made_text.py, which tests without PyTorch read, writes what diffusers and transformers load and predict alike."""
    folder = made_text.write(tmp_path / "model")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        "a cat's", padding="max_length", max_length=8
    ).input_ids
    (tmp_path / "prompts.txt").write_text("a cat's")
    section = Section(path="model", prompts=str(tmp_path / "prompts.txt"))
    target = read_target(folder, Hints(target=section, diffusion=Diffusion()))
    params = target.origin.read_params()
    context = encoder(torch.tensor([tokens])).last_hidden_state
    assert relative_error(params["net"]["prompt_embedding"][:1], context.numpy()) < 1e-4
    x, t = np.random.default_rng(0).standard_normal((1, 4, 4, 2)).astype(np.float32), np.asarray([9], np.int32)
    ours = jax.jit(target.denoise)(params, x, t, np.asarray([0], np.int32))
    assert relative_error(ours, nhwc(unet(nchw(x), torch.from_numpy(t), context).sample)) < 2e-5
    image = nhwc(vae.decode(nchw(x) / vae.config.scaling_factor).sample).clip(-1, 1)
    assert relative_error(jax.jit(target.decode)(params, x), image) < 2e-5


@torch.no_grad()
def test_an_audit_by_adapters_and_mode_seeking(tmp_path):
    """The whole command on what diffusers saves; the adapted model is theirs with other kernels and another bias."""
    folder, pipeline = pipeline_of(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("seen", "unseen"):
        np.savez(tmp_path / f"{name}.npz", images=rng.integers(0, 256, (64, 16, 16, 3), np.uint8))
    (tmp_path / "prompts.txt").write_text("a cat")
    argv = runs.arguments(
        tmp_path / "run",
        target__path=folder,
        target__prompts=tmp_path / "prompts.txt",
        data__name="npz",
        data__path=tmp_path / "seen.npz",
        data__heldout_from=tmp_path / "unseen.npz",
        data__image_size=16,
        data__channels=3,
        sampler__num_steps=2,
        sampler__batch_size=16,
        synthesize__num_images=32,
        label__num_clusters=2,
        label__min_cluster_size=1,
        label__cohesion_threshold=0.0,
        label__rounds=1,
        extract__attacks="('unconditional','side_lora','modes')",
        extract__num_images=16,
        modes__starts="('unconditional','side_lora')",
        modes__rounds="(1,)",
        adapters__num_steps=5,
        adapters__batch_size=16,
        adapters__rounds=1,
        adapters__scales="(3.0,)",
    )
    assert runs.run(argv) == 0
    workdir = tmp_path / "run"
    rows = json.loads((workdir / "evaluate" / "results.json").read_text())["rows"]
    assert {(row["attack"], row.get("start"), row["guidance_scale"]) for row in rows} == {
        ("unconditional", None, 0.0),
        ("side_lora", None, 3.0),
        ("modes", "unconditional", 0.0),
        ("modes", "side_lora", 3.0),
    }
    assert "the target with low-rank adapters" in (workdir / "report" / "index.html").read_text()

    settings = from_config(saved_config(workdir))
    merged, classes = jax.device_get(fit_adapters.load(settings, workdir))
    network = builders.build_adapted_network(settings, classes)
    x, t = rng.standard_normal((2, 8, 8, 4)).astype(np.float32), np.asarray([30, 700], np.int32)
    ours = jax.jit(network.apply)({"params": merged}, x, t, labels=np.asarray([1, -1]))
    inner, own = merged["net"]["net"], pipeline.unet.state_dict()
    empty = np.repeat(inner["prompt_embedding"][-1:], 2, axis=0)
    plain = nhwc(pipeline.unet(nchw(x), torch.from_numpy(t), torch.from_numpy(empty)).sample)
    for i, row in enumerate(merged["label_embedding"][np.asarray([1, -1])]):
        state = parameters.to_state_dict(inner["net"])
        state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + row
        assert state.keys() == own.keys()
        pipeline.unet.load_state_dict(
            {k: torch.from_numpy(np.array(v)).reshape(own[k].shape) for k, v in state.items()}
        )
        theirs = nhwc(pipeline.unet(nchw(x), torch.from_numpy(t), torch.from_numpy(empty)).sample)[i]
        error = relative_error(ours[i], theirs)
        print(f"adapted, label {i}: {error:.1e}; from the target: {relative_error(plain[i], theirs):.1e}")
        assert error < 2e-5
        assert relative_error(plain[i], theirs) > 1e-3
    target = stage_inputs.load_target(settings, workdir).trees["ema"]
    jax.tree.map(np.testing.assert_array_equal, merged["net"]["autoencoder"], target["autoencoder"])
