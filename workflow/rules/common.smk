import atexit
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
from shardwatt.leftovers import cancel_and_wait, check_none_since
from shardwatt.models import MADE_FROM_FILE
from shardwatt.resources import agreed_gpu_hours, resource_names
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
    # The site's, or one for this run: --config max_gpu_hours=N
    GPU_HOURS = agreed_gpu_hours(config.get("max_gpu_hours"))
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


def recipe_of_model(wildcards):
    """A model's recipe: what it says counts, and not when it was touched.

    The folder of models may be another project's too, whose cells run meanwhile.
    """
    recipe = ask(PLANNER.recipe, wildcards.model)
    made = ask(PLANNER.is_made, wildcards.model, wildcards.shards)
    if made is None:
        return recipe
    if not made:
        workflow.dag.forcefiles.add(
            f"{SITE.models}/{wildcards.model}/shards-{wildcards.shards}/{MADE_FROM_FILE}"
        )
    return ancient(recipe)


def resources_of_cell():
    """What a cell's job asks for, by name: of Slurm all that the site says, of this machine nothing."""

    def asked(question, *words):
        return lambda wildcards, attempt: ask(
            question, wildcards.study, wildcards.cell, attempt, *words
        )

    if SITE.launcher != "slurm":
        return {}
    shown = {"job": asked(PLANNER.job_line)}
    names = resource_names(SITE)
    return shown | {name: asked(PLANNER.cell_resource, name) for name in names}


def cells_to_run():
    """Study and path of each cell that is about to run, or whose run a dry run has just shown."""
    jobs = workflow.dag.needrun_jobs(exclude_finished=False)
    return [
        (job.wildcards.study, job.wildcards.cell)
        for job in jobs
        if job.rule.name == "cell"
    ]


def check_start():
    """Before the first job: refuse what would run in the wrong place, or take more than is agreed."""
    cells = [] if workflow.touch else cells_to_run()
    if cells:
        ask(PLANNER.check_executor, workflow.local_exec)
    if SITE.launcher == "slurm":
        ask(PLANNER.budget(cells, GPU_HOURS).check)


def end_leftovers():
    """Before the first job: cancel left-over jobs of cells that are to run, if the site says so.

    A target that runs no cell, such as a plan, needs nothing to be known of other jobs.
    """
    if workflow.touch or not (cells := cells_to_run()):
        return
    if LEFTOVERS_PROBLEM is not None:
        logger.error(f"shardwatt: {LEFTOVERS_PROBLEM}")
        sys.exit(1)
    if SITE.launcher == "slurm":
        ask(check_none_since, PLANNER, LEFTOVERS)
    if SITE.leftover_jobs == "cancel":
        ask(cancel_and_wait, LEFTOVERS.of(cells))


@atexit.register
def show_budget():
    """Under the plan of a dry run, in which `onstart` is not called: what it predicts, and what is asked for."""
    if not workflow.dryrun or workflow.dag is None or not (cells := cells_to_run()):
        return
    budget = PLANNER.budget(cells, GPU_HOURS)
    if outlook := budget.outlook():
        print(outlook, file=sys.stderr)
    if SITE.launcher == "slurm":
        print(budget, file=sys.stderr)


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
