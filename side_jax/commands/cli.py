"""The commands: their options, what they run, one sentence for each error, and exit codes.

Exit code 0 is success; 1 an input that can't be used; 2 a command line that can't be read; 3 results that --fail-above
or --fail-on refuses; 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import functools
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from absl import logging as absl_logging

from side_jax.commands import closed_form, compare, custody, model_audit, options, sample_audit
from side_jax.commands.options import UsageError, usage_errors
from side_jax.config import default_config, from_config, load_config
from side_jax.devices import placement, process_group, signals
from side_jax.errors import InputError, StoppedError
from side_jax.measure import records
from side_jax.pipeline import audit, budget, saved_config
from side_jax.pipeline.resolve import resolve
from side_jax.progress import WATCH
from side_jax.report import ending
from side_jax.report.gate import FAIL_ON, Gate
from side_jax.settings import Settings
from side_jax.settings.mixtures import Theory
from side_jax.settings.paths import path_fields
from side_jax.stages import stage_table, suspects
from side_jax.workdir import files

Work = Callable[[], int | None]  # returns the exit code; None: 0

FAILS = 3  # the exit code of results that a gate refuses
_EXIT_CODES = """\
Exit codes: 0 done; 1 an input can't be used; 2 the command line can't be read; 130 stopped by
Ctrl-C (SIGINT); 143 stopped by SIGTERM. Finished work is kept; a second Ctrl-C does not wait."""
_EXIT_CODES_OF_AUDITS = """\
Exit codes: 0 done; 1 an input can't be used; 2 the command line can't be read; 3 --fail-above or
--fail-on fails; 130 stopped by Ctrl-C (SIGINT); 143 stopped by SIGTERM. Finished work is kept; a
second Ctrl-C does not wait."""
_FORMATS = """\
PATH of a model, and what its files do not say, as --config.target.NAME=VALUE:
  a diffusers folder, of pixels or latents       nothing; of text, prompts=FILE
  pytorch-ddpm's ckpt.pt                         nothing
  lucidrains' model-N.pt, EDM's *.pkl            nothing
  improved- and guided-diffusion's ema_*.pt      num_heads=N or head_channels=N, qkv_order=legacy
                                                 or new, schedule=linear or cosine
  MONAI's model.pt or bundle                     head_channels=N, schedule, pixels=unit or
                                                 signed; of latents, latent_scale for pixels
  torchcfm's *.pt                                head_channels=N or num_heads=N, qkv_order
  hf://OWNER/NAME                                as its files
docs/your_model.md has a command for each.
"""
_AUDIT_EPILOGUE = f"""\
A model that was trained elsewhere: `audit --model=PATH --members=SEEN --heldout=UNSEEN` chooses the
settings, see audit --help; --config=diffusers --config.target.path=PATH --config.data.path=SEEN
--config.data.heldout_from=UNSEEN names all of them.

{_FORMATS}
Results: DIR/report/index.html for people; DIR/evaluate/results.json and matches.csv for programs.
{_EXIT_CODES_OF_AUDITS}"""


_MODEL_EPILOGUE = f"""\
{_FORMATS}
The same command again continues where it stopped, with the same settings.

