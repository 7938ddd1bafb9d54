"""A rank's slices of a checkpoint, however it was saved: checked strictly, then read piece by piece."""

from __future__ import annotations

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import Checkpoint
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights.rank import RankWeights, open_weights

__all__ = ["RankWeights", "open_weights", "open_whole"]


def open_whole(
    checkpoint: Checkpoint, architecture: Architecture, vocab_size: int | None = None
) -> RankWeights:
    """Open a checkpoint as a single rank sees it.

    Args:
        checkpoint: its files.
        architecture: its shape.
        vocab_size: pieces of the tokenizer; None: it is taken to fit.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or STORAGE.
    """
    return open_weights(
        ModelOnRank(
            architecture=architecture,
            checkpoint=checkpoint,
            precision="fp32",
            device="cpu",
            rank=0,
            ranks=1,
            vocab_size=architecture.vocab_size if vocab_size is None else vocab_size,
            eos_ids=frozenset(),
        )
    )
