"""The tiktoken file of LLaMA 3: a token and its rank a line; the special tokens follow the last rank."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tiktoken import Encoding

from shardwatt.data.tokenizer import Tokenizer, bad_tokenizer

#: How LLaMA 3 splits text before it merges bytes (published with its weights).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Ranks of the published file, special tokens after them, and the places of those that matter among these:
#: begin_of_text, and end_of_text, eom_id (3.1 and later), eot_id.
_PUBLISHED_RANKS = 128_000
_SPECIAL_TOKENS = 256
_BEGIN = 0
_ENDS = (1, 8, 9)

#: Characters that the published tokenizer takes at a time, and at most without a change between white space
#: and other characters: the split overflows its stack on much more.
_PORTION = 400_000
_LONGEST_RUN = 25_000
_RUN = re.compile(r"\s+|\S+")


class TiktokenTokenizer(Tokenizer):
    """LLaMA 3's own tokenizer; the ids are those of the published code, and no network is asked.

    Args:
        path: its file, for messages.
        content: the file's content.

    Raises:
        CellFailure: with reason `bad_tokenizer`: a line is damaged or missing.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        ranks = _ranks(path, content)
        self._tokens = sorted(ranks, key=ranks.__getitem__)
        self._model = Encoding(path.name, pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens={})
        self.vocab_size = len(ranks) + _SPECIAL_TOKENS
        self.bos_id = len(ranks) + _BEGIN
        self.eos_ids = frozenset(len(ranks) + place for place in _ENDS)
        # Of another file lines may be missing at the end, and its special tokens have other ids then.
        is_published = len(ranks) == _PUBLISHED_RANKS
        self.padded_in = frozenset({"meta", "huggingface"}) if is_published else frozenset()

    def pieces(self, text: str) -> list[int]:
        return [token for portion in _portions(text) for token in self._model.encode_ordinary(portion)]

    def decode(self, ids: Iterable[int]) -> str:
        known = [token for token in ids if 0 <= token < len(self._tokens)]
        return self._model.decode(known, errors="replace")

    def unprintable_ids(self) -> tuple[int, ...]:
        parts = [rank for rank, token in enumerate(self._tokens) if not _is_text(token)]
        special = range(len(self._tokens), self.vocab_size)
        return (*parts, *(token for token in special if token not in self.eos_ids))


def _ranks(path: Path, content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.split()
        try:
            word, rank = words
            token = base64.b64decode(word, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            raise bad_tokenizer(
                path,
                f"line {number} is {line[:80].decode(errors='replace')!r}; "
                "expected a token in base64, a space and its rank: fetch it again",
            ) from None
    if sorted(ranks.values()) != list(range(number)):
        raise bad_tokenizer(
            path,
            f"has {number} lines, {len(ranks)} different tokens and ranks up to {max(ranks.values())}; "
            "expected each rank from 0 on once: fetch it again",
        )
    missing = sum(bytes([value]) not in ranks for value in range(256))
    if missing:
        raise bad_tokenizer(
            path, f"has no token for {missing} of the 256 bytes; expected one for each: fetch it again"
        )
    return ranks


def _portions(text: str) -> Iterator[str]:
    """The text in parts that the split can take, cut where the published tokenizer cuts it."""
    for first in range(0, len(text), _PORTION):
        portion = text[first : first + _PORTION]
        start = 0
        for run in _RUN.finditer(portion) if len(portion) > _LONGEST_RUN else ():
            for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield portion[start:cut]
                start = cut
        yield portion[start:]


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
