"""Names and reasons that come from files of strangers, made fit to be printed and written anywhere."""

from PIL import UnidentifiedImageError


def printable(text: str) -> str:
    r"""The text with escapes, as Python has them, for whatever could do more than be read.

    Escaped are characters that are not printable (control characters and line ends, marks that turn the direction of
    writing, bytes of a file's name that are no UTF-8), < > " of markup, a first = + - @ that a spreadsheet would take
    for a formula, and the backslash itself, so that different texts stay different. The result is valid UTF-8 on one
    line: CSV, JSON and HTML can hold it (HTML still escapes &).
    """
    kept = (c.isprintable() and c not in '<>"\\' and not (i == 0 and c in "=+-@") for i, c in enumerate(text))
    return "".join(c if keep else _escaped(ord(c)) for c, keep in zip(text, kept, strict=True))


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def short(text: str, most: int = 80) -> str:
    """The text for a sentence: printable, and where it has more characters than `most`, without its middle."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def reason(error: Exception) -> str:
    """Why a file can't be read, on one line."""
    if isinstance(error, UnidentifiedImageError):  # its own words repeat the path
        return "no picture of a kind that is read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).strip().partition("\n")[0]
    return short(first, 160).rstrip(".") or type(error).__name__
