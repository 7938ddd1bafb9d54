"""The efficiency of a made-up cell, by simple laws; for tests and benchmarks.

Each batch takes one prefill, ten steps of walk and a step of decode for every token of the maximum length.
A token costs 2 GFLOP; half of what decode computes is needed. Decode reads a given share of what V100s can.
"""

from __future__ import annotations

from shardwatt.cell import Cell
from shardwatt.efficiency import Arithmetic, Efficiency, PeakFigures, PhaseEfficiency

FLOP_PER_TOKEN = 2_000_000_000
WALK_STEPS = 10
BANDWIDTH_B_S, FLOP_PER_S = 900e9, 112e12
SOURCE = "a made-up data sheet"


def efficiency_of(
    cell: Cell, *, prompts: int, batches: int, batches_s: float, window_s: float, decode_share: float | None
) -> Efficiency:
    """The efficiency of a cell whose batches are a tenth prefill, two tenths walk and the rest decode.

    Args:
        cell: which.
        prompts: of 50 tokens each.
        batches: how many they are answered in.
        batches_s: how long those took together.
        window_s: how long the window was.
        decode_share: of the memory bandwidth that decode reads; None where the site gives no data sheet.
    """
    peak = None
    if decode_share is not None:
        peak = PeakFigures(
            data_sheet="v100-pcie-32gb", source=SOURCE, devices=cell.shards,
            memory_bandwidth_b_s=BANDWIDTH_B_S, flop_per_s=FLOP_PER_S,
        )  # fmt: skip

    def arithmetic(tokens: float, useful: float, lasted_s: float) -> Arithmetic:
        most = None if peak is None else FLOP_PER_S * cell.shards * lasted_s
        executed, needed = round(FLOP_PER_TOKEN * tokens), round(FLOP_PER_TOKEN * useful)
        return Arithmetic(
            flop_executed=executed,
            flop_useful=needed,
            flop_utilisation_executed=None if most is None else executed / most,
            flop_utilisation_useful=None if most is None else needed / most,
        )

    def phase(steps: int, tokens: int, useful: int, lasted_s: float, share: float | None) -> PhaseEfficiency:
        most = BANDWIDTH_B_S * cell.shards * lasted_s
        return PhaseEfficiency(
            steps=steps,
            tokens=tokens,
            tokens_useful=useful,
            tokens_per_s=tokens / lasted_s,
            tokens_useful_per_s=useful / lasted_s,
            moved_bytes=None if share is None else round(share * most),
            bandwidth_utilisation=share,
            **arithmetic(tokens, useful, lasted_s).model_dump(),
        )

    fed, walked, decoded = 40 * prompts, WALK_STEPS * prompts, cell.length * prompts
    walk_share = None if decode_share is None else decode_share / 2
    return Efficiency(
        peak=peak,
        prefill=phase(batches, fed, fed, 0.1 * batches_s, None),
        walk=phase(batches * WALK_STEPS, walked, walked, 0.2 * batches_s, walk_share),
        decode=phase(batches * cell.length, decoded, decoded // 2, 0.7 * batches_s, decode_share),
        window=arithmetic(fed + walked + decoded, fed + walked + decoded // 2, window_s),
    )
