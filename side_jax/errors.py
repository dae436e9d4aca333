"""The one exception that reaches the user as a single sentence."""


class InputError(ValueError):
    """Something the user gave is unusable; the message names the value and the fix."""
