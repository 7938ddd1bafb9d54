"""From an engine's name to a loaded engine: the next inference loop is a file and a line here."""

from __future__ import annotations

from typing import Protocol

from shardwatt.architectures import Architecture
from shardwatt.engine import reference
from shardwatt.engine.protocol import Engine
from shardwatt.errors import CellFailure, Reason, suggestion
from shardwatt.models import Checkpoint


class Loader(Protocol):
    """What a module of an engine offers; the arguments are those of `load_engine`."""

    def __call__(
        self,
        *,
        architecture: Architecture,
        checkpoint: Checkpoint,
        precision: str,
        device: str,
        rank: int,
        ranks: int,
        vocab_size: int,
        eos_id: int,
    ) -> Engine: ...


#: Every engine; `shardwatt.matrix.ENGINES` lists the same names.
LOADERS: dict[str, Loader] = {"reference": reference.load}


def load_engine(
    name: str,
    *,
    architecture: Architecture,
    checkpoint: Checkpoint,
    precision: str,
    device: str,
    rank: int,
    ranks: int,
    vocab_size: int,
    eos_id: int,
) -> Engine:
    """Load this rank's part of a model; the ranks have met in `shardwatt.engine.parallel.join`.

    Args:
        name: the engine's.
        architecture: the model's shape, from its params.json.
        checkpoint: in Meta's layout, in as many shards as there are ranks.
        precision: `fp32`, `bf16` or `fp16`.
        device: `cpu` or `cuda:N`.
        rank: this one, from 0; it is also the shard's number.
        ranks: how many there are.
        vocab_size: pieces of the tokenizer.
        eos_id: the tokenizer's end of sequence.

    Raises:
        CellFailure: CONFIGURATION, no such engine or the model does not split so; BAD_CHECKPOINT,
            BAD_TOKENIZER, HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    loader = LOADERS.get(name)
    if loader is None:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"unknown engine '{name}'{suggestion(name, LOADERS)}; known: {', '.join(LOADERS)}",
        )
    if ranks not in architecture.allowed_shards():
        allowed = ", ".join(str(count) for count in architecture.allowed_shards())
        raise CellFailure(
            Reason.CONFIGURATION, f"the model does not split over {ranks} ranks; use one of {allowed}"
        )
    return loader(
        architecture=architecture,
        checkpoint=checkpoint,
        precision=precision,
        device=device,
        rank=rank,
        ranks=ranks,
        vocab_size=vocab_size,
        eos_id=eos_id,
    )
