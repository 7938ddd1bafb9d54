"""The tokenizer.json of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from shardwatt.data.tokenizer import Tokenizer, bad_tokenizer

#: Names of begin and end of sequence in LLaMA 1 to 3 and Mistral.
_BEGINS = ("<s>", "<|begin_of_text|>")
_ENDS = ("</s>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")

#: A piece of one byte, where a file falls back on bytes for characters that it has no piece for.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class JsonTokenizer(Tokenizer):
    """A tokenizer.json.

    Of the file's own wrapping (its post-processor) nothing is used: begin of sequence comes first, as with
    the other kinds, and nothing is padded or cut. Begin and end of sequence are those that a
    tokenizer_config.json beside it names; without one, those that the LLaMA family uses. Every end that the
    family uses and the file has as well ends a sequence.

    Files made from SentencePiece models put a space before the text and take one away from the front of what
    they decode, like these; others decode to the very bytes.

    Args:
        path: its file; tokenizer_config.json is looked for beside it.
        content: the file's content.

    Raises:
        CellFailure: with reason `bad_tokenizer`: the file or the tokenizer_config.json is damaged, merges at
            random, or has no begin or end of sequence.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self._settings = _object(path, content)
        if "model" not in self._settings:
            raise bad_tokenizer(
                path,
                f"holds the keys {', '.join(list(self._settings)[:5]) or '(none)'}; expected those of a "
                "tokenizer.json, `model` among them: put the checkpoint's own there",
            )
        try:
            self._model = tokenizers.Tokenizer.from_buffer(content)
        except Exception as problem:  # the library raises no narrower one
            raise bad_tokenizer(
                path, f"is no tokenizer.json, or a damaged one ({problem}); fetch or make it again"
            ) from None
        if getattr(self._model.model, "dropout", None):
            raise bad_tokenizer(
                path, "leaves merges out at random; expected the same ids each time: set `dropout` to null"
            )
        self._model.no_padding()
        self._model.no_truncation()
        self._model.encode_special_tokens = True  # names of special tokens in a text are text
        self._ids: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        if not self._ids:
            raise bad_tokenizer(path, "has no pieces; expected the model's own: fetch it again")
        self._expect_unknown()
        self.vocab_size = max(self._ids.values()) + 1
        self.padded_in = frozenset({"meta", "huggingface"})
        bos, eos = _named(path.with_name("tokenizer_config.json"))
        begins = [self._id_of(bos)] if bos else self._known(_BEGINS)
        ends = [self._id_of(eos)] if eos else []
        ends += self._known(_ENDS)
        if not begins or not ends:
            raise bad_tokenizer(
                path,
                f"has no {'end' if begins else 'begin'} of sequence: expected bos_token and eos_token in a "
                f"tokenizer_config.json beside it, or {', '.join((*_BEGINS, *_ENDS))} among its tokens",
            )
        self.bos_id = begins[0]
        self.eos_ids = frozenset(ends)
        added = self._model.get_added_tokens_decoder().items()
        self._special = {token for token, kind in added if kind.special} | {self.bos_id} | self.eos_ids

    def pieces(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        known = [token for token in ids if 0 <= token < self.vocab_size and token not in self._special]
        return self._model.decode(known)

    def unprintable_ids(self) -> tuple[int, ...]:
        model = self._settings["model"]
        falls_back_on_bytes = bool(model.get("byte_fallback"))
        unprintable = set(self._special)
        for name, token in self._ids.items():
            if falls_back_on_bytes:
                is_part = _BYTE.fullmatch(name) is not None
            else:
                is_part = _REPLACEMENT in self._model.decode([token])
            if is_part or name == model.get("unk_token"):
                unprintable.add(token)
        return tuple(sorted(unprintable - self.eos_ids))

    def _expect_unknown(self) -> None:
        """Without the piece that it puts for what it does not know, it fails at the first such text."""
        unknown = self._settings["model"].get("unk_token")
        if unknown is not None and unknown not in self._model.get_vocab(with_added_tokens=False):
            raise bad_tokenizer(
                self.path,
                f"puts {unknown!r} for what it does not know, and has no such piece; fetch it again",
            )

    def _known(self, names: Iterable[str]) -> list[int]:
        return [self._ids[name] for name in names if name in self._ids]

    def _id_of(self, name: str) -> int:
        if name not in self._ids:
            raise bad_tokenizer(
                self.path,
                f"has no token {name!r}, which the tokenizer_config.json beside it names; "
                "expected two files of the same checkpoint",
            )
        return self._ids[name]


def _object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise bad_tokenizer(
            path, f"is no JSON file, or a damaged one ({problem}); fetch or make it again"
        ) from None
    if not isinstance(found, dict):
        raise bad_tokenizer(path, f"holds a JSON {type(found).__name__}; expected an object: fetch it again")
    return found


def _named(path: Path) -> tuple[str | None, str | None]:
    """What a tokenizer_config.json calls begin and end of sequence; None where it, or the file, does not."""
    try:
        config = _object(path, path.read_bytes())
    except FileNotFoundError:
        return None, None
    except OSError as problem:
        raise bad_tokenizer(path, f"cannot be read: {problem.strerror}") from None
    return _name(path, config, "bos_token"), _name(path, config, "eos_token")


def _name(path: Path, config: dict[str, Any], key: str) -> str | None:
    found = config.get(key)
    name = found.get("content") if isinstance(found, dict) else found  # a name, or an object that has it
    if name is not None and not isinstance(name, str):
        raise bad_tokenizer(path, f"{key}: found {found!r}; expected the name of a token")
    return name
