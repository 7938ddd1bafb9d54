"""The ranks of an allocation: started for the first cell, kept with the model loaded for the next ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shardwatt.recordfiles import write
from shardwatt.run.exchange import JOB_FILE, JobSpec, NextCell, next_file
from shardwatt.run.job import Job
from shardwatt.run.launch import RankGroup, launch_local
from shardwatt.run.meters import sampler_program
from shardwatt.run.nodehelpers import helper_words
from shardwatt.run.srun import launch_slurm
from shardwatt.run.workfolder import WorkFolder


class Crew:
    """Starts ranks when there are none, and ends them when it is left.

    Args:
        begin: parent and begin of the name of the folder that all ranks share.
    """

    def __init__(self, begin: Path) -> None:
        self._begin = begin
        self._folder: WorkFolder | None = None
        self._group: RankGroup | None = None
        self._number = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            self.end()
        finally:
            if self._folder is not None:
                self._folder.remove()

    @property
    def is_loaded(self) -> bool:
        """Whether ranks of an earlier cell are there."""
        return self._group is not None

    def start(self, job: Job, work: Path, spec: JobSpec, log: Path) -> RankGroup:
        """Give the ranks a cell; starts them if there are none.

        Args:
            job: the cell.
            work: its work folder.
            spec: what the ranks are told.
            log: where srun's words go.

        Raises:
            CellFailure: CONFIGURATION, the launcher is not there.
            OSError: the results cannot be written.
        """
        write(spec, work / JOB_FILE)
        if self._folder is None:
            self._folder = WorkFolder(self._begin)
        folder = self._folder.path
        if self._group is None:
            # Numbers of earlier ranks mean nothing to new ones, nor does where they met.
            self._folder.empty()
            self._number = 0
        write(NextCell(work=work.absolute()), next_file(folder, self._number))
        self._number += 1
        if self._group is None:
            self._group = self._launch(job, folder, log)
        return self._group

    def end(self) -> None:
        """End the ranks, if there are any."""
        if self._group is not None:
            group, self._group = self._group, None
            group.end()

    def _launch(self, job: Job, folder: Path, log: Path) -> RankGroup:
        # Read by torch when it is imported, before it starts its pools.
        os.environ["OMP_NUM_THREADS"] = str(job.threads_per_rank)
        if job.site.launcher == "local":
            return launch_local(folder, ranks=job.shape.ranks)
        return launch_slurm(
            folder,
            shape=job.shape,
            cpus_per_rank=job.site.words(job.cell.gpu).cpus_per_rank,
            lines=job.gpu_type.environment,
            log=log,
        )


def sampler_words(job: Job, work: Path) -> Sequence[str]:
    """What starts the samplers of a cell's nodes, each writing into its work folder."""
    replay = job.simulation.replay(job.cell.gpu) if job.simulation else None
    program = sampler_program(work.absolute(), job.gpu_type, job.shape.ranks_per_node, replay)
    return helper_words(job.site, job.cell.gpu, job.shape, work / "sampler.sh", program)
