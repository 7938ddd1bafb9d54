"""What one cell is to do, worked out and checked before any rank starts."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardwatt.architectures import Architecture, ArchitectureError
from shardwatt.cell import Cell
from shardwatt.data.fetch import verify
from shardwatt.data.prompts import load_prompts, sample_prompts
from shardwatt.data.tokenizer import Tokenizer, check_lengths, open_tokenizer
from shardwatt.datasets import load_catalogue
from shardwatt.devices import VISIBLE
from shardwatt.engines import ENGINES
from shardwatt.errors import CellFailure, Reason, ShardwattError, StudyError
from shardwatt.jobshape import JobShape, job_shape
from shardwatt.matrix import expand
from shardwatt.models import Checkpoint, declared_eos_ids, find_checkpoint, fingerprint, read_architecture
from shardwatt.records import CellRecord, Inputs
from shardwatt.run.batches import plan_batches
from shardwatt.run.exchange import BatchPlan, JobSpec
from shardwatt.run.provenance import git_state
from shardwatt.run.simulation import Simulation, simulate
from shardwatt.site import GpuType, Site
from shardwatt.study import Constants, Study


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of one study at one site, with everything found that it needs.

    Attributes:
        root: the project's root, where config/ lies.
        study: the study's name.
        cell: the cell.
        constants: the study's constants.
        site: where it runs.
        shape: nodes and ranks on each.
        checkpoint: the model's files; None where none are read, in a simulated cell.
        architecture: the model's shape.
        tokenizer: the model's tokenizer; None likewise.
        eos_ids: ids that end a response.
        inputs: identity of model, data set and prompts.
        batches: the prompts, tokenised.
        longest_prompt: tokens of the data set's longest prompt, which the plan goes by; None where that is
            not known.
        threads_per_rank: CPU threads of each rank.
        commit: the project's git commit and whether files differ from it, when the attempt began.
        measured_only: whether the study refuses energy that is not measured.
        simulation: what is simulated; None where the model runs.
    """

    root: Path
    study: str
    cell: Cell
    constants: Constants
    site: Site
    shape: JobShape
    checkpoint: Checkpoint | None
    architecture: Architecture
    tokenizer: Tokenizer | None
    eos_ids: frozenset[int]
    inputs: Inputs
    batches: list[BatchPlan]
    longest_prompt: int | None
    threads_per_rank: int
    commit: tuple[str | None, bool | None]
    measured_only: bool = False
    simulation: Simulation | None = None

    @property
    def gpu_type(self) -> GpuType:
        return self.site.gpus[self.cell.gpu]

    @property
    def prompts(self) -> int:
        return sum(len(batch.prompts) for batch in self.batches)

    def spec(
        self,
        *,
        job_id: str,
        log_folder: Path,
        launched_at_s: float,
        idle: tuple[float, float] | None = None,
        gated: bool = False,
        more: bool = False,
    ) -> JobSpec:
        """What the ranks are told."""
        return JobSpec(
            job_id=job_id,
            cell=CellRecord.of(self.cell),
            constants=self.constants,
            architecture=self.architecture,
            checkpoint=self.checkpoint,
            vocab_size=self.tokenizer.vocab_size if self.tokenizer else self.architecture.vocab_size,
            eos_ids=self.eos_ids,
            gpu_type=self.gpu_type,
            threads_per_rank=self.threads_per_rank,
            nodes=self.shape.nodes,
            ranks_per_node=self.shape.ranks_per_node,
            network_interface=self.site.network_interface,
            staging=self.site.staging,
            start_timeout_s=self.site.start_timeout_s,
            collective_timeout_s=self.site.collective_timeout_s,
            supervisor_pid=os.getpid(),
            supervisor_node=platform.node(),
            launched_at_s=launched_at_s,
            log_folder=log_folder.absolute(),
            batches=[] if self.simulation else self.batches,
            acting=self.simulation.acting() if self.simulation else None,
            visible_devices=os.environ.get(VISIBLE),
            idle=idle,
            gated=gated,
            more=more,
        )


