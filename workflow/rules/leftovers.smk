# Jobs of an earlier, killed run that still go on: waited for or cancelled, never doubled.

from shardwatt.executor import keep_jobs_through_outages
from shardwatt.leftovers import Leftovers, find_leftovers
from shardwatt.slurm import available

LEFTOVERS, LEFTOVERS_PROBLEM = Leftovers({}), None

if workflow.is_main_process and SITE.launcher == "slurm" and available():
    keep_jobs_through_outages()
    try:
        LEFTOVERS = find_leftovers(PLANNER)
    except ShardwattError as problem:
        # A dry run goes on without; a run would risk to submit a cell twice.
        LEFTOVERS_PROBLEM = str(problem)
        logger.warning(f"shardwatt: jobs of another run are not known: {problem}")

if LEFTOVERS.jobs:
    end = {
        "wait": "they are waited for",
        "cancel": "those of cells that are to run are cancelled first",
    }
    logger.info(f"shardwatt: {LEFTOVERS}; {end[SITE.leftover_jobs]}")

if LEFTOVERS.jobs and SITE.leftover_jobs == "wait":
    # Few wait at a time: the executor of local rules has few places. The order does not matter.
    workflow.global_resources["waiting"] = 3

    ruleorder: wait_for_cell > cell

    # Inputs and params are those of rule cell: they decide whether its files are outdated.
    rule wait_for_cell:
        input:
            files_of_cell,
        output:
            # Flagged, Snakemake does not remove them: it is the job that makes them.
            update("results/{study}/cells/{cell}/result.json"),
            update("results/{study}/cells/{cell}/responses.parquet"),
            update("results/{study}/cells/{cell}/batches.parquet"),
            update("results/{study}/cells/{cell}/power.parquet"),
        log:
            "logs/{study}/cells/{cell}/wait.log",
        wildcard_constraints:
            study=LEFTOVERS.study_pattern,
        retries: 0
        localrule: True
        conda:
            "../envs/shardwatt.yaml"
        resources:
            waiting=1,
            leftover=lambda wildcards: LEFTOVERS.numbers(
                wildcards.study, wildcards.cell
            ),
        params:
            identity=lambda wildcards: ask(
                PLANNER.cell_identity, wildcards.study, wildcards.cell
            ),
        message:
            "{wildcards.study}: waits for Slurm job {resources.leftover} of another run\n    {wildcards.cell}"
        shell:
            "python -m shardwatt wait-for-job {wildcards.study:q} {wildcards.cell:q}"
            " --jobs {resources.leftover} 2> {log}"
