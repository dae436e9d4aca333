"""Deliberate faults, each put into a copy of the tree and shown to the tests that should fail: by hand, or nightly.

python tests/faults.py [--only N ...] [--jobs J]

First the tests must pass without a fault. Then each fault must make at least one of its tests fail; what none notices
is printed as NOT caught, and the exit code is 1. Nothing in the tree itself is changed.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("side_jax", "configs", "benchmarks", "docs", "launch", "tests", "pyproject.toml", "README.md")


@dataclasses.dataclass(frozen=True)
class Fault:
    """`old`, which stands in side_jax/ once, becomes `new`; some of `tests` must fail."""

    what: str
    old: str
    new: str
    tests: str  # below tests/, with spaces between


FAULTS = (
    # The forward process, schedules and solvers.
    Fault(
        "a square root dropped in q_sample",
        "(1.0 - alpha_bar) ** 0.5",
        "(1.0 - alpha_bar)",
        "diffusion/test_process.py::test_q_sample_has_the_closed_form_moments",
    ),
    Fault(
        "a square root dropped in the steps' coefficients",
        '"sigma": np.sqrt(1 - abar)',
        '"sigma": 1 - abar',
        "diffusion/test_sampler.py::test_eta_one_on_the_full_grid_is_ddpm",
    ),
    Fault(
        "the time grid shifted by one",
        "[:num_steps] - 1\n",
        "[:num_steps] - 1 - (num_steps < num_timesteps)\n",
        "diffusion/test_schedule.py::test_grids_by_hand",
    ),
    Fault(
        "the denoiser asked at the timestep before",
        "    output = denoise_fn(x, t)\n",
        "    output = denoise_fn(x, t - 1)\n",
        "diffusion/test_sampler.py::test_recovers_the_gaussian",
    ),
    Fault(
        "the target of v-prediction with another sign",
        '"v": signal * noise - sigma * x0',
        '"v": signal * noise + sigma * x0',
        "diffusion/test_process.py::test_the_loss_vanishes_for_the_network_that_knows_the_image",
    ),
    Fault(
        "DDIM's std without its ratio of noise levels",
        "self.eta * np.sqrt((1 - abar_next) / (1 - abar)) * np.sqrt(1 - abar / abar_next)",
        "self.eta * np.sqrt(1 - abar / abar_next)",
        "diffusion/test_sampler.py::test_eta_one_on_the_full_grid_is_ddpm",
    ),
    Fault(
        "DDIM's mean forgets the noise that follows",
        "1 - abar_next - small**2",
        "1 - abar_next",
        "diffusion/test_sampler.py::test_eta_one_on_the_full_grid_is_ddpm",
    ),
    Fault(
        "DPM-Solver's c upside down",
        "h[1:] / (2 * h[:-1])",
        "h[:-1] / (2 * h[1:])",
        "diffusion/test_sampler.py::test_dpm_solver_with_clipping_is_algorithm_2",
    ),
    Fault(
        "x0 is not clipped",
        "x0 = jnp.clip(x0, -1.0, 1.0)",
        "x0 = jnp.clip(x0, -9.0, 9.0)",
        "diffusion/test_sampler.py::test_clipping_keeps_images_in_range",
    ),
    Fault(
        "the index is not folded into the key: all images alike",
        "return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, index)",
        "return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, index * 0)",
        "diffusion/test_sampler.py::test_a_sample_depends_on_its_index_alone",
    ),
    # Guidance.
    Fault(
        "guidance in the score form with another sign",
        "return output - (self.scale * factor)",
        "return output + (self.scale * factor)",
        "diffusion/test_guidance.py::test_guide_is_the_score_form",
    ),
    Fault(
        "classifier-free guidance with another sign",
        "return -epsilon / sigma",
        "return epsilon / sigma",
        "diffusion/test_guidance.py::test_a_conditional_model_holds_the_gradient_of_its_labels",
    ),
    Fault(
        "guidance in the mean form by the standard deviation",
        "self.scale * std * std *",
        "self.scale * std *",
        "diffusion/test_guidance.py::test_the_two_mean_forms_by_hand",
    ),
    Fault(
        "the guidance interval without its upper end",
        "(t <= high)",
        "(t < high)",
        "diffusion/test_sampler.py::test_guidance_acts_in_its_interval_alone",
    ),
    # Mode seeking.
    Fault(
        "a round that moves away from the prediction",
        "new = x + relaxation * residual",
        "new = x - relaxation * residual",
        "diffusion/test_mode_seeking.py",
    ),
    Fault(
        "the noise of mode seeking not in units of the spread",
        "first, last = spread * noise, spread * noise *",
        "first, last = noise, noise *",
        "stages/test_modes.py::test_noise_is_in_units_of_the_spread_of_the_training_images",
    ),
    Fault(
        "the spread about the mean pixel, not the mean image",
        "np.var(np.asarray(images, np.float64), axis=0).mean()",
        "np.var(np.asarray(images, np.float64))",
        "diffusion/test_mode_seeking.py::test_spread_is_about_the_mean_image",
    ),
    Fault(
        "extrapolation towards the weaker model",
        "difference = of(x, t) - over(x, t)",
        "difference = over(x, t) - of(x, t)",
        "diffusion/test_guidance.py::test_extrapolation_goes_beyond_the_target_away_from_the_weaker_model",
    ),
    Fault(
        "adapters over the wrong rank",
        "(alpha / a.shape[1])",
        "(alpha / b.shape[1])",
        "models/test_adapters.py::test_merging_is_applying_adapters_apart",
    ),
    Fault(
        "the target trained with its adapters",
        'if name in ("batch_stats", FROZEN)}',
        'if name in ("batch_stats",)}',
        "models/test_adapters.py::test_only_adapters_and_the_table_learn",
    ),
    Fault(
        "a label added to the embedding that the time has not passed",
        'MemoryUNet: ("time_2",)',
        'MemoryUNet: ("down_0_block_0", "time_emb_proj")',
        "models/test_labelled.py",
    ),
    Fault(
        "the first label for images without one",
        "table[jnp.where(labels < 0, self.num_labels, labels)].astype",
        "table[jnp.maximum(labels, 0)].astype",
        "models/test_labelled.py",
    ),
    Fault(
        "labels of adapters in the place of the model's own",
        "self.net(x, t, deterministic, own)",
        "self.net(x, t, deterministic, labels)",
        "models/test_adapters.py::test_the_labels_of_the_target_stay_beside_the_new_ones",
    ),
    Fault(
        "a kernel of labels adapted, which no image without one reaches",
        'path[-1] != "kernel" or _OWN_LABELS in path',
        'path[-1] != "kernel"',
        "models/test_labelled.py::test_all_adapters_and_labels_learn_and_nothing_else",
    ),
    Fault(
        "adapters fitted by the labels of other samples",
        "build_target(settings).default_labels(index)",
        "build_target(settings).default_labels(index + 1)",
        "targets/test_edm.py::test_low_rank_adapters_of_a_snapshot",
    ),
    Fault(
        "rounds of mode seeking that the plan does not count",
        "cost.seconds + batches * rounds * timing.step",
        "cost.seconds + batches * timing.step",
        "pipeline/test_plan.py::test_rounds_of_mode_seeking_before_a_unit_count",
    ),
    Fault(
        "guidance that counts the label of adapters twice",
        "scale=scale - 1.0",
        "scale=scale",
        "stages/test_lora.py::test_images_are_those_of_the_adapted_model",
    ),
    Fault(
        "adapters fitted to the samples that move most",
        'np.argsort(distance, kind="stable")',
        'np.argsort(-distance, kind="stable")',
        "stages/test_lora.py::test_the_fit_takes_the_samples_that_settings_choose",
    ),
    Fault(
        "the twin trained on the members",
        "images = heldout.take(np.arange(count))",
        "images = members.take(np.arange(count))",
        "stages/test_modes.py::test_the_twin_is_trained_like_the_target_on_held_out_images",
    ),
    Fault(
        "a permutation test that does not count ties",
        "(drawn >= observed, ",
        "(drawn > observed, ",
        "memorization/test_permutation.py",
    ),
    Fault(
        "members near images that were left out take part in the test",
        "np.ones(len(members), bool) if shared is None else ~shared",
        "np.ones(len(members), bool)",
        "measure/test_scoring.py",
    ),
    Fault(
        "the images of a person change sides one by one",
        "self._groups = None if groups is None else np.concatenate(groups)",
        "self._groups = np.arange(10**6) if groups is None else np.arange(10**6)",
        "measure/test_scoring.py",
    ),
    Fault(
        "the members extracted are those of the attack with the most matches",
        "key=lambda row: (row.unique_excess, row.excess))",
        "key=lambda row: (row.excess, row.unique_excess))",
        "report/test_verdict.py",
    ),
    Fault(
        "a verdict that looks at attacks by one measure alone",
        "every = [row for row in results.rows if _tested(row)]",
        "every = tested",
        "report/test_verdict.py",
    ),
    Fault(
        "held-out images swapped with members in the test of the sets",
        "if fewest.p_deficit * len(tested) < level:",
        "if fewest.p_excess * len(tested) < level:",
        "report/test_verdict.py",
    ),
    Fault(
        "importance sampling without its weights",
        "losses = weights * cross_entropy(log_probs, labels)",
        "losses = cross_entropy(log_probs, labels)",
        "training/test_losses.py",
    ),
    Fault(
        "the loss on held-out images is that on members",
        "denoising_loss_heldout=losses[1]",
        "denoising_loss_heldout=losses[0]",
        "measure/test_target_scores.py::test_the_losses_of_both_sides_are_their_own",
    ),
    Fault(
        "a classifier is trained on the images that are held back",
        "examples[order[: held_back(count)]], examples[order[held_back(count) :]]",
        "examples[order[: held_back(count)]], examples[order]",
        "stages/test_surrogate.py::test_images_that_validate_are_not_trained_on",
    ),
    # Networks and training.
    Fault(
        "the time embedding's sines and cosines swapped",
        "waves[::-1] if flip_sin_to_cos else waves",
        "waves if flip_sin_to_cos else waves[::-1]",
        "models/test_unet.py::test_sinusoidal_embedding_by_hand",
    ),
    Fault(
        "BatchNorm's statistics follow the batch while sampling",
        "module.apply(_variables(tree), x, t)",
        'module.apply(_variables(tree), x, t, train=True, mutable=["batch_stats"])[0]',
        "models/test_classifiers.py::test_guidance_gradients_do_not_couple_the_batch",
    ),
    Fault(
        "training gives back the last parameters, not their average",
        "    return jax.device_get(ema), done\n",
        '    return jax.device_get(state["params"]), done\n',
        "training/test_trainer.py::test_training_gives_back_and_saves_the_average",
    ),
    Fault(
        "the checkpoint's EMA is the parameters",
        "store.save(done, state=state, ema=ema, meta=meta)",
        'store.save(done, state=state, ema=state["params"], meta=meta)',
        "training/test_trainer.py::test_training_gives_back_and_saves_the_average",
    ),
    Fault(
        "the warm-up of the learning rate ignored",
        "if not fit.warmup_steps:",
        "if fit.warmup_steps >= 0:",
        "training/test_trainer.py::test_learning_rate_warms_up_and_decays",
    ),
    Fault(
        "every epoch in the same order",
        "np.random.default_rng([seed, epoch])",
        "np.random.default_rng([seed, 0])",
        "training/test_trainer.py::test_every_epoch_is_a_fresh_shuffle_without_its_ragged_end",
    ),
    # Reading images.
    Fault(
        "linked folders left out",
        "starts.append(folder)",
        "pass",
        "data/test_sources.py::test_linked_folders_are_read_once_and_loops_end",
    ),
    Fault(
        "a link to a folder that holds the set is followed",
        "(_identity(start) in seen or _identity(start) in above)",
        "_identity(start) in seen",
        "data/test_sources.py::test_linked_folders_are_read_once_and_loops_end",
    ),
    Fault(
        "only the first page of a stack",
        "return full, len(reduced) - len(full)",
        "return full[:1], 0",
        "data/test_sources.py::test_pages_of_a_stack_are_pictures",
    ),
    Fault(
        "what is passed over is not counted",
        "passed_over.update(_kind(name) for name in names if name not in chosen)",
        "pass",
        "data/test_sources.py::test_what_is_not_read_is_counted_and_named_by_its_kind",
    ),
    Fault(
        "the EXIF orientation always applied",
        'if orientation == "apply" else picture.copy()',
        "if orientation else picture.copy()",
        "data/test_sources.py::test_orientation_is_applied_or_not_and_counted",
    ),
    Fault(
        "squashed although cropping was asked for",
        'if reshaped and rules.fit == "crop":',
        "if reshaped and not rules.fit:",
        "data/test_sources.py::test_pictures_are_cropped_or_squashed_and_counted",
    ),
    Fault(
        "the range of 16-bit grey ignored",
        "np.round(values * (255 / white))",
        "np.round(values * (255 / WHITE))",
        "data/test_sources.py::test_twelve_bits_in_sixteen",
    ),
    Fault(
        "dark scans pass",
        "max(deep) <= DARK",
        "max(deep) < 0",
        "data/test_sources.py::test_twelve_bits_in_sixteen",
    ),
    # Members, held-out images and pseudo-labels.
    Fault(
        "held-out images that are members",
        "members, candidates = order[:count], order[count:]",
        "members, candidates = order[:count], order[count // 2 :]",
        "data/test_datasets.py::test_split_is_disjoint_and_repeatable",
    ),
    Fault(
        "the filter of near duplicates off",
        "if limit > 0:",
        "if limit > 9:",
        "data/test_datasets.py::test_near_duplicates_of_members_are_moved_out_of_the_held_out_images",
    ),
    Fault(
        "data that changed are not noticed",
        'if row["sha256"] != ',
        'if row["sha256"] == "" != ',
        "data/test_datasets.py::test_split_file_notices_changed_data",
    ),
    Fault(
        "the cohesion threshold the other way round",
        "scores < label.cohesion_threshold",
        "scores > label.cohesion_threshold",
        "features/test_clustering.py::test_images_of_rejected_clusters",
    ),
    # Scores.
    Fault(
        "members and held-out images swapped",
        'images = {"members": members, "heldout": heldout[: len(members)]}',
        'images = {"members": heldout[: len(members)], "heldout": members}',
        "measure/test_scoring.py::test_copies_of_members_are_an_excess_by_every_metric",
    ),
    Fault(
        "the end of a band belongs to it",
        "((v >= band[0]) & (v < band[1]) for v",
        "((v >= band[0]) & (v <= band[1]) for v",
        "memorization/test_metrics.py::test_bands_are_half_open_disjoint_and_cumulative",
    ),
    Fault(
        "UMS over the number of members",
        "(self.hits > 0).sum() / len(self.matched)",
        "(self.hits > 0).sum() / len(self.hits)",
        "memorization/test_metrics.py::test_scores_by_hand",
    ),
    Fault(
        "the calibrated threshold from the wrong tail",
        "np.partition(null, k - 1)[k - 1]",
        "np.partition(null, len(null) - k)[len(null) - k]",
        "memorization/test_intervals.py::test_the_threshold_holds_its_rate_exactly",
    ),
    Fault(
        "Wald's interval in place of Wilson's",
        "    return float(interval.low), float(interval.high)\n",
        "    rate, z = hits / trials, stats.norm.isf((1 - confidence) / 2)\n"
        "    half = z * math.sqrt(rate * (1 - rate) / trials)\n"
        "    return float(max(rate - half, 0)), float(min(rate + half, 1))\n",
        "memorization/test_intervals.py::test_wilson_interval",
    ),
    Fault(
        "McNemar's test of the other side",
        'alternative="greater"',
        'alternative="less"',
        "memorization/test_intervals.py::test_mcnemar",
    ),
    Fault(
        "an interval of AUC with a one-sided z",
        "z = stats.norm.isf((1 - confidence) / 2)\n    extra",
        "z = stats.norm.isf(1 - confidence)\n    extra",
        "memorization/test_membership.py::test_interval_inverts_the_variance_of_hanley_and_mcneil",
    ),
    Fault(
        "AUC reversed",
        "stats.mannwhitneyu(heldout.astype(np.float64), members.astype(np.float64),",
        "stats.mannwhitneyu(members.astype(np.float64), heldout.astype(np.float64),",
        "memorization/test_membership.py::test_smaller_is_member_like",
    ),
    # Files.
    Fault(
        "a write that is not atomic",
        'temporary = path.with_name(f"{path.name}.{jax.process_index()}.tmp")',
        "temporary = path",
        "workdir/test_object_stores.py::test_two_processes_write_the_same_file",
    ),
    Fault(
        "a shard is not checked",
        "            return False\n        return True\n",
        "            return self.path.exists()\n        return True\n",
        "sampling/test_shards.py::test_only_what_is_lost_is_made_again",
    ),
    Fault(
        "a fingerprint that ignores the sampler",
        'f"extract/{name}": (("sampler",), (',
        'f"extract/{name}": ((), (',
        "stages/test_fingerprints.py",
    ),
    Fault(
        "a checkpoint's digest is not looked at",
        'altered = [name for name, tree in trees.items() if _digest(tree) != meta["sha256"][name]]',
        "altered = []",
        "workdir/test_checkpoint.py",
    ),
    Fault(
        "two runs in one workdir",
        'stack.enter_context(filelock.FileLock(workdir / ".lock", timeout=0))',
        "pass",
        "pipeline/test_interruptions.py::test_a_run_holds_its_workdir",
    ),
    # Changed and missing evidence.
    Fault(
        "changed files pass for the original",
        "return path.exists() and files.file_digest(path) != digest",
        "return False",
        "pipeline/test_lost_files.py::test_a_stage_that_reads_what_is_changed_names_it",
    ),
    Fault(
        "the split of an earlier version's run is not checked",
        'if work.content().get("split_sha256", digest) != digest:',
        "if False:",
        "pipeline/test_lost_files.py::test_runs_of_earlier_versions_are_unverified_but_for_their_split",
    ),
    Fault(
        "an unfinished training does not record its split",
        "        unit.record(path)\n",
        "        pass\n",
        "pipeline/test_lost_files.py::test_a_split_changed_before_training_ends_is_noticed",
    ),
    Fault(
        "an image that is gone is not looked for",
        "        _check_nothing_gone(settings.data, path)\n",
        "        pass\n",
        "stages/test_stage_inputs.py",
    ),
    Fault(
        "verify does not compare arrays",
        "if files.array_digest(jax.tree.leaves(tree)) != digest:",
        "if tree is None:",
        "commands/test_custody.py::test_what_is_not_as_it_was_written_is_named",
    ),
    Fault(
        "clean removes what others put there",
        'manifest.get("unit") == name and',
        'manifest.get("unit") and',
        "commands/test_custody.py::test_clean_removes_what_the_run_does_not_own_and_nothing_else",
    ),
    Fault(
        "a bundle's page is not private",
        "report=dataclasses.replace(settings.report, private=True)",
        "report=settings.report",
        "commands/test_custody.py::test_a_bundle_neither_names_nor_shows_an_image",
    ),
    Fault(
        "a private run's tables name files",
        'names=("",) * len(rows) if private else called',
        "names=tuple(source.names[row] for row in rows)",
        "commands/test_private.py::test_a_run_tells_neither_files_nor_patients",
    ),
    Fault(
        "a private run's log names damaged files",
        "number(i) if private else source.names[row]",
        "source.names[row]",
        "commands/test_private.py::test_a_run_tells_neither_files_nor_patients",
    ),
    Fault(
        "a run that becomes private keeps the names in its split",
        'row["name"] = ""',
        "pass",
        "commands/test_custody.py::test_a_run_that_becomes_private_names_no_file",
    ),
    Fault(
        "a private audit of images alone names damaged files",
        "names=[number(row) for row in range(len(source.names))]",
        "names=source.names",
        "commands/test_private.py::test_images_alone_tell_neither_files_nor_patients",
    ),
    Fault(
        "patients are on both sides",
        'if data.split_by == "identity" and source.patients:',
        'if data.split_by == "" and source.patients:',
        "data/test_medical.py::test_no_patient_is_on_both_sides",
    ),
    Fault(
        "low values are black though the file says white",
        "_eight_bits(1 - unit if inverted else unit)",
        "_eight_bits(unit)",
        "data/test_medical.py::test_grey_values",
    ),
    Fault(
        "the window of each frame ignored",
        "own.update(item)",
        "pass",
        "data/test_medical.py::test_frames_of_enhanced_files_have_windows_of_their_own",
    ),
    Fault(
        "what pydicom says of a damaged file is told",
        "raise _UnreadableError(otherwise) from None",
        "raise",
        "data/test_medical.py::test_nothing_of_a_header_is_told",
    ),
    Fault(
        "a second Ctrl-C waits",
        "elif number == signal.SIGINT or not (",
        "elif not (",
        "devices/test_signals.py",
    ),
    Fault(
        "what has no loop waits for one",
        "not (_state.saving or",
        "not (True or",
        "devices/test_signals.py",
    ),
    # The report.
    Fault(
        "private pictures are not blurred",
        "        tiles = blurred(tiles)\n",
        "        tiles = tiles.copy()\n",
        "report/test_page.py::test_a_private_page_holds_no_name_and_no_sharp_picture",
    ),
    Fault(
        "HTML is not escaped",
        "autoescape=True",
        "autoescape=False",
        "report/test_page.py::test_no_string_becomes_markup",
    ),
)


def copied(folder: Path) -> Path:
    """A copy of the tree."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def tested(folder: Path, tests: str) -> tuple[int, str]:
    """(pytest's exit code, its last lines) of the tests in a copy; it stops at the first that fails."""
    paths = [f"tests/{name}" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--durations=1", *paths]
    # Compiled programs are found by what they compute; a faulty one is as welcome there as any.
    environment = os.environ | {"SIDE_JAX_TEST_CACHE": str(ROOT / ".pytest_cache" / "faults")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-25:])


