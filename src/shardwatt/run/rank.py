"""One rank of a cell: joins the others, loads its shard, answers the prompts, tells how it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil

from shardwatt.engine.protocol import Sampling
from shardwatt.errors import CellFailure, DoesNotFit, Reason, storage_failure
from shardwatt.records import read, write
from shardwatt.run.batches import answer, batch_run, check_agreement, warm_up_requests
from shardwatt.run.exchange import (
    JOB_FILE,
    RUN_FILE,
    JobSpec,
    RankEnd,
    RankStart,
    RunReport,
    rank_end_file,
    rank_start_file,
)
from shardwatt.run.tell import Teller

#: Seconds between two looks at the supervisor's process.
LIFELINE_PERIOD_S = 2.0

#: Longest time in s that a rank that ended well waits for the others to say the same.
LINGER_S = 10.0

_POLL_S = 0.05


def main(work_folder: str) -> None:
    """Run this process's rank; the launcher's environment says which one it is.

    Ends the process: with exit code 1 when the cell failed on this rank; rank-R.end.json says why.
    """
    work = Path(work_folder)
    spec = read(JobSpec, work / JOB_FILE)
    rank = _rank()
    node = platform.node()
    _redirect_output(spec.log_folder / f"rank-{rank}.log")
    # A crash in a library leaves its stack in the log.
    faulthandler.enable()
    write(RankStart(rank=rank, node=node, pid=os.getpid()), rank_start_file(work, rank))
    _follow_supervisor(spec)
    end = _end(spec, work, rank, node)
    told = False
    try:
        write(end, rank_end_file(work, rank))
        told = True
    except OSError as problem:
        print(f"rank {rank} cannot say how it ended: {problem}", file=sys.stderr)
    if end.ok and told:
        _await_others(work, spec.cell.shards)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through torch's clean-up, which may wait for ranks that are gone.
    os._exit(0 if end.ok and told else 1)


def _end(spec: JobSpec, work: Path, rank: int, node: str) -> RankEnd:
    """Run the rank; whatever is raised becomes how it ended."""
    try:
        return _run(spec, work, rank, node)
    except DoesNotFit as problem:
        return RankEnd(rank=rank, node=node, ok=False, does_not_fit=True, message=str(problem))
    except BaseException as problem:
        failure = _as_failure(problem, rank)
        return RankEnd(rank=rank, node=node, ok=False, reason=failure.reason, message=failure.message)


def _as_failure(problem: BaseException, rank: int) -> CellFailure:
    if isinstance(problem, CellFailure):
        return problem
    if isinstance(problem, KeyboardInterrupt):
        return CellFailure(Reason.CANCELLED, "interrupted by a signal")
    if isinstance(problem, MemoryError):
        message = f"rank {rank} ran out of the host's memory: {problem or 'allocation refused'}"
        return CellFailure(Reason.HOST_OOM, message)
    if isinstance(problem, OSError) and (failure := storage_failure(problem)):
        return failure
    traceback.print_exception(problem)
    return CellFailure(Reason.INTERNAL_ERROR, f"{type(problem).__name__}: {problem}")


def _await_others(work: Path, ranks: int) -> None:
    """Keep the connections open until all have ended: another rank may still be in its last barrier."""
    deadline_s = time.monotonic() + LINGER_S
    others = [rank_end_file(work, number) for number in range(ranks)]
    while time.monotonic() < deadline_s and not all(path.exists() for path in others):
        time.sleep(_POLL_S)


def _run(spec: JobSpec, work: Path, rank: int, node: str) -> RankEnd:
    # Numbers as NVML and Slurm give them; by itself CUDA puts the fastest GPU first.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(spec.visible_devices)
    # torch is imported here: the supervisor imports this module to name `main`, and needs none.
    import torch

    from shardwatt.engine.load import load_engine
    from shardwatt.engine.parallel import join

    torch.set_num_threads(spec.threads_per_rank)
    ranks = spec.cell.shards
    device = _device(spec, rank)
    group = join(
        work,
        rank=rank,
        count=ranks,
        device=device,
        host=spec.rendezvous_host,
        start_timeout_s=spec.start_timeout_s,
        collective_timeout_s=spec.collective_timeout_s,
    )
    rendezvous_s = time.time() - spec.launched_at_s
    print(f"rank {rank} of {ranks} on {node}: all met after {rendezvous_s:.1f} s", flush=True)
    teller = Teller(work)
    if rank == 0:
        teller.start()
    began_s = time.monotonic()
    engine = load_engine(
        spec.cell.engine,
        architecture=spec.architecture,
        checkpoint=spec.checkpoint,
        precision=spec.cell.precision,
        device=device,
        rank=rank,
        ranks=ranks,
        vocab_size=spec.vocab_size,
        eos_id=spec.eos_id,
    )
    engine.allocate(
        max(len(batch.prompts) for batch in spec.batches),
        max(batch.positions for batch in spec.batches),
    )
    engine.synchronize()
    group.barrier()
    loaded_s = time.monotonic()
    print(f"rank {rank}: loaded in {loaded_s - began_s:.1f} s", flush=True)
    teller.begin("warm-up")
    sampling = Sampling(spec.constants.temperature, spec.constants.top_p, spec.constants.seed)
    for request in warm_up_requests(spec.batches, spec.constants.warmup_tokens):
        engine.generate(request, sampling, lambda tokens: None)
    # What exists by now stays: a collection in the window would walk through all of torch's objects.
    gc.collect()
    gc.freeze()
    engine.synchronize()
    group.barrier()
    teller.begin("run")
    start_s = time.monotonic()
    results = answer(spec.batches, spec.cell.length, engine, sampling, teller)
    engine.synchronize()
    group.barrier()
    stop_s = time.monotonic()
    check_agreement(group, [run for run, _ in results])
    peak_memory_gib = engine.peak_memory_gib()
    if rank == 0:
        report = RunReport(
            window_start_s=start_s,
            window_stop_s=stop_s,
            rendezvous_s=rendezvous_s,
            load_s=loaded_s - began_s,
            warmup_s=start_s - loaded_s,
            batches=[batch_run(result, times) for result, times in results],
        )
        write(report, work / RUN_FILE)
    # The last barrier: no rank says that it ended well before the report is on disk.
    group.barrier()
    return RankEnd(rank=rank, node=node, ok=True, peak_memory_gib=peak_memory_gib)


def _device(spec: JobSpec, rank: int) -> str:
    """This rank's device, as torch names it.

    Raises:
        CellFailure: CONFIGURATION, torch does not see it.
    """
    if spec.device_kind == "cpu":
        return "cpu"
    import torch

    number, seen = _local_rank(), torch.cuda.device_count()
    if number >= seen:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"rank {rank} is to have GPU {number} of {','.join(spec.visible_devices)}, and torch "
            f"{torch.__version__} sees {seen}; see whether nvidia-smi shows it here, and whether this torch "
            "was built for CUDA",
        )
    return f"cuda:{number}"


def _rank() -> int:
    return int(os.environ["SUBMITIT_LOCAL_GLOBALID"])


def _local_rank() -> int:
    return int(os.environ["SUBMITIT_LOCAL_LOCALID"])


def _redirect_output(log: Path) -> None:
    """Send everything that this process prints, libraries included, to the rank's own log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def _follow_supervisor(spec: JobSpec) -> None:
    """End this rank soon after its supervisor is gone: nobody would be left to take its result."""
    if spec.supervisor_node != platform.node():
        return

    def watch() -> None:
        # is_running compares start times too, so that another process with its number is not taken for it.
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(spec.supervisor_pid)
            while supervisor.is_running() and supervisor.status() != psutil.STATUS_ZOMBIE:
                time.sleep(LIFELINE_PERIOD_S)
        print("the supervisor is gone; ending", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
