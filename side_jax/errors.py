"""The exceptions that are shown to the user as a single sentence."""


class InputError(ValueError):
    """Unusable user input; the message names the value and the fix."""


class StoppedError(RuntimeError):
    """The run was stopped by SIGTERM or Ctrl-C; the message says what is saved and how to continue."""
