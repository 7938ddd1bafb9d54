"""Which files of a checkpoint a rank reads: those of the saved shards that its own slices lie in."""

from __future__ import annotations

from shardwatt.architectures import Architecture
from shardwatt.models import Checkpoint


def files_of_rank(
    checkpoint: Checkpoint, architecture: Architecture, rank: int, ranks: int
) -> tuple[str, ...]:
    """Names of the files of weights that a rank reads whole or to a large part.

    In Meta's layout saved shard s of S holds the share from s / S to (s + 1) / S of all heads, of the
    feed-forward layer and of the vocabulary, and rank r of n wants that from r / n to (r + 1) / n. Key and
    value heads that there are fewer of than ranks lie in the same shards. LLaMA 3's embedding alone is saved
    by vocabulary and wanted by width, so that a rank looks into the other files for a column of it.

    In Hugging Face's layout a tensor is whole in one file, and a rank reads a part of every one.

    Args:
        checkpoint: the model's files.
        architecture: the model's shape.
        rank: from 0.
        ranks: how many there are, one of `architecture.allowed_shards()`.
    """
    if checkpoint.layout == "huggingface":
        return checkpoint.weights
    saved = len(checkpoint.weights)
    first, last = rank * saved // ranks, -(-(rank + 1) * saved // ranks)
    if ranks > architecture.n_kv_heads:
        # The rank's one head may have begun in an earlier shard, where shards are smaller than heads.
        head, heads = rank * architecture.n_kv_heads // ranks, architecture.n_kv_heads
        first, last = min(first, head * saved // heads), max(last, -(-(head + 1) * saved // heads))
    return checkpoint.weights[first:last]