def tried(number: int, fault: Fault) -> bool:
    """Whether a fault is caught; says so."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="side_jax_fault_") as name:
        sources = {path: path.read_text() for path in (copied(Path(name)) / "side_jax").rglob("*.py")}
        found = [path for path, text in sources.items() for _ in range(text.count(fault.old))]
        if len(found) != 1:
            print(f"{number:3d} NOT caught: {fault.old!r} stands in side_jax/ {len(found)} times, not once", flush=True)
            return False
        found[0].write_text(sources[found[0]].replace(fault.old, fault.new))
        code, said = tested(Path(name), fault.tests)
    result = {0: "NOT caught", 1: "caught"}.get(code, f"NOT caught (pytest ended with {code})")
    by = [line for line in said.splitlines() if line.startswith("FAILED")][:1]
    print(f"{number:3d} {result}, {time.monotonic() - began:4.0f} s: {fault.what}. {' '.join(by)[:120]}", flush=True)
    if code not in (0, 1):
        print(said, flush=True)
    return code == 1


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", help="numbers of faults, from 1")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time")
    options = parser.parse_args()
    chosen = {number: FAULTS[number - 1] for number in options.only or range(1, len(FAULTS) + 1)}
    with tempfile.TemporaryDirectory(prefix="side_jax_fault_") as name:
        tests = sorted({test for fault in chosen.values() for test in fault.tests.split()})
        code, said = tested(copied(Path(name)), " ".join(tests))
        if code:
            sys.exit(f"{said}\nThe tests fail without a fault.")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        caught = list(pool.map(tried, chosen, chosen.values()))
    print(f"{sum(caught)} of {len(caught)} faults are caught.")
    sys.exit(not all(caught))


if __name__ == "__main__":
    main()
