"""Random numbers that can be had for any row, position and token alone, and the race that they decide.

They are hashes of a counter, after SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014): the n-th number of a sequence is a finaliser of `start + n * GAMMA`. A row's
sequence over positions starts at its key; its numbers start the sequences over token ids. The second uses
the paper's finaliser with shifts that keep the sign (one pass less each; they join pairs of the 2^64 states)
and without its last step (the highest bits, which count here, are mixed by then).

Integers are int64 and wrap around at 2^64, as they do in torch on CPUs and on CUDA alike; the tests compare
them with whole numbers modulo 2^64.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The constants of SplitMix64, as signed numbers: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB.
GAMMA = -7046029254386353131
FIRST = -4658895280553007687
SECOND = -7723592293110705685

_HIGHEST = 2**63 - 1


def streams(keys: Tensor, positions: Tensor) -> Tensor:
    """Where each row's sequence over token ids starts, [R], int64; keys, positions: [R], int64."""
    state = keys + positions * GAMMA
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def hashes(starts: Tensor, ids: Tensor) -> Tensor:
    """63 random bits for each token, [R, K], int64; starts: [R] from `streams`; ids: [K] or [R, K]."""
    state = ids * GAMMA + starts[:, None]
    state ^= state >> 30
    state *= FIRST
    state ^= state >> 27
    state *= SECOND
    return state.bitwise_and_(_HIGHEST)


def finish(weights: Tensor, starts: Tensor, ids: Tensor) -> Tensor:
    """How early each token arrives, [R, K], float32: the greatest wins, with a chance like its weight's.

    A token's time is exponential, divided by its weight, so that the first of any set of tokens is each of
    them with a chance proportional to its weight: the race behind Gumbel-max. Returned is the negative time.

    Args:
        weights: probabilities, of any scale, 0 for what does not take part; [R, K], float32.
        starts: [R], from `streams`.
        ids: of the tokens, [K] or [R, K], int64.
    """
    # float32 is finest near 0, and so is what decides: the winner's time is small.
    uniform = hashes(starts, ids).to(torch.float32).mul_(2.0**-63).clamp_(2.0**-63, 1 - 2.0**-24)
    return uniform.neg_().log1p_().div_(weights)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """To the right with zeros from the left, which torch's shift of signed numbers does not do."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
