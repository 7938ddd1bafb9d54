"""How the next token is drawn: top-p (nucleus) sampling, the same on every rank and in every engine.

Randomness is a pure function of the row's key, the position and the token's id (`noise`), and a token is the
winner of a race over the nucleus. So identical logits give identical tokens, whatever the batch, the order
of its rows, the shards or the way in which the nucleus was found: by the published full sort (`published`),
from a few likeliest tokens (`shortlist`), or over the whole vocabulary without a branch (`unbranched`).
"""

from __future__ import annotations

from torch import Tensor

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling.keys import row_keys
from shardwatt.engine.sampling.published import sorted_next_tokens
from shardwatt.engine.sampling.shortlist import shortlist_next_tokens
from shardwatt.engine.sampling.unbranched import unbranched_next_tokens

__all__ = ["next_tokens", "row_keys", "sorted_next_tokens"]


def next_tokens(logits: Tensor, sampling: Sampling, keys: Tensor, positions: Tensor) -> Tensor:
    """Draw a token for each row without sorting the vocabulary: the tokens of `sorted_next_tokens`.

    The two agree but for rounding: where the likelier tokens of one come within 1e-7 of top_p, or where two
    tokens reach the end of the race within a last place of float32. Either decides less than one token in a
    million.

    On CUDA the host never waits, and the work does not depend on the values: it can be captured in a graph.

    Args:
        logits: [R, vocab_size], float32; -inf for what may not be drawn.
        sampling: temperature, 0 for the likeliest token (of equals the lowest id), and top-p.
        keys: of the rows, from `row_keys`, [R], int64.
        positions: of the token that is drawn in its row's sequence, prompt included, [R], int64.

    Returns:
        ids, [R], int64.
    """
    draw = shortlist_next_tokens if logits.device.type == "cpu" else unbranched_next_tokens
    return draw(logits, sampling, keys, positions)
