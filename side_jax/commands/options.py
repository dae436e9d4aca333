"""Options of the command line: each is defined together with its help, and the help page lists them."""

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from side_jax.errors import InputError
from side_jax.measure import records

WIDTH, COLUMN = 100, 22  # of the help page: its width, and where the meaning of an option begins
_HELP, _VERSION = ("--help", "-h", "-help"), ("--version", "-version")


class UsageError(InputError):
    """The command line can't be read; the exit code is 2."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """In this block, an input that can't be used makes the command line unreadable."""
    try:
        yield
    except InputError as error:
        raise UsageError(str(error)) from error


def define_standard(values: flags.FlagValues) -> None:
    """Adds the options that every command has."""
    define(values, flags.DEFINE_bool, "help", False, "", "Show this page.")
    define(values, flags.DEFINE_bool, "version", False, "", "Show the versions of side_jax, JAX and Python.")


def define(
    values: flags.FlagValues,
    kind: Callable[..., Any],
    name: str,
    default: Any,
    metavar: str,
    meaning: str,
    **limits: Any,
) -> None:
    """Adds an option.

    Args:
      values: the options of the command.
      kind: one of absl's, such as flags.DEFINE_string.
      name: with underscores; on the command line, hyphens do as well.
      default: its value if it is not given.
      metavar: what stands for its value on the help page, such as DIR; "" for a switch.
      meaning: for the help page.
      **limits: of the value, such as lower_bound.
    """
    kind(name, default, meaning, flag_values=values, **limits)
    values[name].form = f"={metavar}" if metavar else ""


def define_config(values: flags.FlagValues, meaning: str, form: str = "=NAME") -> None:
    """Adds --config for the help page; `parse` replaces it by the overrides of a loaded config.

    Args:
      values: the options of the command.
      meaning: for the help page.
      form: what follows --config on the help page.
    """
    flags.DEFINE_string("config", None, meaning, flag_values=values)
    values["config"].form = form


def help_page(values: flags.FlagValues, description: str, epilogue: str) -> str:
    """The page that --help shows: the description, the options in the order of their definition, the epilogue."""
    lines = [description.strip(), "", "Options:"]
    for name in values:
        option = values[name]
        head = f"  --{name.replace('_', '-')}{option.form}"
        meaning = textwrap.wrap(option.help, WIDTH - COLUMN, break_on_hyphens=False, break_long_words=False)
        if len(head) + 2 <= COLUMN:
            head += " " * (COLUMN - len(head)) + meaning.pop(0)
        lines += [head, *(" " * COLUMN + line for line in meaning)]
    return "\n".join([*lines, "", epilogue])


def versions() -> str:
    """What --version prints."""
    return ", ".join(f"{name} {number}" for name, number in records.versions().items())


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments are none, or ask for help."""
    return not arguments or any(argument in _HELP for argument in arguments)


def asks_for_versions(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for versions."""
    return any(argument in _VERSION for argument in arguments)


def normalized(arguments: Sequence[str]) -> list[str]:
    """The arguments with underscores in the names of options, as absl needs them: --dry-run becomes --dry_run."""
    return [re.sub(r"^--?[\w-]+", lambda name: _underscores(name[0]), argument) for argument in arguments]


def _underscores(name: str) -> str:
    dashes = len(name) - len(name.lstrip("-"))
    return name[:dashes] + name[dashes:].replace("-", "_")


def take(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Returns (the value of an option, the other arguments); the last value counts, None if there is none.

    Raises:
      UsageError: if the last argument is the option, without a value.
    """
    value, others, rest = None, [], iter(arguments)
    for argument in rest:
        option, equals, text = argument.partition("=")
        if option in (f"--{name}", f"-{name}"):
            value = text if equals else next(rest, None)
            if value is None:
                raise UsageError(f"--{name} needs a value: --{name}=VALUE, see --help.")
        else:
            others.append(argument)
    return value, others


def parse(
    values: flags.FlagValues, arguments: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[ml_collections.ConfigDict, set[str]]:
    """Reads the command line into `values`.

    Args:
      values: the options of the command.
      arguments: normalized, without --config=NAME.
      config: the config that --config.a.b=VALUE overrides.

    Returns:
      (the config with its overrides, the names of the settings that were overridden, such as "extract.num_images").

    Raises:
      UsageError: if anything in it is not an option, or has an unusable value.
    """
    argv = ["side_jax", *arguments]
    if "config" in values:
        del values.config
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except InputError:
        raise
    except Exception as error:  # absl and ml_collections raise many types
        lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        reason = lines[:400].strip('"') or type(error).__name__
        raise UsageError(f"the command line can't be read: {reason}") from error
    if rest:
        raise UsageError(f"{rest[0]!r} is not an option; every option begins with --, see --help.")
    return values.config, set(config_flags.get_override_values(values["config"]))
