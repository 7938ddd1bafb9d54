"""One clock for the nodes of a job: what brings each node's monotonic clock to that of rank 0's node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardwatt.power.curve import Array


@dataclass(frozen=True, slots=True)
class NodeClock:
    """A node's clocks beside those of rank 0's node, as seen when all ranks left the same two barriers.

    Attributes:
        node: host name.
        offset_s: what is added to its `time.monotonic()` to get that of rank 0's node, in s, at the barrier
            that opens the window. Monotonic clocks start when their machines do: the number says nothing by
            itself.
        wall_ahead_s: its wall clock less that of rank 0's node, in s; None where no barrier told. Nothing is
            computed with it.
        opened_s, closed_s: when it left the barriers that open and close the window, in s of its own
            `time.monotonic()`.
        drift_s: by how much the offset had changed at the second barrier, in s; None where that is not known.
            NTP makes monotonic clocks faster or slower too, by up to 500 ppm.
    """

    node: str
    offset_s: float
    wall_ahead_s: float | None
    opened_s: float = 0.0
    closed_s: float = 0.0
    drift_s: float | None = None

    def on_rank0_s(self, t_s: Array) -> Array:
        """[times] Its monotonic times in s on the clock of rank 0's node.

        The drift is spread evenly over the window; before and after it nothing is known of the clock's speed,
        and the offset stays what it was at the nearer barrier.
        """
        moved_s: Array = t_s + self.offset_s
        if self.drift_s is not None:
            moved_s += np.interp(t_s, [self.opened_s, self.closed_s], [0.0, self.drift_s])
        return moved_s
