"""Makes names and error texts from untrusted files safe to print and to write anywhere."""

import os

from PIL import UnidentifiedImageError


def printable(text: str) -> str:
    r"""Returns the text with Python escapes in place of every character that could do harm.

    Escaped are: unprintable characters (control characters, line ends, bidirectional marks, bytes of a file name that
    are not UTF-8); the markup characters < > "; a first = + - @, which a spreadsheet would read as a formula; and the
    backslash itself, so that different texts stay different. The result is valid UTF-8 on one line, safe in CSV, JSON
    and HTML (HTML must still escape &).
    """
    plain = (c.isprintable() and c not in '<>"\\' and not (i == 0 and c in "=+-@") for i, c in enumerate(text))
    return "".join(c if keep else _escaped(ord(c)) for c, keep in zip(text, plain, strict=True))


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def short(text: str, limit: int = 80) -> str:
    """Returns the text printable, with its middle cut out if it is longer than `limit` characters."""
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-(limit // 2) :]}"


def number(position: int) -> str:
    """Returns what an image is called where a private audit names none."""
    return f"number {position}"


def reason(error: Exception) -> str:
    """Returns why a file can't be read, on one line, without its name, which a private audit does not tell."""
    if isinstance(error, UnidentifiedImageError):  # its own message repeats the path
        return "not a picture of a supported kind"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    first = str(error).strip().partition("\n")[0]
    return short(first, 160).rstrip(".") or type(error).__name__