def find_cell(root: Path, name: str, study: Study, site: Site, cell: Cell) -> None:
    """Make sure that a cell belongs to a study.

    Raises:
        StudyError: it does not.
    """
    if cell not in set(expand(root, name, study, site)):
        raise StudyError(
            f"study '{name}' has no cell {cell.path}; `shardwatt cells {name}` lists those that it has"
        )


def plan_job(root: Path, name: str, study: Study, site: Site, cell: Cell) -> Job:
    """Find and check everything that a cell needs; loads no weights.

    Raises:
        CellFailure: the reason names what is wrong: configuration, bad_checkpoint, bad_tokenizer,
            bad_data or prompt_too_long.
    """
    try:
        find_cell(root, name, study, site, cell)
        shape = job_shape(site, cell.gpu, cell.shards)
        if ENGINES[cell.engine].simulates is not None:
            return _simulated(root, name, study, site, cell, shape)
        checkpoint = find_checkpoint(root, site.models, cell.model, cell.shards)
    except CellFailure:
        raise
    except ShardwattError as problem:
        raise CellFailure(Reason.CONFIGURATION, str(problem)) from None
    try:
        tokenizer = open_tokenizer(checkpoint.tokenizer)
        architecture = read_architecture(checkpoint, tokenizer.vocab_size)
        tokenizer.expect_vocabulary(architecture.vocab_size, checkpoint.layout)
        eos_ids = declared_eos_ids(checkpoint, architecture.vocab_size) or tokenizer.eos_ids
        model_fingerprint = fingerprint(root, checkpoint, cell.model)
    except CellFailure:
        raise
    except (ArchitectureError, ShardwattError) as problem:
        raise CellFailure(Reason.BAD_CHECKPOINT, str(problem)) from None
    dataset = load_catalogue(root).dataset(cell.dataset)
    path = dataset.path(root, site.data)
    try:
        prompts = sample_prompts(load_prompts(cell.dataset, dataset, path), study.prompts, study.seed)
    except CellFailure:
        raise
    except ShardwattError as problem:
        raise CellFailure(Reason.BAD_DATA, str(problem)) from None
    ids = [prompt.id for prompt in prompts]
    tokens = [tokenizer.encode(prompt.text) for prompt in prompts]
    limit = min(architecture.context, study.cache_tokens or architecture.context)
    check_lengths(tokens, limit)
    return Job(
        root=root,
        study=name,
        cell=cell,
        constants=study.constants,
        site=site,
        shape=shape,
        checkpoint=checkpoint,
        architecture=architecture,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        inputs=Inputs(
            model_fingerprint=model_fingerprint,
            dataset_sha256=verify(dataset, path),
            prompt_ids_sha256=hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        ),
        batches=plan_batches(ids, tokens, cell, architecture.context, study.cache_tokens),
        longest_prompt=dataset.longest_prompt,
        threads_per_rank=_threads(site, cell.gpu, shape),
        commit=git_state(root),
        measured_only=study.energy == "measured",
    )


def _simulated(root: Path, name: str, study: Study, site: Site, cell: Cell, shape: JobShape) -> Job:
    """A cell that runs no model, and so needs none, nor its tokenizer, nor prompts.

    Raises:
        CellFailure: CONFIGURATION, the plan knows too little of it.
        ShardwattError: the data set, or the shape of the model, has a mistake.
    """
    simulation = simulate(root, name, study, site, cell, shape)
    return Job(
        root=root,
        study=name,
        cell=cell,
        constants=study.constants,
        site=site,
        shape=shape,
        checkpoint=None,
        architecture=simulation.architecture,
        tokenizer=None,
        eos_ids=frozenset(),
        inputs=simulation.inputs,
        batches=simulation.batches,
        longest_prompt=load_catalogue(root).dataset(cell.dataset).longest_prompt,
        threads_per_rank=1,
        commit=git_state(root),
        simulation=simulation,
    )


def _threads(site: Site, gpu: str, shape: JobShape) -> int:
    if site.threads_per_rank is not None:
        return site.threads_per_rank
    if site.launcher == "slurm":
        return site.words(gpu).cpus_per_rank or 1
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    usable = min(cores, len(os.sched_getaffinity(0)))
    return max(1, usable // shape.ranks_per_node)
