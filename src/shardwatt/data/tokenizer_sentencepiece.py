"""SentencePiece models, as LLaMA 1 and 2 and Mistral have them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from shardwatt.data.tokenizer import EXPECTED, Tokenizer, bad_tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    A space is put before the text, and decoding takes one away from its front, so that a text comes back as
    it was. Meta's embeddings have a row for each piece; those of transformers may be padded.

    Args:
        path: its file, for messages.
        content: the file's content.

    Raises:
        CellFailure: with reason `bad_tokenizer`: it is damaged, or lacks begin or end of sequence.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self._model = SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as problem:
            raise bad_tokenizer(
                path, f"is no tokenizer, or a damaged one ({problem}); {EXPECTED}: fetch or make it again"
            ) from None
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        eos_id: int = self._model.eos_id()
        if self.bos_id < 0 or eos_id < 0:
            raise bad_tokenizer(
                path,
                f"begin of sequence has id {self.bos_id} and end of sequence {eos_id}; "
                "expected a piece for both: put the model's own tokenizer there",
            )
        self.eos_ids = frozenset({eos_id})
        self.padded_in = frozenset({"huggingface"})

    def pieces(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        known = [token for token in ids if 0 <= token < self.vocab_size]
        return str(self._model.decode(known))

    def unprintable_ids(self) -> tuple[int, ...]:
        model = self._model
        return tuple(
            token
            for token in range(self.vocab_size)
            if token not in self.eos_ids
            and (model.IsControl(token) or model.IsUnknown(token) or model.IsByte(token))
        )
