"""Engine `fast`: rows that have ended stay until all have."""

from __future__ import annotations

from shardwatt.engine.fast import loop
from shardwatt.engine.protocol import ModelOnRank


def load(model: ModelOnRank) -> loop.Fast:
    """Load this rank's part of a model; raises as `shardwatt.engine.fast.loop.load`."""
    return loop.load(model, "stay")
