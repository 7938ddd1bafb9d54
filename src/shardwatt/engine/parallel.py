"""How the ranks of a cell find each other, wait for each other and compare what they have."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from torch.distributed import TCPStore, distributed_c10d  # type: ignore[attr-defined]

from shardwatt.engine.failures import torch_failures
from shardwatt.errors import CellFailure, Reason
from shardwatt.layout import is_there

RENDEZVOUS = "rendezvous.json"
_POLL_S = 0.02

#: Under which name rank 0's store says whose it is.
_START = "start"

#: Time in s between two looks for a file: many ranks look at once.
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a cell, seen from one of them, after `join`.

    Waiting and comparing go through gloo on the host, also where tensors go through NCCL: a GPU that
    waits in an NCCL barrier spins, and its power would be read as work.

    Attributes:
        rank: this one, from 0.
        count: how many there are.
    """

    rank: int
    count: int

    @torch_failures()
    def barrier(self) -> None:
        """Wait until every rank is here; synchronise the device before.

        Raises:
            CellFailure: RANK_DIED or COLLECTIVE_TIMEOUT.
        """
        dist.all_reduce(torch.zeros(1))

    @torch_failures()
    def all_agree(self, value: str) -> bool:
        """Whether every rank holds the same value; every rank gets the same answer.

        Raises:
            CellFailure: RANK_DIED or COLLECTIVE_TIMEOUT.
        """
        own = torch.frombuffer(bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
        digests = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(digests, own)
        return all(torch.equal(digest, own) for digest in digests)

    def leave(self) -> None:
        """Let go of the groups, also after a failure; the others are not waited for.

        Engines go first where there are several ranks on GPUs: CUDA graphs hold NCCL's collectives.
        """
        if fairscale_groups.model_parallel_is_initialized():
            fairscale_groups.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()


def join(
    folder: Path,
    *,
    rank: int,
    count: int,
    device: str,
    host: str = "127.0.0.1",
    interface: str = "lo",
    start_timeout_s: float,
    collective_timeout_s: float,
) -> Ranks:
    """Meet the other ranks and set up FairScale's model-parallel group over all of them.

    Rank 0 opens a store on a port that the system chooses and publishes it in FOLDER/rendezvous.json,
    so that two cells that start at once cannot take each other's port.

    Args:
        folder: shared by the ranks and new for each start: an old rendezvous.json would mislead.
        rank: this one, from 0.
        count: how many there are.
        device: `cpu`, or `cuda:N` on this node.
        host: this node's address; with 127.0.0.1 nothing listens to the network.
        interface: the network interface that carries it.
        start_timeout_s: longest time in s until all are here.
        collective_timeout_s: longest time in s that one waits for the others later.

    Raises:
        CellFailure: START_TIMEOUT, a rank did not come; RANK_DIED or COLLECTIVE_TIMEOUT, one went away.
    """
    deadline = time.monotonic() + start_timeout_s
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    if interface != "lo":
        # `=` names it exactly (NCCL's manual, NCCL_SOCKET_IFNAME); on one node NCCL chooses by itself.
        os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"
    store = (
        _open_store(folder, host, start_timeout_s)
        if rank == 0
        else _find_store(folder, rank, deadline, start_timeout_s)
    )
    _await_all(store, rank, count, deadline, start_timeout_s)
    timeout = timedelta(seconds=collective_timeout_s)
    with torch_failures():
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timeout)
        backend = "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            backend = "nccl"
        with contextlib.redirect_stdout(io.StringIO()):  # FairScale announces its groups
            fairscale_groups.initialize_model_parallel(
                count, model_parallel_backend=backend, pipeline_backend="gloo", ddp_backend="gloo"
            )
        # FairScale makes its groups with torch's default of many minutes.
        distributed_c10d._set_pg_timeout(timeout, fairscale_groups.get_model_parallel_group())
    return Ranks(rank, count)


def _open_store(folder: Path, host: str, timeout_s: float) -> TCPStore:
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    start = secrets.token_hex(8)
    store.set(_START, start)
    unfinished = folder / f".{RENDEZVOUS}"
    content = {"host": host, "port": port, "start": start}
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.rename(folder / RENDEZVOUS)
    return store


def _find_store(folder: Path, rank: int, deadline: float, timeout_s: float) -> TCPStore:
    path = folder / RENDEZVOUS
    while not is_there(path):
        if time.monotonic() > deadline:
            raise CellFailure(
                Reason.START_TIMEOUT,
                f"rank {rank} found no {path} within {timeout_s:g} s: rank 0 has not started; "
                "see its log, or raise the site's start_timeout_s",
            )
        time.sleep(_LOOK_S)
    address = json.loads(path.read_text(encoding="utf-8"))
    left = timedelta(seconds=max(deadline - time.monotonic(), 1.0))
    cannot = CellFailure(
        Reason.START_TIMEOUT,
        f"rank {rank} cannot reach rank 0 at {address['host']}:{address['port']}, "
        f"which {path} names; see rank 0's log",
    )
    try:
        store = TCPStore(
            address["host"], address["port"], is_master=False, timeout=left, wait_for_workers=False
        )
        is_own = store.get(_START).decode() == address["start"]
    except RuntimeError as error:
        raise cannot from error
    if not is_own:
        # Rank 0 is gone, and its port was taken since by that of another cell.
        raise cannot
    return store


def _await_all(store: TCPStore, rank: int, count: int, deadline: float, timeout_s: float) -> None:
    """Wait until every rank has said that it is here; the group's own set-up could not name who is not."""
    names = [f"here/{other}" for other in range(count)]
    missing = names
    try:
        store.set(names[rank], "yes")
        while missing := [name for name in missing if not store.check([name])]:
            if time.monotonic() > deadline:
                absent = ", ".join(name.removeprefix("here/") for name in missing)
                raise CellFailure(
                    Reason.START_TIMEOUT,
                    f"rank {absent} of {count} did not come within {timeout_s:g} s; "
                    "see its log, or raise the site's start_timeout_s",
                )
            time.sleep(_POLL_S)
    except RuntimeError as error:
        raise CellFailure(
            Reason.RANK_DIED, f"rank {rank} lost rank 0 while the ranks were meeting; see rank 0's log"
        ) from error
