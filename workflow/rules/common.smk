import gc
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "src"))

from shardwatt.cell import PATH_PATTERN, STUDY_PATTERN
from shardwatt.dag import Planner, command_environment
from shardwatt.errors import ShardwattError
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# A DAG of thousands of jobs only grows: looking for garbage in it is a fifth of a dry run.
# Switched on again when the first job starts.
gc.disable()

# Rules call `python -m shardwatt`: it finds this project, this site, and this interpreter first.
os.environ.update(command_environment(ROOT, workflow.configfiles))

PLANNER = Planner(ROOT, Path.cwd(), workflow.configfiles)

try:
    SITE = PLANNER.site
    # Braces would be read as wildcards.
    MODELS, DATA = (
        str(p).replace("{", "{{").replace("}", "}}") for p in (SITE.models, SITE.data)
    )
    RECIPES, PINNED_FILES = PLANNER.recipes(), PLANNER.pinned_files()
except ShardwattError as problem:
    raise WorkflowError(str(problem)) from None


wildcard_constraints:
    study=STUDY_PATTERN,
    cell=PATH_PATTERN,
    figure=r"[a-z0-9._-]+",
    file="|".join(map(re.escape, PINNED_FILES)) or "-",
    model="|".join(map(re.escape, RECIPES)) or "-",
    shards=r"[1-9][0-9]*",


def ask(question, *words):
    """Ask the planner; a user's mistake becomes one message instead of a traceback."""
    try:
        return question(*words)
    except ShardwattError as problem:
        # An exception from an input function would be shown with a traceback.
        logger.error(f"shardwatt: {problem}")
        sys.exit(1)


def files_of_cell(wildcards):
    """What a cell reads: its model and its data set."""
    cell = wildcards.study, wildcards.cell
    # Touching a checkpoint of 130 GB reruns nothing; a changed one shows in `identity`.
    found = map(ancient, ask(PLANNER.found_inputs, *cell))
    return [*ask(PLANNER.made_inputs, *cell), *found]


def records_of_study(wildcards):
    """The study's records; makes sure that a missing one is noticed behind an existing summary."""
    summary = f"results/{wildcards.study}/cells.parquet"
    if ask(PLANNER.summary_is_stale, wildcards.study, summary):
        # What --forcerun does, for this file alone.
        workflow.dag.forcefiles.add(summary)
    return ask(PLANNER.targets, wildcards.study)


def build_partial_reports():
    """After a run in which cells failed: tables and figures from those that exist."""
    for study in sorted(PLANNER.studies_asked):
        subprocess.run(
            [sys.executable, "-m", "shardwatt", "report", "--partial", study]
        )
