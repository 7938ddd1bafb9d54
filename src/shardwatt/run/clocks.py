"""From the barriers that open and close the window to the nodes' clocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from shardwatt.power.clock import NodeClock
from shardwatt.run.exchange import RankEnd


def node_clocks(ends: Sequence[RankEnd], ranks_per_node: int) -> list[NodeClock] | None:
    """The clocks of the nodes, in their order, from when each rank left the barriers around the window.

    All ranks leave them within a message's time, so that wall clocks play no part. Of a node's ranks the
    median counts: one that was held up says nothing of the clock.

    Args:
        ends: how each rank ended.
        ranks_per_node: ranks are on nodes in blocks of so many.

    Returns:
        A clock a node, without drift where a rank did not see the window close; None where one did not see it
        open.
    """
    blocks: dict[int, list[RankEnd]] = {}
    for end in ends:
        blocks.setdefault(end.rank // ranks_per_node, []).append(end)
    seen = [_seen(blocks[index]) for index in sorted(blocks)]
    opened = [
        (opened_s, wall_s) for _, opened_s, wall_s, _ in seen if opened_s is not None and wall_s is not None
    ]
    if not seen or len(opened) < len(seen):
        return None
    closed = [closed_s for *_, closed_s in seen if closed_s is not None]
    clocks = []
    for place, (name, *_) in enumerate(seen):
        offset_s = opened[0][0] - opened[place][0]
        clock = NodeClock(name, offset_s, opened[place][1] - opened[0][1])
        if len(closed) == len(seen):
            clock = replace(
                clock,
                opened_s=opened[place][0],
                closed_s=closed[place],
                drift_s=closed[0] - closed[place] - offset_s,
            )
        clocks.append(clock)
    return clocks


def _seen(block: Sequence[RankEnd]) -> tuple[str, float | None, float | None, float | None]:
    """The name of a block's node, and when it left the barriers: the first by both clocks, and the second."""
    # A block that is on several nodes has several names: no meter's, which load_trace tells.
    name = ", ".join(sorted({end.node for end in block}))
    return (
        name,
        _median([end.barrier_s for end in block]),
        _median([end.barrier_wall_s for end in block]),
        _median([end.closing_s for end in block]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    """The median of times that all ranks of a node know; None where one does not."""
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None
