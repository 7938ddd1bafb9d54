"""How a cell is laid out on nodes: how many, and how many ranks on each."""

from __future__ import annotations

from dataclasses import dataclass

from shardwatt.errors import SiteError
from shardwatt.site import Site


@dataclass(frozen=True, slots=True)
class JobShape:
    """Nodes of a job and ranks on each; one device a rank."""

    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def job_shape(site: Site, gpu: str, shards: int) -> JobShape:
    """Lay shards out on nodes of a GPU type: a node is filled before the next one is begun.

    Raises:
        SiteError: the shards do not fill whole nodes, or the launcher has too few nodes.
    """
    per_node = site.gpus[gpu].per_node
    nodes = -(-shards // per_node)
    if nodes > 1 and shards % per_node:
        raise SiteError(
            f"shards: {shards} does not fill whole nodes of {per_node} {gpu}; "
            f"use up to {per_node}, or a multiple of it"
        )
    if nodes > 1 and site.launcher == "local":
        raise SiteError(
            f"shards: {shards} needs {nodes} nodes of {per_node} {gpu}, and launcher `local` has one; "
            f"use up to {per_node} shards, or raise gpus.{gpu}.per_node of site '{site.name}'"
        )
    return JobShape(nodes, shards // nodes)
