"""What the pinned executor tells sbatch of a cell's job."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from snakemake_executor_plugin_slurm import ExecutorSettings
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from shardwatt.cell import Cell
from shardwatt.resources import cell_resources
from shardwatt.site import Site

ROOT = Path(__file__).parents[1]
PROFILE: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.v9+.yaml").read_text())


class _Resources(dict[str, Any]):
    """Resources of a job as the executor reads them: keys and attributes."""

    __getattr__ = dict.__getitem__


def sbatch_words(
    site: Site, cell: Cell, attempt: int = 1, failed_nodes: frozenset[str] = frozenset()
) -> list[str]:
    """What the executor appends to `sbatch … --comment …` for a cell's job, up to --wrap."""
    job = SimpleNamespace(threads=1, resources=_Resources(cell_resources(site, cell, attempt)))
    # As its getattr in validate_slurm_extra asks.
    validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(**job.resources)))
    partition = job.resources.get("slurm_partition")
    # As the executor writes an account that the job names.
    account = job.resources.get("slurm_account")
    params = {
        "run_uuid": "run",
        "slurm_logfile": "log",
        "comment_str": "comment",
        "account": f" -A {account}" if account else "",
        "partition": f" -p {partition}" if partition else "",
        "workdir": None,
    }
    settings = ExecutorSettings(
        requeue=PROFILE["slurm-requeue"],
        status_command=PROFILE["slurm-status-command"],
    )
    call = get_submit_command(job, params, settings=settings, failed_nodes=failed_nodes)
    words = shlex.split(call + set_gres_string(job))
    return words[words.index("comment") + 1 :]
