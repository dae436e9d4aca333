"""The exceptions that reach the user as a single sentence."""


class InputError(ValueError):
    """Something the user gave is unusable; the message names the value and the fix."""


class StoppedError(RuntimeError):
    """The machine asked the run to stop (SIGTERM); the message says what is saved and how to go on."""
