"""The tokenizer between text and token ids, whichever kind a checkpoint has; lengths in words and tokens."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from shardwatt.checkpoints import LFS_POINTER, Layout
from shardwatt.errors import CellFailure, Reason

EXPECTED = (
    "expected a SentencePiece model (LLaMA 1 and 2, Mistral), the tiktoken file of LLaMA 3, "
    "or a tokenizer.json of transformers"
)

#: Rows that an embedding may have beyond the pieces, at most, or as a share of its rows. Published models of
#: the family have none (LLaMA 1 to 3, Mistral), or what it takes to a multiple of 64 to 1024, which splits
#: evenly; DeepSeek LLM, with the most, has 102,400 rows for 100,015 pieces (arXiv 2401.02954, page 5).
#: Far fewer pieces are another model's.
_PADDING_ROWS = 1024
_PADDING_SHARE = 0.025

#: What may stand before the first sign of a JSON file: a mark of its bytes' order, which editors write.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: A line of a tiktoken file: the token's bytes in base64, and its rank.
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?$", re.MULTILINE)


class Tokenizer(ABC):
    """What every kind of tokenizer does; `open_tokenizer` opens one.

    Text is text: the names of special tokens in it, such as `</s>`, are split like any other words.

    Attributes:
        path: its file.
        vocab_size: number of pieces, special tokens included; ids run from 0 to one less.
        bos_id: id of begin of sequence.
        eos_ids: ids that end a sequence.
        padded_in: layouts whose embeddings may have more rows than there are pieces.
    """

    path: Path
    vocab_size: int
    bos_id: int
    eos_ids: frozenset[int]
    padded_in: frozenset[Layout]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, begin of sequence first."""
        return [self.bos_id, *self.pieces(text)]

    def count(self, text: str) -> int:
        """Tokens of a text, begin of sequence not counted: how arXiv 2310.03003 counts output."""
        return len(self.pieces(text))

    @abstractmethod
    def pieces(self, text: str) -> list[int]:
        """Token ids of a text alone."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids. Special tokens give none, nor do ids that stand for no piece, as of padding."""

    @abstractmethod
    def unprintable_ids(self) -> tuple[int, ...]:
        """Ids that are no text by themselves, ends of sequence left out: unknown, begin of sequence, padding,
        and parts of a character."""

    def expect_vocabulary(self, size: int, layout: Layout = "meta") -> None:
        """Check that the tokenizer belongs to a model.

        Args:
            size: rows of the model's embedding.
            layout: of the model's checkpoint.

        Raises:
            CellFailure: with reason `bad_tokenizer`: the tokenizer has another number of pieces, and not only
                as many fewer as embeddings are padded by.
        """
        padding = max(_PADDING_ROWS, int(_PADDING_SHARE * size)) if layout in self.padded_in else 0
        if size - padding <= self.vocab_size <= size:
            return
        padded = f"{max(1, size - padding)} to {size}, since embeddings may be padded"
        raise bad_tokenizer(
            self.path,
            f"has {self.vocab_size} pieces, and the model's vocabulary has {size}; "
            f"expected {padded if padding else 'as many'}: put the model's own tokenizer there",
        )


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a checkpoint's tokenizer; its content says which kind it is, whatever its name.

    Raises:
        CellFailure: with reason `bad_tokenizer`: the file is missing, damaged or of no kind that is known, or
            it has no begin or end of sequence.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise bad_tokenizer(path, f"cannot be read: {problem.strerror}; {EXPECTED}") from None
    if not content:
        raise bad_tokenizer(path, f"is empty; {EXPECTED}: fetch or make it again")
    if content.startswith(LFS_POINTER):
        raise bad_tokenizer(
            path,
            f"is a pointer of git-lfs, not the file itself; {EXPECTED}: "
            "run `git lfs pull` in its repository and copy it again",
        )
    # Each kind brings a library of its own, which is imported where it is used.
    text = content.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"{"):
        from shardwatt.data.tokenizer_json import JsonTokenizer

        return JsonTokenizer(path, text)
    if _TIKTOKEN_LINE.match(content):
        from shardwatt.data.tokenizer_tiktoken import TiktokenTokenizer

        return TiktokenTokenizer(path, content)
    from shardwatt.data.tokenizer_sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(path, content)


def bad_tokenizer(path: Path, what: str) -> CellFailure:
    """The error for a tokenizer's file, to be raised."""
    return CellFailure(Reason.BAD_TOKENIZER, f"{path}: {what}")


def count_words(text: str) -> int:
    """Words of an output: its parts between white space.

    arXiv 2310.03003 splits on spaces. Here any run of white space separates, so that two spaces make no
    empty word and a line break ends one.
    """
    return len(text.split())


def check_lengths(prompts: Sequence[Sequence[int]], limit: int) -> None:
    """Refuse prompts that leave no room for a new token; none is silently cut or left out.

    Args:
        prompts: token ids of each prompt, begin of sequence included; [prompts][tokens].
        limit: positions that prompt and response may take together.

    Raises:
        CellFailure: with reason `prompt_too_long`: how many they are, and the longest.
    """
    too_long = [len(prompt) for prompt in prompts if len(prompt) >= limit]
    if too_long:
        raise CellFailure(
            Reason.PROMPT_TOO_LONG,
            f"{len(too_long)} of {len(prompts)} prompts are too long: the longest has {max(too_long)} "
            f"tokens, and prompt and response together have {limit} positions (the model's context, or the "
            f"study's cache_tokens where that is less); expected at most {limit - 1} tokens, so that a new "
            "one fits: raise cache_tokens, use a model with a longer context, or name another data set",
        )


def cache_positions(
    prompts: Sequence[Sequence[int]], length: int, context: int, cache_tokens: int | None
) -> int:
    """Positions T of the KV cache for a batch: min(context, longest prompt + length).

    Args:
        prompts: token ids of each prompt of the batch, begin of sequence included; [rows][tokens].
        length: maximum number of new tokens.
        context: positions that the model takes.
        cache_tokens: what the study fixes in place of longest prompt + length, or None.
    """
    return min(context, cache_tokens or max(map(len, prompts)) + length)
