"""The published inference loop of Llama 2: that of LLaMA (v1), which stops when all rows have ended.

It makes logits for every position that it feeds, the whole prefill's in float32, and looks at the end of
each step whether all rows have ended, for which the host waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shardwatt.engine.model import Transformer, load_transformer
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.reference import Reference


class ReferenceV2(Reference):
    """The loop of Llama 2 over a loaded model; an `Engine`."""

    release = "Llama 2"

    def __init__(self, model: Transformer, device: torch.device, eos_ids: frozenset[int]) -> None:
        super().__init__(model, device, eos_ids)
        self._ends = torch.tensor(sorted(eos_ids), device=device)

    def next_logits(self, tokens: Tensor, known: int) -> Tensor:
        """Logits of the token after the last one, [R, vocab_size]; made for all of tokens [R, S]."""
        return self.model.logits(tokens, known)[:, -1]

    def stops(self, written: Tensor, given: Tensor, ended: Tensor) -> bool:
        """Whether every row has written an end of sequence after its prompt; updates `ended`.

        One in a prompt ends nothing; one after the row's length, where its answer is cut already, does.
        """
        ended |= ~given & torch.isin(written, self._ends)
        # Python's all, as published: it asks the device row by row, up to the first that goes on.
        return all(ended)


def load(model: ModelOnRank) -> ReferenceV2:
    """Load this rank's part of a model.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    return ReferenceV2(load_transformer(model), torch.device(model.device), model.eos_ids)
