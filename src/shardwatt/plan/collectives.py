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


@dataclass(frozen=True, slots=True)
class Way:
    """What messages between the ranks of a job go over.

    Attributes:
        ranks: of the job.
        nodes: that they are on, evenly.
        inside_s: latency of a message inside a node.
        between_s: of one between nodes.
        bandwidth_b_s: of the slowest part, as far as it is reached; infinite for one rank.
        has_trees: whether sums go by tree where that is faster than by ring: NCCL does so, gloo does not.
    """

    ranks: int
    nodes: int
    inside_s: float
    between_s: float
    bandwidth_b_s: float
    has_trees: bool


def way_of(ranks: int, nodes: int, device: PlanDevice, factors: Factors) -> Way:
    """What the messages of a job go over.

    Before a calibration latencies are as the links say. After one they are longer in the same measure in
    which less of the bandwidth is reached, for small messages would tell no factor otherwise.

    Args:
        ranks: of the job.
        nodes: that they are on, evenly.
        device: its links.
        factors: `network` is the share of a link's bandwidth that is reached.
    """
    longer = DEFAULT_FACTORS[device.kind].network / factors.network
    return Way(
        ranks,
        nodes,
        longer * device.inside.latency_s,
        longer * device.between.latency_s,
        factors.network * _slowest_b_s(ranks, nodes, device),
        has_trees=device.kind == "cuda",
    )


def _slowest_b_s(ranks: int, nodes: int, device: PlanDevice) -> float:
    """Bandwidth of the slowest part of the way: a ring crosses the border of a node once, with all that the
    node's ranks have of the link together."""
    inside, per_node = device.inside, ranks // nodes
    used = min(1.0, (per_node - 1) / inside.peers)  # of links to each peer, those to the job's own ranks
    slowest = used * inside.bandwidth_b_s if per_node > 1 else math.inf
    if nodes > 1:
        slowest = min(slowest, device.between.bandwidth_b_s * ranks / nodes)
    return slowest


def all_reduce_s(message_bytes: float, way: Way) -> CollectiveSeconds:
    """Sum a message over all ranks: by ring or by tree, whichever is faster, as NCCL chooses.

    n ranks on N nodes; M bytes; a and A latencies inside and between nodes; B the bandwidth of the slowest
    part of the way.

    - ring (Patarasuk and Yuan, 2009): 2 (n - 1) messages in a row, 2 (N - 1) of them between nodes; each rank
      sends 2 (n - 1) / n x M, at B.
    - tree (NCCL 2.4): up and down, 2 ((n / N - 1) a + log2(N) A); each rank sends 2 M, at 0.9 B.

    Messages in a row as NCCL counts them: `ncclTopoTuneModel`, src/graph/tuning.cc.

    Args:
        message_bytes: of the tensor that is summed, the same on each rank.
        way: what it goes over.
    """
    ranks, nodes = way.ranks, way.nodes
    between = 2 * (nodes - 1)
    ring = CollectiveSeconds(
        (2 * (ranks - 1) - between) * way.inside_s + between * way.between_s,
        2 * (ranks - 1) / ranks * message_bytes / way.bandwidth_b_s,
    )
    if not way.has_trees:
        return ring
    tree = CollectiveSeconds(
        2 * ((ranks / nodes - 1) * way.inside_s + math.log2(nodes) * way.between_s),
        2 * message_bytes / (0.9 * way.bandwidth_b_s),
    )
    return min(ring, tree, key=lambda one: one.total_s)


def all_gather_s(message_bytes: float, way: Way) -> CollectiveSeconds:
    """Put the parts of a message together on all ranks: a ring of n - 1 messages, N - 1 between nodes.

    Each rank sends (n - 1) / n of the bytes.

    Args:
        message_bytes: of the tensor that each rank has afterwards.
        way: what they go over.
    """
    ranks, nodes = way.ranks, way.nodes
    return CollectiveSeconds(
        (ranks - nodes) * way.inside_s + (nodes - 1) * way.between_s,
        (ranks - 1) / ranks * message_bytes / way.bandwidth_b_s,
    )
