"""The nodes' processors and memory, beside the devices that the headline is about: RAPL over any interval,
and how busy they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shardwatt.power.clock import NodeClock
from shardwatt.power.curve import Interval
from shardwatt.power.meters.rapl import INDEX, WHOLE_NODE, Kind
from shardwatt.power.nodetrace import NodeFiles, NodeTrace
from shardwatt.power.sampling.files import host_meter_path, host_samples_path, sampler_path
from shardwatt.power.states import utilisation
from shardwatt.power.trace import Trace, traces_on_one_clock
from shardwatt.readings import KNOWN, Reading, Scope, Status, Utilisation


class HostTrace:
    """What the host meters of a job's nodes gave; times in s of node 0's `time.monotonic()`."""

    def __init__(self, nodes: Sequence[NodeTrace]) -> None:
        self._nodes = list(nodes)

    def utilisation(self, start_s: float, stop_s: float) -> Utilisation:
        """How busy the processors of all nodes were and how full their memory was, other processes included;
        null where no node tells."""
        return utilisation([device for node in self._nodes for device in node.devices], start_s, stop_s)

    def reading(self, kind: Kind, interval: Interval) -> Reading:
        """Joules of all nodes' processors (`package`) or memory (`dram`); null where one node lacks them."""
        return Trace([_only(node, kind) for node in self._nodes], 1).reading([interval], Scope.ALL_NODES)


def load_host(folder: Path, nodes: int, clocks: Sequence[NodeClock] | None = None) -> HostTrace:
    """Read what the samplers of a job wrote about the nodes themselves.

    Args:
        folder: where the samplers wrote.
        nodes: nodes of the job.
        clocks: of the nodes, in their order; None brings them together by their wall clocks.
    """

    def read_node(index: int) -> NodeFiles:
        return NodeFiles.read(
            host_meter_path(folder, index), host_samples_path(folder, index), sampler_path(folder, index)
        )

    return HostTrace(traces_on_one_clock(nodes, read_node, clocks))


def _only(node: NodeTrace, kind: Kind) -> NodeTrace:
    """A node with nothing but its device of one kind."""
    devices = [device for device in node.devices if device.device.index == INDEX[kind]]
    if node.status not in KNOWN:
        return replace(node, devices=devices)
    if not devices:
        # The meter's words are about what it could not open.
        detail = node.detail or f"{node.name}: its meter reads no {kind}"
        return replace(node, status=Status.UNAVAILABLE, detail=detail, devices=[])
    return replace(node, detail=WHOLE_NODE, devices=devices)
