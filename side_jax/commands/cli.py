"""The command line that all binaries share: flags, one clear sentence for each error, exit codes.

Exit code 0 is success; 1 an input that can't be used; 2 a command line that can't be read; 143 SIGTERM.
"""

import errno
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from side_jax.commands import closed_form, sample_audit
from side_jax.config import default_config, from_config
from side_jax.devices import process_group
from side_jax.errors import InputError, StoppedError
from side_jax.pipeline import audit, saved_config
from side_jax.pipeline.resolve import resolve
from side_jax.settings.mixtures import Theory
from side_jax.stages import report, suspects
from side_jax.workdir import files

_HELP_FLAGS = ("--help", "-h", "-help")
_HELP = """{description}

Options:
  --config=FILE     The settings: a file such as configs/digits.py. Without it, the config the workdir was made with.
  --config.a.b=X    Overrides one value, such as --config.extract.num_images=4096; side_jax/settings/ lists all.
  --workdir=DIR     The folder for everything the run writes; made if needed. Running the same command again goes on
                    where it stopped, and redoes only what depends on a changed setting.
  --stages=A,B      The stages to run, in their order, of: train, synthesize, label, surrogate, extract, evaluate,
                    report; apart from these, suspects. By default {stages}.
  --dry-run         Checks everything, then says what there is to do: shards, device-seconds estimated from timed
                    steps, disk space. Writes nothing.
  --processes=N     Joins N processes, each with its devices, to one run (all run the same command and see the same
                    workdir). TPU and Slurm need no more; elsewhere also give
  --coordinator=HOST:PORT  of the first process, and
  --process_id=I    0 to N-1.
  --help            Shows this.

At the end: DIR/report/index.html for people, DIR/evaluate/results.json and matches.csv for programs.
Exit code: 0 done, 1 an input can't be used, 2 the command line can't be read, 143 stopped by SIGTERM while training
or sampling, after what was done was saved."""
_THEORY_HELP = """{description}

Options:
  --config=FILE     The settings: a file such as configs/theory_gmm.py. Without it, the defaults of
                    side_jax/settings/theory.py.
  --config.a=X      Overrides one value of the file, such as --config.repeats=50.
  --workdir=DIR     The folder for theory/results.json and theory/theorem1.png; made if needed. What an earlier run left
                    there is replaced when this one is finished.
  --help            Shows this.

Exit code: 0 done, 1 an input can't be used, 2 the command line can't be read."""


def main(argv: Sequence[str], description: str, default_stages: Sequence[str]) -> int:
    """Parses the command line, runs the stages, prints where the report is; returns the exit code."""
    log_to_stderr()
    try:
        options = _parse(argv, description, default_stages)
    except InputError as error:
        return _fail(error, 2)
    if options is None:
        return 0
    config, workdir, stages, processes, dry = options

    def work() -> None:
        process_group.join(*processes)
        with process_group.propagate_errors():
            settings = resolve(saved_config.saved_config(workdir) if config is None else config, workdir)
        if dry:
            found = audit.dry_run(settings, workdir, stages)
            if process_group.primary():
                print(found)
            return
        audit.run(settings, workdir, stages)
        if "report" in stages and process_group.primary():
            print(report.in_plain_words(settings, workdir))
        if "suspects" in stages and process_group.primary():
            print(suspects.in_plain_words(workdir))

    return _guarded(work, workdir)


def audit_samples(argv: Sequence[str]) -> int:
    """The audit of images alone, see samples.py; returns the exit code."""
    log_to_stderr()
    if _asks_for_help(argv):
        print(sample_audit.HELP)
        return 0
    try:
        values, config = _read(lambda: sample_audit.parse(argv))
    except InputError as error:
        return _fail(error, 2)
    return _guarded(lambda: print(sample_audit.run(values, config, argv)), values.out)


def theory(argv: Sequence[str], description: str) -> int:
    """Theorem 1 in closed form, see stages/theory.py; returns the exit code."""
    log_to_stderr()
    if _asks_for_help(argv):
        print(_THEORY_HELP.format(description=description.strip()))
        return 0
    try:
        _, config, workdir = _given(_flags(argv), argv)
    except InputError as error:
        return _fail(error, 2)
    config = default_config(Theory) if config is None else config
    return _guarded(lambda: print(closed_form.run(from_config(config, Theory), workdir)), workdir)


def _guarded(work: Callable[[], None], where: object) -> int:
    """Runs the work; one sentence for each error. Returns the exit code."""
    try:
        work()
    except InputError as error:
        return _fail(error, 1)
    except StoppedError as error:
        return _fail(error, 128 + signal.SIGTERM)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or where
        return _fail(
            f"writing {where} failed: {error.strerror}. What was written before is kept; run again after mending it.", 1
        )
    except KeyboardInterrupt:
        return _fail("stopped by the keyboard; run the same command again to go on.", 1)
    return 0


def log_to_stderr() -> None:
    """Shows this package's log lines, and of orbax's and JAX's only what matters."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logger = logging.getLogger("side_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]


def _fail(error: object, code: int) -> int:
    print(f"side_jax: {error}", file=sys.stderr, flush=True)
    return code


def _parse(
    argv: Sequence[str], description: str, default_stages: Sequence[str]
) -> tuple[ml_collections.ConfigDict | None, Path, list[str], tuple[int, str | None, int | None], bool] | None:
    """(config or None, workdir, stages, arguments of parallel.join, dry run), or None where only help was asked for."""
    values = _flags(argv)
    flags.DEFINE_list("stages", list(default_stages), "", flag_values=values)
    flags.DEFINE_integer("processes", 1, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", lower_bound=0, flag_values=values)
    if _asks_for_help(argv):
        print(_HELP.format(description=description.strip(), stages=", ".join(default_stages)))
        return None

    # absl's flags can't have a hyphen.
    values, config, workdir = _given(
        values, ["--dry_run" if argument == "--dry-run" else argument for argument in argv]
    )
    if values.process_id is not None and values.process_id >= values.processes:
        raise InputError(f"--process_id={values.process_id} must be below --processes={values.processes}.")
    processes = values.processes, values.coordinator, values.process_id
    return config, workdir, values.stages, processes, values.dry_run


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(argument in _HELP_FLAGS for argument in argv[1:])


def _flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags that every command has which takes a config."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    return values


def _given(
    values: flags.FlagValues, argv: Sequence[str]
) -> tuple[flags.FlagValues, ml_collections.ConfigDict | None, Path]:
    """(the flags read from the command line, config or None, workdir)."""

    def read() -> tuple[list[str], ml_collections.ConfigDict | None]:
        rest = values(list(argv))[1:]
        config = values.config
        return rest, None if config is None else config.lock()  # a file that can't be loaded raises only when it's used

    rest, config = _read(read)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; every option begins with --, see --help.")
    if not values.workdir:
        raise InputError("--workdir=DIR is missing: the folder for everything the run writes.")
    return values, config, files.as_path(values.workdir)


def _read(parse: Callable[[], Any]) -> Any:
    """What `parse` returns; raises InputError for whatever it raises."""
    try:
        return parse()
    except InputError:
        raise
    except Exception as error:  # absl and ml_collections raise many types, and a config file may raise any
        raise InputError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if "Traceback" in str(error):
        lines = lines[-1:]  # ml_collections puts the traceback of a failing config file into its message
    return f"the command line can't be read: {' '.join(lines)[:400].strip(chr(34)) or type(error).__name__}"
