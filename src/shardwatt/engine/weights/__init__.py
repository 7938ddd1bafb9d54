"""A rank's slices of a checkpoint, however it was saved: checked strictly, then read piece by piece."""

from shardwatt.engine.weights.rank import RankWeights, open_weights

__all__ = ["RankWeights", "open_weights"]
