"""A rank's work on a cell: meets the others, loads its shard, answers the prompts.

What it has joined and loaded stays for the next cell of the same ranks.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import torch

from shardwatt.devices import VISIBLE, own_devices
from shardwatt.engine.load import load_engine
from shardwatt.engine.parallel import Ranks, join
from shardwatt.engine.protocol import Engine, ModelOnRank, Sampling
from shardwatt.engines import ENGINES
from shardwatt.errors import CellFailure, Reason
from shardwatt.recordfiles import write
from shardwatt.run.baseline import left_alone
from shardwatt.run.batches import (
    TimedResults,
    answer,
    batch_run,
    check_agreement,
    make_room,
    warm_up_requests,
)
from shardwatt.run.exchange import RUN_FILE, JobSpec, RankEnd, RunReport
from shardwatt.run.gate import pass_gate
from shardwatt.run.network import own_address
from shardwatt.run.place import Place
from shardwatt.run.provenance import versions
from shardwatt.run.ranklog import say
from shardwatt.run.staging import staged
from shardwatt.run.tell import Teller


class Session:
    """What the ranks keep from one cell to the next, seen from one of them.

    Args:
        folder: shared by the ranks.
        place: which rank this is.
        node: host name.
    """

    def __init__(self, folder: Path, place: Place, node: str) -> None:
        self._folder = folder
        self._place = place
        self._node = node
        self._group: Ranks | None = None
        self._device = "cpu"
        self._engine: Engine | None = None
        self._loaded: tuple[object, ...] | None = None

    def run_cell(self, spec: JobSpec, work: Path, results: TimedResults) -> RankEnd:
        """Run this rank's part of a cell.

        Args:
            spec: what is to be done.
            work: work folder of this cell.
            results: gets each batch's when it is done.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: the reason names what failed.
        """
        rank = self._place.rank
        torch.set_num_threads(spec.threads_per_rank)
        group = self._group or self._meet(spec)
        rendezvous_s = time.time() - spec.launched_at_s
        say(f"rank {rank} of {group.count} on {self._node}: all met after {rendezvous_s:.1f} s")
        teller = Teller(work)
        if rank == 0:
            teller.start()
        began_s = time.monotonic()
        engine = self._load(spec, group)
        make_room(engine, spec.batches)
        engine.synchronize()
        group.barrier()
        loaded_s = time.monotonic()
        say(f"rank {rank}: loaded in {loaded_s - began_s:.1f} s")
        idle_loaded = self._idle(spec, teller)
        group.barrier()
        warm_up_s = time.monotonic()
        teller.begin("warm-up")
        sampling = Sampling(spec.constants.temperature, spec.constants.top_p, spec.constants.seed)
        walks = ENGINES[spec.cell.engine].loop == "published"
        for request in warm_up_requests(spec.batches, spec.constants.warmup_tokens, walks=walks):
            engine.generate(request, sampling, lambda tokens: None)
        # What exists by now stays: a collection in the window would walk through all of torch's objects.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        engine.synchronize()
        warmed_s = time.monotonic()
        waits = []
        if spec.gated and rank == 0:
            waits.append(pass_gate(work, "open"))
        group.barrier()
        # One moment for all ranks, and so is the window's end: they bring their nodes' clocks together.
        start_s, start_wall_s = time.monotonic(), time.time()
        teller.begin("run")
        answer(spec.batches, spec.cell.length, engine, sampling, teller, results)
        engine.synchronize()
        group.barrier()
        stop_s = time.monotonic()
        teller.stop()
        if spec.gated and rank == 0:
            waits.append(pass_gate(work, "close"))
        check_agreement(group, [result for result, _ in results])
        peak_memory_gib = engine.peak_memory_gib()
        if rank == 0:
            report = RunReport(
                window_start_s=start_s,
                window_stop_s=stop_s,
                rendezvous_s=rendezvous_s,
                load_s=loaded_s - began_s,
                warmup_s=warmed_s - warm_up_s,
                idle_loaded=idle_loaded,
                gate_waits=waits,
                batches=[batch_run(result, times) for result, times in results],
                versions=versions(),
                engine_notes=engine.notes(),
            )
            write(report, work / RUN_FILE)
        # The last barrier: no rank says that it ended well before the report is on disk.
        group.barrier()
        return RankEnd(
            rank=rank,
            node=self._node,
            ok=True,
            peak_memory_gib=peak_memory_gib,
            device_uuid=_uuid(self._device),
            barrier_s=start_s,
            barrier_wall_s=start_wall_s,
            closing_s=stop_s,
        )

    def _idle(self, spec: JobSpec, teller: Teller) -> tuple[float, float] | None:
        """Wait on the host with the model loaded: a GPU that waits in a collective would spin."""
        if spec.idle is None:
            return None
        teller.begin("idle")
        return left_alone(*spec.idle, look=lambda: None)

    def _meet(self, spec: JobSpec) -> Ranks:
        """Join the other ranks over the network between the nodes."""
        devices = own_devices(spec.gpu_type, spec.ranks_per_node, os.environ)
        self._device = _device(spec, self._place, devices)
        address = own_address(spec.nodes, spec.network_interface)
        say(
            f"rank {self._place.rank} on {self._node}: GPU {self._place.device or '-'}, "
            f"address {address.host}, interface {address.interface}"
        )
        self._group = join(
            self._folder,
            rank=self._place.rank,
            count=spec.nodes * spec.ranks_per_node,
            device=self._device,
            host=address.host,
            interface=address.interface,
            start_timeout_s=spec.start_timeout_s,
            collective_timeout_s=spec.collective_timeout_s,
        )
        return self._group

    def _load(self, spec: JobSpec, group: Ranks) -> Engine:
        """This rank's part of the model; the one of the last cell, if it is the same."""
        cell = spec.cell
        wanted = (cell.engine, cell.model, cell.precision, spec.checkpoint)
        if self._engine is not None and self._loaded == wanted:
            return self._engine
        if self._engine is not None:
            # The old weights go first: both may not fit. The last cell has frozen the cycles that hold them.
            self._engine = None
            gc.unfreeze()
            gc.collect()
        checkpoint = spec.checkpoint
        assert checkpoint is not None, "only simulated ranks load none"
        if spec.staging is not None:
            checkpoint = staged(
                checkpoint, spec.architecture, spec.staging, rank=self._place.rank, ranks=group.count
            )
        self._engine = load_engine(
            cell.engine,
            ModelOnRank(
                architecture=spec.architecture,
                checkpoint=checkpoint,
                precision=cell.precision,
                device=self._device,
                rank=self._place.rank,
                ranks=group.count,
                vocab_size=spec.vocab_size,
                eos_ids=spec.eos_ids,
                cuda_graphs=spec.constants.cuda_graphs,
                collective_timeout_s=spec.collective_timeout_s,
                rows=max(batch.rows for batch in spec.batches),
            ),
        )
        self._loaded = wanted
        return self._engine


def _device(spec: JobSpec, place: Place, devices: list[str]) -> str:
    """This rank's device, as torch names it.

    Raises:
        CellFailure: CONFIGURATION, torch does not see it.
    """
    if spec.gpu_type.kind == "cpu":
        return "cpu"
    # Numbers as NVML and Slurm give them; by itself CUDA puts the fastest GPU first.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ[VISIBLE] = ",".join(devices)
    seen = torch.cuda.device_count()
    if place.local_rank >= seen:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"rank {place.rank} is to have GPU {place.local_rank} of {','.join(devices)}, and torch "
            f"{torch.__version__} sees {seen}; see whether nvidia-smi shows it here, and whether this torch "
            "was built for CUDA",
        )
    return f"cuda:{place.local_rank}"


def _uuid(device: str) -> str | None:
    """The driver's id of a GPU, in NVML's form; None for processors, or where torch does not tell it."""
    if device == "cpu":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"
