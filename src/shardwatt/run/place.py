"""Which rank a process is, as its launcher says: srun, or submitit on one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from shardwatt.devices import VISIBLE, names

_IN_SUBMITIT = "SUBMITIT_LOCAL_GLOBALID"


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place among the others.

    Attributes:
        rank: from 0, over all nodes.
        local_rank: from 0, on its node.
        device: the GPU that it takes, as CUDA_VISIBLE_DEVICES names it on its node; None where that is
            not set.
        in_step: whether srun started it.
    """

    rank: int
    local_rank: int
    device: str | None
    in_step: bool


def see_devices(visible: str | None, environment: MutableMapping[str, str]) -> None:
    """Give a rank that submitit started the devices of its supervisor: submitit hides all GPUs from its
    tasks, or names them by numbers alone.

    Args:
        visible: CUDA_VISIBLE_DEVICES of the supervisor; None where it is not set.
        environment: of this process; changed.
    """
    if _IN_SUBMITIT not in environment:
        return
    environment.pop(VISIBLE, None)
    if visible is not None:
        environment[VISIBLE] = visible


def own_place(ranks_per_node: int, environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place.

    Args:
        ranks_per_node: ranks on each node.
        environment: of this process.
    """
    in_step = _IN_SUBMITIT not in environment
    names_of_it = (
        ("SLURM_PROCID", "SLURM_LOCALID")
        if in_step
        else (
            _IN_SUBMITIT,
            "SUBMITIT_LOCAL_LOCALID",
        )
    )
    rank, local_rank = (int(environment[name]) for name in names_of_it)
    visible = names(environment.get(VISIBLE, ""))[:ranks_per_node]
    return Place(rank, local_rank, visible[local_rank] if local_rank < len(visible) else None, in_step)