Results: DIR/report/index.html for people; DIR/evaluate/results.json and matches.csv for programs.
{_EXIT_CODES_OF_AUDITS}"""


def main(
    argv: Sequence[str], description: str, default_stages: Sequence[str], *, suspects_stages: Sequence[str] = ()
) -> int:
    """Runs stages of an audit in a workdir, and prints the findings.

    Args:
      argv: the command line, with the program's name first.
      description: of the command, for its help page.
      default_stages: the stages to run unless --stages names others.
      suspects_stages: what --suspects runs in their place; empty: there is no such option.

    Returns:
      The exit code.
    """
    values = flags.FlagValues()
    _define_audit(values, default_stages, bool(suspects_stages))
    read = functools.partial(_read_audit, values, default_stages, suspects_stages)
    return _command(argv, values, description, _AUDIT_EPILOGUE, read)


def audit_samples(argv: Sequence[str]) -> int:
    """Runs a samples-only audit, see sample_audit.py. Returns the exit code."""
    values = flags.FlagValues()
    _define_samples(values)
    description = (
        "Audits generated images from any source against members and held-out images, without a model.\n\n"
        "Usage: python -m side_jax.evaluate --samples=PATH --members=PATH --heldout=PATH --out=DIR\n\n"
        "PATH is a folder of pictures (at any depth) or a ZIP of them, or an NPZ (`images`) or NPY of uint8 [n, h, w] "
        "or [n, h, w, c],\nor Parquet files, or a folder of these. docs/your_data.md has all kinds."
    )
    results = "Results: DIR/index.html for people; DIR/results.json and tables (CSV) for programs."
    epilogue = f"{results}\n{_EXIT_CODES_OF_AUDITS}"
    return _command(argv, values, description, epilogue, functools.partial(_read_samples, values, argv))


def asks_for_samples(arguments: Sequence[str]) -> bool:
    """Whether the arguments are those of a samples-only audit."""
    names = (argument.partition("=")[0].lstrip("-") for argument in arguments if argument.startswith("-"))
    return any(name in sample_audit.LEAST for name in names)


def theory(argv: Sequence[str], description: str) -> int:
    """Measures Theorem 1 in closed form, see closed_form.py. Returns the exit code."""
    values = flags.FlagValues()
    options.define_config(
        values,
        "A packaged config, such as theory_gmm, or the path of a config file. Default: the defaults of the settings. "
        "--config.SETTING=VALUE overrides one setting, such as --config.repeats=50.",
    )
    _define_workdir(values, "Folder for theory/results.json and theory/theorem1.png, which a finished run replaces.")
    return _command(argv, values, description, _EXIT_CODES, functools.partial(_read_theory, values))


def subcommand(arguments: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    """What runs the command that the first argument names: argv -> exit code; None: it names none."""
    return SUBCOMMANDS.get(arguments[0]) if arguments else None


def keep(argv: Sequence[str]) -> int:
    """Runs a command on a workdir, which the first argument names, see custody.py. Returns the exit code."""
    values, command = flags.FlagValues(), custody.COMMANDS[argv[1]]
    _define_workdir(values, "Folder of a run.")
    for name, default, metavar, meaning in command.options:
        kind = flags.DEFINE_bool if default is False else flags.DEFINE_string
        options.define(values, kind, name, default, metavar, meaning)
    usage = f"{command.description}\n\nUsage: python -m side_jax.main {argv[1]} --workdir=DIR"
    return _command(argv[1:], values, usage, _EXIT_CODES, functools.partial(_read_custody, values, command))


def compare_audits(argv: Sequence[str]) -> int:
    """Compares finished audits, see compare.py. Returns the exit code."""
    values = flags.FlagValues()
    meaning = "Folder for the results, outside of every audit. Those of an earlier comparison are replaced."
    options.define(values, flags.DEFINE_string, "out", None, "DIR", meaning)
    options.define(values, flags.DEFINE_bool, "json", False, "", "Print DIR/compare.json in place of text.")
    usage = (
        "Compares finished audits with the first of them: two checkpoints, before and after deduplication, two seeds.\n"
        f"\nUsage: python -m side_jax.main {argv[1]} A B [C ...] --out=DIR\n\nA, B, C: workdirs, or output folders of "
        "audits of images alone, with one headline metric and\nthreshold, and an equal number of generated images."
    )
    epilogue = (
        "Results: DIR/index.html for people; DIR/compare.json, and DIR/compare.csv with the members\nthat each "
        f"audit extracted, for programs.\n{_EXIT_CODES}"
    )
    return _command(argv[1:], values, usage, epilogue, functools.partial(_read_compare, values))


def audit_model(argv: Sequence[str]) -> int:
    """Audits a model without a config, see model_audit.py. Returns the exit code."""
    values = flags.FlagValues()
    _define_model(values)
    usage = (
        "Audits a model with the settings that fit into a given time on this machine, and says which these are.\n\n"
        f"Usage: python -m side_jax.main {argv[1]} --model=PATH --members=PATH --heldout=PATH\n\n"
        "PATH of a model: a checkpoint of any format below, or hf://OWNER/NAME. PATH of images: a folder of pictures "
        "(at any\ndepth), a ZIP of them, an NPZ, an NPY or a Parquet file."
    )
    return _command(argv[1:], values, usage, _MODEL_EPILOGUE, functools.partial(_read_model, values))


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], int]] = dict.fromkeys(custody.COMMANDS, keep) | {
    "audit": audit_model,
    "compare": compare_audits,
}


def _define_workdir(values: flags.FlagValues, meaning: str) -> None:
    options.define(values, flags.DEFINE_string, "workdir", None, "DIR", meaning)


def _define_dry_run(values: flags.FlagValues, meaning: str) -> None:
    options.define(values, flags.DEFINE_bool, "dry_run", False, "", meaning)


def _define_end(values: flags.FlagValues) -> None:
    """Adds the options that say what a command prints at its end, and when it fails."""
    options.define(
        values,
        flags.DEFINE_bool,
        "json",
        False,
        "",
        "At the end, print the verdict, the findings and a row for each attack as JSON in place of text. Nothing else "
        "goes to standard output.",
    )
    options.define(
        values,
        flags.DEFINE_string,
        "fail_above",
        None,
        "RATE",
        "End with exit code 3 if the verdict is Leaks and, for any attack, the share of images that match training "
        "images beyond chance is above RATE, such as 0.01 or 1%, even at the lower end of its interval.",
    )
    options.define(
        values,
        flags.DEFINE_string,
        "fail_on",
        None,
        "VERDICT",
        "End with exit code 3 if the verdict is Leaks (VERDICT: leaks), or not No leak found (undecided).",
    )


def _gate(values: flags.FlagValues) -> Gate:
    """The gate that the options describe."""
    text, above = values.fail_above, None
    if text is not None:
        try:
            above = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            above = -1.0
        if not 0 <= above < 1:
            raise UsageError(f"--fail-above={text} must be a share of images from 0 to below 1, such as 0.01 or 1%.")
    on = values.fail_on or ""
    if on and on not in FAIL_ON:
        raise UsageError(f"--fail-on={on} must be one of {', '.join(FAIL_ON)}.")
    return Gate(above=above, on=on)


def _end(values: flags.FlagValues, results: Path, confidence: float, page: Path) -> int:
    """Prints the summary of a results.json; returns the exit code."""
    found = records.read(results)
    failures = _gate(values).failures(found, confidence)
    print((ending.as_json if values.json else ending.text)(found, confidence, page, failures))
    return FAILS if failures else 0


def _end_run(values: flags.FlagValues, workdir: Path, settings: Settings) -> int:
    """_end of a run in a workdir."""
    results, page = workdir / "evaluate" / "results.json", workdir / "report" / "index.html"
    return _end(values, results, settings.evaluate.confidence, page)


def _define_audit(values: flags.FlagValues, default_stages: Sequence[str], ranks_suspects: bool) -> None:
    options.define_config(
        values,
        "A packaged config, such as digits or celeba:64, or the path of a config file. Default: the config saved in "
        "the workdir. --config.SECTION.SETTING=VALUE overrides one setting, such as --config.extract.num_images=4096.",
    )
    _define_workdir(
        values,
        "Folder for everything that the run writes; created if needed. The same command run again continues where it "
        "stopped, and redoes only what depends on a changed setting.",
    )
    options.define(
        values,
        flags.DEFINE_list,
        "stages",
        list(default_stages),
        "A,B",
        f"Stages to run, out of {', '.join(stage_table.STAGES)}. Default: {', '.join(default_stages)}.",
    )
    if ranks_suspects:
        options.define(
            values,
            flags.DEFINE_bool,
            "suspects",
            False,
            "",
            "Instead, rank the generated images by how much they look memorised, as an attacker without the training "
            "data would.",
        )
    _define_dry_run(
        values,
        "Check everything, then print what is left to do: shards, seconds estimated from timed steps, disk space. "
        "Nothing is written.",
    )
    _define_processes(values)
    _define_end(values)
    _define_progress(values)


def _define_progress(values: flags.FlagValues) -> None:
    """Adds the options that say what a command shows while it runs."""
    options.define(
        values,
        flags.DEFINE_bool,
        "quiet",
        False,
        "",
        "Show only warnings, errors and what is printed at the end. run.log keeps all lines.",
    )
    options.define(
        values,
        flags.DEFINE_bool,
        "plain",
        False,
        "",
        "Show lines, one a minute, in place of bars and colours. So it is without a terminal, and with NO_COLOR or "
        "TERM=dumb.",
    )


def _define_processes(values: flags.FlagValues) -> None:
    options.define(
        values,
        flags.DEFINE_integer,
        "processes",
        1,
        "N",
        "Number of processes that share the run, each with its own devices. All run the same command on the same "
        "workdir. On TPU and Slurm they find each other; elsewhere also give --coordinator and --process-id.",
        lower_bound=1,
    )
    options.define(
        values, flags.DEFINE_string, "coordinator", None, "HOST:PORT", "Address of the first process, for --processes."
    )
    options.define(
        values,
        flags.DEFINE_integer,
        "process_id",
        None,
        "I",
        "Number of this process, 0 to N-1, for --processes.",
        lower_bound=0,
    )


def _define_model(values: flags.FlagValues) -> None:
    text = flags.DEFINE_string
    options.define(values, text, "model", None, "PATH", "The model, by its files.")
    options.define(values, text, "members", None, "PATH", "Images that the model was trained on.")
    options.define(
        values, text, "heldout", None, "PATH", "Images of the same kind that the model has never seen: the control."
    )
    options.define(
        values,
        text,
        "budget",
        model_audit.DEFAULT_BUDGET,
        "TIME",
        f"How long the audit may take, such as 90s, 10min or 2h. Default: {model_audit.DEFAULT_BUDGET}.",
    )
    _define_workdir(
        values, "Folder for everything that the run writes; created if needed. Default: runs/NAME, by the model's name."
    )
    options.define(
        values, flags.DEFINE_list, "attacks", [], "A,B", "Attacks to run. Default: those that the time allows."
    )
    _define_dry_run(values, "Check everything and choose the settings, then print the plan. Nothing is written.")
    options.define_config(
        values,
        "Set what is not to be chosen, such as --config.extract.num_images=1024 or --config.report.private=True.",
        form=".SECTION.SETTING=VALUE",
    )
    _define_end(values)
    _define_progress(values)


def _define_samples(values: flags.FlagValues) -> None:
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    options.define(values, text, "samples", None, "PATH", "Generated images.")
    options.define(values, text, "members", None, "PATH", "Images that the model was trained on.")
    options.define(
        values,
        text,
        "heldout",
        None,
        "PATH",
        "Images of the same kind that the model has never seen: the control. Near duplicates of members are left out.",
    )
    options.define(
        values, text, "out", None, "DIR", "Folder for the results. Those of an earlier audit are replaced at the end."
    )
    options.define(
        values,
        number,
        "size",
        None,
        "N",
        "Crop and resize all images to N x N pixels; needed if their sizes differ.",
    )
    options.define(
        values,
        number,
        "max_corrupt",
        0,
        "N",
        "Number of damaged files that are left out of each set; one more is an error. Default: 0.",
        lower_bound=0,
    )
    options.define(values, text, "title", "Samples", "TEXT", "Title of the report, also of a private one.")
    options.define_config(
        values,
        "Override one setting of evaluate, label (the features) or report, or of how pictures are read (data.fit, "
        "data.orientation, data.bit_range), such as --config.evaluate.rmse_below=0.1 or --config.report.private=True.",
        form=".SECTION.SETTING=VALUE",
    )
    _define_end(values)
    _define_progress(values)


def _read_audit(
    values: flags.FlagValues, default_stages: Sequence[str], suspects_stages: Sequence[str], arguments: list[str]
) -> tuple[Work, Path]:
    workdir = _workdir(arguments)
    name, arguments = options.take(arguments, "config")
    config, overridden = options.parse(
        values, arguments, saved_config.saved_config(workdir) if name is None else _load(name)
    )
    if name is None:
        _forget_digests(config, overridden)
    if values.process_id is not None and values.process_id >= values.processes:
        raise UsageError(f"--process_id={values.process_id} must be below --processes={values.processes}.")
    stages = values.stages
    if suspects_stages and values.suspects and values["stages"].using_default_value:
        stages = list(suspects_stages)
    if (_gate(values).active or values.json) and ("report" not in stages or values.dry_run):
        raise UsageError(
            "--json, --fail-above and --fail-on need the stage report, and no --dry-run; add report to --stages, or "
            "leave them out."
        )
    return functools.partial(_run_audit, values, config, workdir, stages), workdir


def _run_audit(
    values: flags.FlagValues, config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str]
) -> int:
    process_group.join(values.processes, values.coordinator, values.process_id)
    if values.processes > 1:  # one of them has the bars, the others say what they do in lines
        WATCH.bars = WATCH.bars and process_group.primary()
    with process_group.propagate_errors(), WATCH.doing("reading the config and what it names"):
        settings = resolve(config, workdir)
    if values.dry_run:
        plan = audit.dry_run(settings, workdir, stages)
        if process_group.primary():
            print(plan)
        return 0
    audit.run(settings, workdir, stages)
    code = 0
    if "report" in stages and process_group.primary():
        code = _end_run(values, workdir, settings)
    if "suspects" in stages and process_group.primary() and not values.json:
        print(suspects.summary_text(workdir))
    return code


def _read_model(values: flags.FlagValues, arguments: list[str]) -> tuple[Work, Path]:
    started, named = time.monotonic(), {}
    for name in ("model", "members", "heldout", "workdir"):
        named[name], arguments = options.take(arguments, name)
    for name in ("model", "members", "heldout"):
        if not named[name]:
            raise UsageError(f"--{name}=PATH is missing; --model, --members and --heldout go together.")
    model, *images = (os.path.expanduser(named[name]) for name in ("model", "members", "heldout"))
    config, given = options.parse(values, arguments, model_audit.start(model, *images))
    with usage_errors():
        workdir = files.as_path(named["workdir"]) if named["workdir"] else model_audit.default_workdir(model)
        seconds = budget.seconds(values.budget)
    if (_gate(values).active or values.json) and values.dry_run:
        raise UsageError("--json, --fail-above and --fail-on need results, and --dry-run makes none; leave one out.")
    request = model_audit.Request(
        config=config,
        workdir=workdir,
        budget=seconds,
        given=frozenset(given),
        attacks=tuple(dict.fromkeys(values.attacks)),
        started=started,
    )

    def work() -> int:
        with model_audit.spoken(model_audit.OPTIONS):
            if values.dry_run:
                print(model_audit.dry_run(request))
                return 0
            settings = model_audit.run(request)
        return _end_run(values, workdir, settings)

    return work, workdir


def _read_samples(values: flags.FlagValues, argv: Sequence[str], arguments: list[str]) -> tuple[Work, Path]:
    for argument in arguments:
        option = argument.partition("=")[0]
        name, _, key = option.lstrip("-").partition(".")
        if name == "config":
            with usage_errors():
                sample_audit.check_override(key, option)
    config, _ = options.parse(values, arguments, default_config())
    for name in ("samples", "members", "heldout", "out"):
        if not getattr(values, name):
            raise UsageError(f"--{name}=PATH is missing; --samples, --members, --heldout and --out go together.")
    request = sample_audit.Request(
        samples=os.path.expanduser(values.samples),
        members=os.path.expanduser(values.members),
        heldout=os.path.expanduser(values.heldout),
        out=files.as_path(values.out),
        config=config,
        size=values.size,
        title=values.title,
        max_corrupt=values.max_corrupt,
        command=shlex.join(["python", "-m", "side_jax.evaluate", *argv[1:]]),
    )
    _gate(values)  # complains

    def work() -> int:
        sample_audit.run(request)
        results, page = request.out / sample_audit.RESULTS, request.out / sample_audit.PAGE
        return _end(values, results, request.config.evaluate.confidence, page)

    return work, request.out


def _read_theory(values: flags.FlagValues, arguments: list[str]) -> tuple[Work, Path]:
    workdir = _workdir(arguments)
    name, arguments = options.take(arguments, "config")
    config, _ = options.parse(values, arguments, default_config(Theory) if name is None else _load(name))
    return lambda: print(closed_form.run(from_config(config, Theory), workdir)), workdir


def _read_custody(values: flags.FlagValues, command: custody.Command, arguments: list[str]) -> tuple[Work, Path]:
    workdir = _workdir(arguments)
    options.parse(values, arguments, ml_collections.ConfigDict())  # it has no settings of its own
    return lambda: command.run(workdir, values), workdir


def _read_compare(values: flags.FlagValues, arguments: list[str]) -> tuple[Work, Path]:
    out, arguments = options.take(arguments, "out")
    folders = [argument for argument in arguments if not argument.startswith("-")]
    options.parse(values, [argument for argument in arguments if argument.startswith("-")], ml_collections.ConfigDict())
    if len(folders) < 2:
        raise UsageError(f"compare needs two audits or more, got {len(folders)}: compare A B --out=DIR, see --help.")
    if not out:
        raise UsageError("--out=DIR is missing: the folder for the comparison.")
    with usage_errors():
        *audits, directory = map(files.as_path, (*folders, out))
    return lambda: print(compare.run(audits, directory, as_json=values.json)), directory


def _workdir(arguments: Sequence[str]) -> Path:
    """The value of --workdir; it is needed before the other options are read, for the config that lies there."""
    workdir, _ = options.take(arguments, "workdir")
    if not workdir:
        raise UsageError("--workdir=DIR is missing: the folder for everything that the run writes.")
    with usage_errors():
        return files.as_path(workdir)


def _load(name: str) -> ml_collections.ConfigDict:
    with usage_errors():
        return load_config(name)


def _forget_digests(config: ml_collections.ConfigDict, overridden: set[str]) -> None:
    """Clears what is recorded of a file whose path is overridden, such as its SHA-256: another file is meant."""
    with config.unlocked():
        for path in path_fields(Settings):
            for recorded in path.recorded if f"{path.section}.{path.name}" in overridden else ():
                if f"{path.section}.{recorded}" not in overridden:
                    config[path.section][recorded] = ""


def _command(
    argv: Sequence[str],
    values: flags.FlagValues,
    description: str,
    epilogue: str,
    read: Callable[[list[str]], tuple[Work, Path]],
) -> int:
    """Shows help or versions, or reads the command line and does its work; returns the exit code.

    Args:
      argv: the command line, with the program's name first.
      values: the options of the command.
      description: for the help page.
      epilogue: for the help page.
      read: the arguments, normalized -> (the work to do, the folder that it writes).
    """
    log_to_stderr()
    options.define_standard(values)
    arguments = argv[1:]
    if options.asks_for_help(arguments):
        print(options.help_page(values, description, epilogue))
        return 0
    if options.asks_for_versions(arguments):
        print(options.versions())
        return 0
    try:
        work, folder = read(options.normalized(arguments))
    except UsageError as error:
        return _fail(error, 2)
    except InputError as error:
        return _fail(error, 1)
    _choose_progress(values)
    return _guarded(work, folder)


def _choose_progress(values: flags.FlagValues) -> None:
    """Shows while the command runs what its options say; all, if it has none."""
    quiet, plain = (name in values and values[name].value for name in ("quiet", "plain"))
    WATCH.bars = not (quiet or plain)
    for handler in logging.getLogger("side_jax").handlers:
        handler.setLevel(logging.WARNING if quiet else logging.NOTSET)


def _guarded(work: Work, folder: Path) -> int:
    """Does the work; prints one sentence for an error. Returns the exit code."""
    try:
        return work() or 0
    except InputError as error:
        return _fail(error, 1)
    except StoppedError as error:
        return _fail(error, signals.exit_code())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or folder
        return _fail(
            f"writing {where} failed: {error.strerror}. What was written before is kept; fix this and run the same "
            "command again.",
            1,
        )
    except Exception:
        reason = placement.missing_backend()
        if not reason:
            raise
        return _fail(reason, 1)


def log_to_stderr() -> None:
    """Shows the log lines of this package and the errors of JAX; orbax raises those that it logs."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logger = logging.getLogger("side_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
    for module, name in ((sys, "unraisablehook"), (threading, "excepthook")):
        hook = getattr(module, name)
        if not isinstance(hook, _Quiet):
            setattr(module, name, _Quiet(hook))


class _Quiet:
    """A hook for errors in the background, without those of a full or damaged disk: the main thread raises its own.

    Threads of orbax, tensorstore and tensorboardX each complain until the process ends, hundreds of lines in all.
    """

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, error: Any) -> None:
        if not isinstance(error.exc_value, OSError) and str(error.exc_value) != "Event loop is closed":
            self._before(error)


def _fail(error: object, code: int) -> int:
    print(f"side_jax: {error}", file=sys.stderr, flush=True)
    return code
