"""Reads CLIP's tokenizer, vocab.json and merges.txt or tokenizer.json, and the prompts of a text file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.errors import InputError
from side_jax.targets.checkpoint_files import REPLACE, join_values, read_json

_VOCABULARY = ("vocab.json", "merges.txt")
_WHOLE, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
FILES = (*_VOCABULARY, _WHOLE, _CONFIG, _SPECIAL)
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", None)
_START, _END = "<|startoftext|>", "<|endoftext|>"
# What counts as one word for CLIP: its markers, English contractions, letters, one digit, and other characters.
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_prompts(path: Path) -> list[str]:
    """Reads prompts, one a line.

    Raises:
      InputError: if the file is missing, is no text, or has no prompts, or an empty one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(
            f"config.target.prompts is {str(path)!r}, which can't be read as text ({reason}); give a text file of "
            "prompts, one a line."
        ) from None
    prompts = [line.strip() for line in lines]
    while prompts and not prompts[-1]:
        prompts.pop()
    if not prompts:
        raise InputError(f"{path} (config.target.prompts) has no prompts; write one a line.")
    if "" in prompts:
        raise InputError(
            f"{path} (config.target.prompts) has no prompt in line {prompts.index('') + 1}; remove the line: the empty "
            "prompt is always added, as the one of images without a label."
        )
    return prompts


class Tokenizer:
    """CLIP's byte-pair encoding of texts, as transformers' CLIPTokenizer pads and cuts them.

    Attributes:
      files: what it was read from.
    """

    def __init__(self, folder: Path):
        """Reads the files of a folder.

        Raises:
          InputError: if the package `tokenizers` is not installed, or a file is missing, damaged or another
            tokenizer's.
        """
        config, special = (
            read_json(folder / name) if (folder / name).is_file() else {} for name in (_CONFIG, _SPECIAL)
        )
        if config.get("tokenizer_class") not in _CLASSES:
            raise InputError(
                f"{folder / _CONFIG} describes a {json.dumps(config['tokenizer_class'])}, but only the tokenizer of "
                f"CLIP is read; give a model with {join_values(_CLASSES[:1])}."
            )
        self.files, self._bpe = _bpe(folder)
        if "added_tokens_decoder" not in config:  # by which transformers tells newer files, whose config has all
            config = config | special
        pad = config.get("pad_token") or _END
        pad = pad.get("content") if isinstance(pad, dict) else pad
        ids = {token: self._bpe.token_to_id(token) for token in (_START, _END, str(pad))}
        for token, number in ids.items():
            if number is None:
                raise InputError(f"{self.files[0]} does not know the token {token}, which CLIP's has; {REPLACE}.")
        self._start, self._end, self._pad = ids[_START], ids[_END], ids[str(pad)]
        self._longest = config.get("model_max_length")

    def length(self, positions: int) -> int:
        """To how many tokens texts are padded and cut, for an encoder of so many positions."""
        return min(self._longest, positions) if isinstance(self._longest, int) else positions

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, list[int]]:
        """(the tokens of texts, int32 [n, length], the numbers of those that were cut)."""
        rows, cut = np.full((len(texts), length), self._pad, np.int32), []
        for i, text in enumerate(texts):
            tokens = self._bpe.encode(text, add_special_tokens=False).ids
            if len(tokens) > length - 2:
                cut.append(i)
            row = [self._start, *tokens[: length - 2], self._end]
            rows[i, : len(row)] = row
        return rows, cut


def _bpe(folder: Path) -> tuple[tuple[Path, ...], Any]:
    """(the files, the encoding) of a tokenizer."""
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            f"{folder} holds the tokenizer of a text-conditional model, for which the package tokenizers is missing; "
            "run `pip install 'side_jax[text]'`."
        ) from None
    files = tuple(folder / name for name in _VOCABULARY)
    if not all(path.is_file() for path in files):
        files = (folder / _WHOLE,)
        if not files[0].is_file():
            raise InputError(
                f"{folder} has neither {' and '.join(_VOCABULARY)} nor {_WHOLE}; put there the tokenizer of the model."
            )
    try:
        if len(files) == 1:
            whole = tokenizers.Tokenizer.from_file(str(files[0]))
            whole.no_padding()
            whole.no_truncation()
            return files, whole
        ends = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "unk_token": _END}
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*map(str, files), **ends))
    except Exception as error:  # the library raises bare exceptions
        reason = str(error).partition("\n")[0]
        raise InputError(f"{files[0]} can't be read as a tokenizer ({reason}); {REPLACE}.") from None
    normalizers, splitters = tokenizers.normalizers, tokenizers.pre_tokenizers
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = splitters.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True)
    bpe.pre_tokenizer = splitters.Sequence([words, splitters.ByteLevel(add_prefix_space=False)])
    bpe.add_special_tokens([token for token in (_START, _END) if bpe.token_to_id(token) is not None])
    return files, bpe
