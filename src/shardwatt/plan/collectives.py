"""How long ranks take to sum and to gather: latency and transfer apart, inside and between nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardwatt.plan.device import DEFAULT_FACTORS, Factors, PlanDevice


@dataclass(frozen=True, slots=True)
class CollectiveSeconds:
    """Time of one collective.

    Attributes:
        latency_s: of its messages, however small they are.
        transfer_s: of its bytes.
    """

    latency_s: float
    transfer_s: float

    @property
    def total_s(self) -> float:
        """Both: the bytes follow the first message."""
        return self.latency_s + self.transfer_s


NOTHING = CollectiveSeconds(0.0, 0.0)


def all_reduce_s(
    message_bytes: float, ranks: int, nodes: int, device: PlanDevice, factors: Factors
) -> CollectiveSeconds:
    """Sum a message over all ranks: by ring or by tree, whichever is faster, as NCCL chooses.

    n ranks on N nodes; M bytes; a and A latencies inside and between nodes; B the bandwidth of the slowest
    part of the way (`bandwidth_b_s`).

    - ring (Patarasuk and Yuan, 2009): 2 (n - 1) messages in a row, 2 (N - 1) of them between nodes; each rank
      sends 2 (n - 1) / n x M, at B.
    - tree (NCCL 2.4): up and down, 2 ((n / N - 1) a + log2(N) A); each rank sends 2 M, at 0.9 B.

    Messages in a row as NCCL counts them: `ncclTopoTuneModel`, src/graph/tuning.cc.

    Args:
        message_bytes: of the tensor that is summed, the same on each rank.
        ranks: of the job.
        nodes: that they are on, evenly.
        device: its links.
        factors: `network` is the share of a link's bandwidth that is reached; what it is above or below its
            assumption makes latencies shorter or longer too.
    """
    if ranks == 1:
        return NOTHING
    inside_s, between_s = _latencies_s(device, factors)
    bandwidth = _bandwidth_b_s(ranks, nodes, device, factors)
    between = 2 * (nodes - 1)
    ring = CollectiveSeconds(
        (2 * (ranks - 1) - between) * inside_s + between * between_s,
        2 * (ranks - 1) / ranks * message_bytes / bandwidth,
    )
    if device.kind != "cuda":
        return ring
    tree = CollectiveSeconds(
        2 * ((ranks / nodes - 1) * inside_s + math.log2(nodes) * between_s),
        2 * message_bytes / (0.9 * bandwidth),
    )
    return min(ring, tree, key=lambda way: way.total_s)


def all_gather_s(
    message_bytes: float, ranks: int, nodes: int, device: PlanDevice, factors: Factors
) -> CollectiveSeconds:
    """Put the parts of a message together on all ranks: a ring of n - 1 messages, N - 1 between nodes.

    Each rank sends (n - 1) / n of the bytes.

    Args:
        message_bytes: of the tensor that each rank has afterwards.
        ranks: of the job.
        nodes: that they are on, evenly.
        device: its links.
        factors: `network` is the share of a link's bandwidth that is reached; what it is above or below its
            assumption makes latencies shorter or longer too.
    """
    if ranks == 1:
        return NOTHING
    inside_s, between_s = _latencies_s(device, factors)
    bandwidth = _bandwidth_b_s(ranks, nodes, device, factors)
    return CollectiveSeconds(
        (ranks - nodes) * inside_s + (nodes - 1) * between_s,
        (ranks - 1) / ranks * message_bytes / bandwidth,
    )


def _bandwidth_b_s(ranks: int, nodes: int, device: PlanDevice, factors: Factors) -> float:
    """What the slowest part of the way carries: a ring crosses the border of a node once, with all that the
    node's ranks have of the link together."""
    inside, per_node = device.inside, ranks // nodes
    used = min(1.0, (per_node - 1) / inside.peers)  # of links to each peer, those to the job's own ranks
    slowest = used * inside.bandwidth_b_s if per_node > 1 else math.inf
    if nodes > 1:
        slowest = min(slowest, device.between.bandwidth_b_s * ranks / nodes)
    return factors.network * slowest


def _latencies_s(device: PlanDevice, factors: Factors) -> tuple[float, float]:
    """Of a message inside and between nodes: as the link says before a calibration, and longer in the same
    measure in which less of its bandwidth is reached. Small messages would tell no factor otherwise."""
    longer = DEFAULT_FACTORS[device.kind].network / factors.network
    return longer * device.inside.latency_s, longer * device.between.latency_s
