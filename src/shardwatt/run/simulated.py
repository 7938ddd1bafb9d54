"""A rank of a simulated cell: it meets the others, holds the plan's power for a while, and runs no model.

It imports neither torch nor anything that comes with it, so that many of them start on a small machine. The
ranks meet through files in the cell's work folder: nothing of the network between them is used.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from shardwatt.devices import own_devices
from shardwatt.engines import loop_of
from shardwatt.errors import DoesNotFit
from shardwatt.layout import is_there, listed
from shardwatt.power.draw import Draw, draw_path, tell_simulated_gpu
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion, read, write
from shardwatt.run.baseline import left_alone
from shardwatt.run.exchange import RUN_FILE, Acting, JobSpec, RankEnd, RunReport, rank_start_file
from shardwatt.run.place import Place
from shardwatt.run.provenance import versions
from shardwatt.run.ranklog import say
from shardwatt.run.tell import Teller

#: Time in s from when rank 0 opens the window until it is open: by then every rank has seen that.
LEAD_S = 1.0

#: Time in s before and after the window for which power is held as well.
MARGIN_S = 0.4

_OPENING_FILE = "opening.json"
_POLL_S = 0.1


class Opening(RecordModel):
    """When the window of a simulated cell opens: opening.json, written by rank 0."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    wall_s: float
    """By the wall clock, in s since the epoch."""


def run_simulated(spec: JobSpec, acting: Acting, work: Path, place: Place, node: str) -> RankEnd:
    """Take this rank's part in a simulated cell.

    Args:
        spec: the cell.
        acting: what is to be done.
        work: the cell's work folder.
        place: which rank this is.
        node: host name.

    Raises:
        DoesNotFit: as the plan says, and the study wants no cells that do not fit.
        CellFailure: CONFIGURATION, the node has fewer GPUs than ranks.
        OSError: the work folder, or the file of the simulated GPUs, cannot be written.
    """
    if acting.does_not_fit is not None:
        raise DoesNotFit(acting.does_not_fit)
    teller = Teller(work)
    rendezvous_s, idle_loaded = 0.0, None
    if place.rank == 0:
        teller.start()
        _await_all(work, spec.cell.shards)
        rendezvous_s = time.time() - spec.launched_at_s
        say(f"all {spec.cell.shards} ranks are there after {rendezvous_s:.1f} s")
        if spec.idle is not None:
            teller.begin("idle")
            idle_loaded = left_alone(*spec.idle, look=lambda: None)
        write(Opening(wall_s=time.time() + LEAD_S), work / _OPENING_FILE)
    start_s, start_wall_s = _opened(work)
    stop_s = start_s + acting.window_s
    _hold(spec, acting, work, place, node, start_s)
    teller.begin("run")
    while (left_s := stop_s + MARGIN_S - time.monotonic()) > 0:
        share = min(max((time.monotonic() - start_s) / acting.window_s, 0.0), 1.0)
        teller.prompts_done = int(share * acting.prompts)
        teller.generated_tokens = int(share * acting.generated_tokens)
        time.sleep(min(left_s, _POLL_S))
    teller.stop()
    if place.rank == 0:
        report = RunReport(
            window_start_s=start_s,
            window_stop_s=stop_s,
            rendezvous_s=rendezvous_s,
            load_s=0.0,
            warmup_s=0.0,
            idle_loaded=idle_loaded,
            batches=[],
            versions=versions(),
            engine_notes={
                "simulated": f"no model ran: time and power of {loop_of(spec.cell.engine)} are planned, and "
                "no response has a text",
                "words": "estimated from tokens",
                "job": "what is around the window is real time: nothing was loaded or warmed up",
            },
        )
        write(report, work / RUN_FILE)
    return RankEnd(
        rank=place.rank,
        node=node,
        ok=True,
        barrier_s=start_s,
        barrier_wall_s=start_wall_s,
        closing_s=stop_s,
    )


def _await_all(work: Path, ranks: int) -> None:
    """Wait until every rank has begun; how long is the supervisor's to say."""
    names = {rank_start_file(work, rank).name for rank in range(ranks)}
    while not names <= set(listed(work)):
        time.sleep(_POLL_S)


def _opened(work: Path) -> tuple[float, float]:
    """Wait for rank 0's word; when the window opens here, by the monotonic and by the wall clock, in s.

    A node whose wall clock is wrong opens it at once or after the whole lead. That is told like any other
    node's: times are brought together by when each opened it, not by wall clocks.
    """
    path = work / _OPENING_FILE
    while not is_there(path):
        time.sleep(_POLL_S)
    now_s, now_wall_s = time.monotonic(), time.time()
    ahead_s = min(max(read(Opening, path).wall_s - now_wall_s, 0.0), LEAD_S)
    return now_s + ahead_s, now_wall_s + ahead_s


def _hold(spec: JobSpec, acting: Acting, work: Path, place: Place, node: str, start_s: float) -> None:
    """Say ahead of time what this rank's device draws: so it does to the moment, however busy the node."""
    if not acting.steps:
        return
    draw = Draw.of_window(acting.steps, start_s, acting.window_s, MARGIN_S)
    if acting.draw_file is None:
        write(draw, draw_path(work, place.rank))
    else:
        gpus = own_devices(spec.gpu_type, spec.ranks_per_node, os.environ)
        tell_simulated_gpu(acting.draw_file, node, gpus[place.local_rank], draw)
