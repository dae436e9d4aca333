"""An audit by low-rank adapters of a checkpoint that a test has written, and a check of its images."""

import jax
import numpy as np
import runs

from side_jax import builders
from side_jax.attacks.table import ADAPTED
from side_jax.config import from_config
from side_jax.diffusion.pixel_range import to_uint8
from side_jax.diffusion.sampler import sample, sample_keys
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.settings import random_streams
from side_jax.stages import fit_adapters, stage_inputs, stage_table

BATCH = 16
OPTIONS = {
    "extract__attacks": f"('{ADAPTED.name}',)",
    "extract__num_images": BATCH,
    "synthesize__num_images": 2 * BATCH,
    "label__num_clusters": 2,
    "label__min_cluster_size": 1,
    "label__cohesion_threshold": 0.0,
    "adapters__num_steps": 3,
    "adapters__batch_size": BATCH,
    "adapters__rounds": 0,
    "adapters__scales": "(2.0,)",
    "sampler__num_steps": 2,
    "sampler__batch_size": BATCH,
    "monitor__seeks_modes": False,
}


def audit(folder, path, side, stages=("train", "synthesize", "label", "surrogate", "extract"), **options):
    """Audits the checkpoint by images of noise, and checks what the adapted model draws.

    Args:
      folder: to write to.
      path: the checkpoint.
      side: of its images, in pixels.
      stages: to run; all where it is None.
      **options: more settings, see runs.arguments.

    Returns:
      (settings, workdir).
    """
    rng = np.random.default_rng(0)
    for name in ("seen", "unseen"):
        np.savez(folder / f"{name}.npz", images=rng.integers(0, 256, (64, side, side, 1), np.uint8))
    given = {"data__name": "npz", "data__path": folder / "seen.npz", "data__heldout_from": folder / "unseen.npz"}
    given |= {"data__image_size": side, "target__path": path}
    argv = runs.arguments(folder / "run", **(OPTIONS | given | options))
    assert runs.run(argv, stages) == 0
    settings = from_config(saved_config(folder / "run"))
    _check(settings, folder / "run")
    return settings, folder / "run"


def _check(settings, workdir):
    """Whether the images are those of the adapted model at guidance scale 2, other than those of the target."""
    params, classes = fit_adapters.load(settings, workdir)
    unit = stage_table.adapters_unit(settings, workdir)
    assert unit.content()["classes"] == classes == 2
    target, network = builders.build_target(settings), builders.build_adapted_network(settings, classes)
    base, index = random_streams.stream_key(settings, "extract"), np.arange(BATCH, dtype=np.uint32)
    own, table = target.default_labels(index), builders.build_step_table(settings, settings.guided_sampler)
    (unit,) = (unit for run, unit in stage_table.extraction_units(settings, workdir) if run.attack == ADAPTED.name)
    found = shards.read(stage_table.extracted_shards(settings, unit))
    labels = found["label"]
    assert set(labels.tolist()) == {0, 1}

    def adapted(x, t):
        given, none = (network.apply({"params": params}, x, t, labels=one, own=own) for one in (labels, None))
        return none + 2.0 * (given - none)

    plain = stage_inputs.load_target(settings, workdir).trees["ema"]
    with jax.numpy_dtype_promotion("standard"):
        images = []
        for denoise in (adapted, lambda x, t: target.denoise(plain, x, t, own)):
            keys = sample_keys(base, index)
            z = sample(denoise, table, keys, builders.sampled_shape(settings))
            images.append(np.asarray(to_uint8(target.decode(plain, z))).astype(int))
    expected, unadapted = images
    assert np.abs(found["images"] - expected).max() <= 1
    assert (expected != unadapted).mean() > 0.05
