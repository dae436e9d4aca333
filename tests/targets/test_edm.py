"""Snapshots of NVlabs' EDM without PyTorch: exact weights, what they say, and a sentence for each thing refused."""

import adapted
import foreign
import jax
import numpy as np
import pytest
from made_pickles import Call, New, Raw, code, dumps, persistent, snapshot, tensor

from side_jax.errors import InputError
from side_jax.models.dhariwal_unet import DhariwalUNet
from side_jax.models.song_unet import SongUNet
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.stages import fit_adapters, stage_inputs, stage_table
from side_jax.targets import networks
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints
from side_jax.training import trainer

TINY = SongUNet(
    img_resolution=4,
    out_channels=1,
    label_dim=3,
    model_channels=4,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(2,),
    embedding_type="fourier",
    encoder_type="residual",
)
SMALL = DhariwalUNet(
    img_resolution=4, out_channels=1, model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=()
)


@pytest.fixture(scope="module")
def params():
    return {net: foreign.random_params(net, (4, 4, 1)) for net in (TINY, SMALL)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network-snapshot-000100.pkl"


def write(path, params, net=SMALL, **changes):
    path.write_bytes(dumps(snapshot(net, params[net], **changes)))
    return path


def read(path, **section):
    return read_target(path, Hints(target=Section(**section), diffusion=Diffusion()))


def read_weights(path):
    read(path).origin.read_params()


def refused(path, *words, reader=read, **section):
    with pytest.raises(InputError) as caught:
        reader(path, **section)
    message = str(caught.value)
    assert message.isprintable()
    for word in (str(path), *words):
        assert word in message, message


@pytest.mark.parametrize("net", [TINY, SMALL], ids=["SongUNet", "DhariwalUNet"])
def test_weights_are_read_exactly(path, params, net):
    filters = {f"enc.2x2_down.{part}.resample_filter": np.full((1, 1, 2, 2), 0.25) for part in ("conv0", "skip")}
    augment = {"map_augment.weight": np.ones((4, 9))}
    extra = augment | (filters if net is TINY else {})
    target = read(write(path, params, net, extra=extra, options={"augment_dim": 9}))
    assert target.network.net == net
    jax.tree.map(np.testing.assert_array_equal, target.origin.read_params(), {"net": params[net]})
    assert networks.build(networks.describe(target.network)) == target.network
    assert (target.channels, target.size, target.origin.weights) == (1, (4, 4), (path,))
    assert (target.num_labels, target.null_label) == ((3, False) if net is TINY else (0, True))
    assert (target.network.sigma_min, target.network.sigma_max, target.network.sigma_data) == (0.002, 80.0, 0.5)
    x = np.ones((2, 4, 4, 1), np.float32)
    labels = np.asarray([0, -1], np.int32) if net is TINY else None
    found = jax.jit(target.denoise)(target.origin.read_params(), x, np.asarray([0, 999], np.int32), labels)
    assert found.shape == x.shape
    assert np.isfinite(found).all()


def test_dropped_labels_teach_the_model_to_do_without(path, params):
    target = read(write(path, params, TINY, options={"label_dropout": 0.1}))
    assert (target.num_labels, target.null_label) == (3, True)


@pytest.mark.parametrize(
    ("kind", "more", "ends"),
    [
        ("EDMPrecond", {"sigma_min": 0.01, "sigma_max": 50}, (0.01, 50.0)),
        (
            "VPPrecond",
            {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_min": 1e-3, "sigma_max": 152.0},
            (0.002, 80.0),
        ),
        ("VEPrecond", {"sigma_min": 0.02, "sigma_max": 100}, (0.02, 80.0)),
    ],
)
def test_noises_end_where_the_model_or_the_sampler_does(path, params, kind, more, ends):
    target = read(write(path, params, kind=kind, more=more))
    assert (target.network.sigma_min, target.network.sigma_max) == ends
    bar = target.schedule.alpha_bar
    np.testing.assert_allclose(((1 - bar) / bar)[[0, -1]] ** 0.5, ends, rtol=1e-9)


REFUSED = {
    "another preconditioning": ({"kind": "iDDPMPrecond"}, ("'iDDPMPrecond'", "give one of EDMPrecond, VPPrecond")),
    "EDM2": ({"kind": "Precond"}, ("'Precond'", "give one of")),
    "an option of a fork": ({"options": {"patch_size": 2}}, ("'patch_size'", "unchanged")),
    "no sizes": ({"options": {"img_resolution": None}}, ("img_resolution = None",)),
    "too large a size": ({"options": {"img_resolution": 2**20}}, ("img_resolution = 1048576",)),
    "a size that is no number": ({"options": {"img_resolution": "4"}}, ("img_resolution = '4'",)),
    "a size that can't be halved": (
        {"options": {"img_resolution": 5, "channel_mult": [1, 1]}},
        ("img_resolution = 5", "halved 1 times"),
    ),
    "another output": ({"options": {"out_channels": 2}}, ("in_channels = 1, out_channels = 2",)),
    "endless blocks": ({"options": {"num_blocks": 10**9}}, ("num_blocks = 1000000000",)),
    "endless levels": ({"options": {"channel_mult": [1] * 99}}, ("channel_mult = [1, 1",)),
    "nested levels": ({"options": {"channel_mult": [[1]]}}, ("channel_mult = a tuple",)),
    "labels below zero": ({"options": {"label_dim": -1}}, ("label_dim = -1",)),
    "all dropped": ({"options": {"dropout": 1.0}}, ("dropout = 1.0",)),
    "no noise": ({"more": {"sigma_data": None}}, ("sigma_data = None",)),
    "not a number": ({"more": {"sigma_data": float("nan")}}, ("sigma_data = nan",)),
    "too long a number": ({"more": {"sigma_data": 2**1000}}, ("sigma_data = 1071508607",)),
    "a noise of zero": ({"more": {"sigma_max": 0}}, ("sigma_max = 0",)),
    "no noises of the sampler": ({"more": {"sigma_max": 1e-3}}, ("no noise between 0.002 and 80",)),
    "no network": ({"more": {"_modules": {}}}, ("'EDMPrecond'", "give one of SongUNet, DhariwalUNet")),
    "another network": (
        {"more": {"_modules": {"model": persistent("EDMUNet", {})}}},
        ("'EDMUNet'", "give one of SongUNet, DhariwalUNet"),
    ),
    "no options": ({"more": {"_modules": {"model": persistent("SongUNet", {})}}}, ("does not say the options",)),
    "no modules": ({"more": {"_modules": [1]}}, ("_modules are something else",)),
    "no module": ({"more": {"_modules": {"model": 5}}}, ("_modules are something else",)),
    "no tensors": ({"extra": {"x": Raw(code(5))}}, ("_parameters are something else",)),
    "a name that is no text to show": ({"extra": {"x\x1b[2J": np.ones(3)}}, ("_parameters are something else",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_nvlabs_own_model_is_refused(path, params, name):
    changes, words = REFUSED[name]
    refused(write(path, params, **changes), *words)


SONG = {
    "an unknown word": ({"embedding_type": "learned"}, ("embedding_type = 'learned'",)),
    "an odd filter": ({"resample_filter": [1, 2, 1]}, ("resample_filter = [1, 2, 1]",)),
    "a filter without a sum": ({"resample_filter": [1, -1]}, ("resample_filter = [1, -1]",)),
    "another filter than the options'": ({"resample_filter": [1, 3, 3, 1]}, ("resample_filter that is not the one",)),
}


@pytest.mark.parametrize("name", SONG)
def test_filters_and_words_are_those_of_the_program(path, params, name):
    options, words = SONG[name]
    extra = {"enc.2x2_down.conv0.resample_filter": np.full((1, 1, 2, 2), 0.25)}
    refused(write(path, params, TINY, options=options, extra=extra), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra": {"more.weight": np.ones(3)}}, ("hold 1 tensors that it does not have", "more.weight")),
        ({"options": {"channel_mult": [1, 2]}}, ("lack", "unchanged")),
        ({"options": {"model_channels": 8}}, ("has shape",)),
        ({"options": {"model_channels": 1}}, ("describes no network that can be built",)),
    ],
)
def test_weights_of_another_network_are_refused(path, params, changes, words):
    refused(write(path, params, **changes), *words, reader=read_weights)


def test_a_label_can_not_stand_for_none(path, params):
    refused(write(path, params, TINY), "config.target.null_label is 1", "set it to -1", null_label=1)


def test_a_model_is_never_larger_than_its_file(path, params):
    """Tensors may not share numbers, nor modules be twice, or inside themselves: their copies would fill the memory."""
    shared = Raw(code(tensor(np.ones(10**4))) + b"q\x01")
    values = {"a.weight": shared} | {f"{i}.weight": Raw(b"h\x01") for i in range(30)}
    refused(write(path, params, extra=values), "the same numbers as several tensors")
    twice = {"once": Raw(code(persistent("Part", {})) + b"q\x01"), "again": Raw(b"h\x01")}
    write(path, params, more={"_modules": {"model": persistent("SongUNet", {"_modules": twice})}})
    refused(path, "inside itself, or twice")
    empty = Raw(
        code(New("torch.nn.modules.container.ModuleDict")) + b"q\x01" + code({"_modules": {"a": Raw(b"h\x01")}})
    )
    write(path, params, more={"_modules": {"model": Raw(empty.code + b"b")}})
    refused(path, "inside itself, or twice")


def test_a_hostile_file_is_not_run(path, params, tmp_path):
    """Wherever it hides: in the network, beside it, in its options, or as its source text."""
    mkdir = Call("os.mkdir", (str(tmp_path / "made"),))
    whole = snapshot(SMALL, params[SMALL])
    for value in (
        whole | {"loss_fn": mkdir},
        snapshot(SMALL, params[SMALL], more={"sigma_data": mkdir}),
        snapshot(SMALL, params[SMALL], options={"dropout": mkdir}),
        snapshot(SMALL, params[SMALL], extra={"out_conv.bias": mkdir}),
    ):
        path.write_bytes(dumps(value))
        refused(path, '"os.mkdir"', "nothing of it was run")
        assert not (tmp_path / "made").exists()


def test_other_contents_of_plain_pickles(path, params):
    for content in (
        {"G_ema": persistent("Generator", {})},
        {"ema": {"w": tensor(np.ones(2))}},
        [1],
        persistent("A", {}),
    ):
        path.write_bytes(dumps(content))
        refused(path, "holds no model of a known format")
        refused(path, "is not of the format edm", format="edm")


def test_low_rank_adapters_of_a_snapshot(path, params, tmp_path, monkeypatch):
    """A model that always needs a label keeps its own, in turn, while its adapters are fitted too."""
    settings, workdir = adapted.audit(tmp_path, write(path, params, TINY), 4, adapters__rounds=1)
    seen = []

    def run(*, fetch, **options):
        seen.extend(fetch(np.asarray([0, 1, 2, 3, 31]))[2].tolist())
        return {}, 0

    monkeypatch.setattr(trainer, "run", run)
    fit_adapters.fit(settings, workdir, stage_table.adapters_unit(settings, workdir))
    assert seen == [0, 1, 2, 0, 1]
    # Where images are dropped, the others keep the labels that they were drawn and taken to modes with.
    model = {"dpm": stage_inputs.load_target(settings, workdir).trees["ema"]}
    whole = fit_adapters.examples(settings, workdir, model)
    labels = dict(np.load(workdir / "label" / "labels.npz"))
    labels["label"][[0, 1, 5]] = -1
    np.savez(workdir / "label" / "labels.npz", **labels)
    for part, full in zip(fit_adapters.examples(settings, workdir, model), whole, strict=True):
        np.testing.assert_array_equal(part, np.delete(full, [0, 1, 5], axis=0))
