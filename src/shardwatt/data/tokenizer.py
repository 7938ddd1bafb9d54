"""The tokenizer: a SentencePiece model between text and token ids; lengths in words and tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from shardwatt.errors import CellFailure, Reason


class Tokenizer:
    """A SentencePiece model as LLaMA uses it.

    Args:
        path: the `tokenizer.model` of the checkpoint.

    Attributes:
        vocab_size: number of pieces; ids run from 0 to one less.
        bos_id: id of begin of sequence.
        eos_id: id of end of sequence.

    Raises:
        CellFailure: with reason `bad_tokenizer`: the file is missing or damaged, or lacks these two pieces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pieces = SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(path.read_bytes())
        except OSError as problem:
            raise self._failure(
                f"cannot be read: {problem.strerror}; expected a SentencePiece model"
            ) from None
        except RuntimeError as problem:
            raise self._failure(
                f"is no SentencePiece model, or a damaged one ({problem}); fetch or make it again"
            ) from None
        self.vocab_size: int = self._pieces.vocab_size()
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise self._failure(
                f"begin of sequence has id {self.bos_id} and end of sequence {self.eos_id}; "
                "expected a piece for both"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, begin of sequence first."""
        return [self.bos_id, *self._pieces.encode(text)]

    def count(self, text: str) -> int:
        """Tokens of a text, begin of sequence not counted: how arXiv 2310.03003 counts output."""
        return len(self._pieces.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids. Ids that stand for no piece, such as padding, give no text."""
        known = [token for token in ids if 0 <= token < self.vocab_size]
        return str(self._pieces.decode(known))

    def unprintable_ids(self) -> tuple[int, ...]:
        """Ids that are no text by themselves: unknown, begin of sequence, padding and single bytes."""
        pieces = self._pieces
        return tuple(
            token
            for token in range(self.vocab_size)
            if token != self.eos_id
            and (pieces.IsControl(token) or pieces.IsUnknown(token) or pieces.IsByte(token))
        )

    def expect_vocabulary(self, size: int) -> None:
        """Check that the tokenizer belongs to a model.

        Args:
            size: rows of the model's embedding.

        Raises:
            CellFailure: with reason `bad_tokenizer`: the tokenizer has another number of pieces.
        """
        if self.vocab_size != size:
            raise self._failure(
                f"has {self.vocab_size} pieces, and the model's vocabulary has {size}; "
                "expected as many: put the model's own tokenizer there"
            )

    def _failure(self, what: str) -> CellFailure:
        return CellFailure(Reason.BAD_TOKENIZER, f"{self.path}: {what}")


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
