"""How a cell is laid out on nodes: how many, and how many ranks on each."""

from __future__ import annotations

from dataclasses import dataclass

from shardwatt.errors import SiteError
from shardwatt.site import Site

#: Most shard counts that a message lists one by one.
_LISTED_COUNTS = 8


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
        SiteError: the shards do not fill whole nodes, or there are too few nodes.
    """
    per_node = site.gpus[gpu].per_node
    nodes = -(-shards // per_node)
    there = 1 if site.launcher == "local" else site.words(gpu).nodes
    if nodes > 1 and shards % per_node:
        raise SiteError(
            f"shards: {shards} does not fill whole nodes of {per_node} {gpu}; use {_allowed(per_node, there)}"
        )
    if there is not None and nodes > there:
        found = f"shards: {shards} needs {nodes} nodes of {per_node} {gpu}"
        if site.launcher == "local":
            raise SiteError(
                f"{found}, and launcher `local` has one; use up to {per_node} shards, "
                f"or raise gpus.{gpu}.per_node of site '{site.name}'"
            )
        raise SiteError(
            f"{found}, and site '{site.name}' has {there}; use {_allowed(per_node, there)}, "
            f"or correct gpus.{gpu}.slurm.nodes"
        )
    return JobShape(nodes, shards // nodes)


def devices_held(site: Site, gpu: str, shards: int) -> int:
    """Devices that a job keeps from others: of nodes that it has to itself all.

    Raises:
        SiteError: as `job_shape`.
    """
    shape = job_shape(site, gpu, shards)
    is_shared = site.words(gpu).exclusive is False
    return shape.nodes * (shape.ranks_per_node if is_shared else site.gpus[gpu].per_node)


def gpus_held(site: Site, gpu: str, shards: int) -> int:
    """GPUs that a job keeps from others; 0 for a type without GPUs.

    Raises:
        SiteError: as `job_shape`.
    """
    return devices_held(site, gpu, shards) if site.gives_gpus(gpu) else 0


def _allowed(per_node: int, nodes: int | None) -> str:
    """The shard counts that nodes can hold, in words."""
    first = "1" if per_node == 1 else f"1 to {per_node}"
    if nodes is None:
        return f"{first}, or a multiple of {per_node}"
    more = [str(per_node * count) for count in range(2, nodes + 1)]
    if not more:
        return first
    if len(more) > _LISTED_COUNTS:
        return f"{first}, or a multiple of {per_node} up to {more[-1]}"
    return f"{', '.join([first, *more[:-1]])} or {more[-1]}"
