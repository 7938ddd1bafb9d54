"""A repair of snakemake-executor-plugin-slurm 2.8.0, for outages of Slurm's controller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any


def keep_jobs_through_outages() -> None:
    """Make the executor ask again where Slurm did not answer, for as long as it takes.

    By itself it drops all jobs of a round in which no query was answered, as while slurmctld restarts, and
    waits for them for ever (`check_active_jobs` yields nothing where `status_of_jobs` is None). In such a
    round it also takes the unknown MinJobAge for too short, and asks sacct, which may know nothing.
    """
    import snakemake_executor_plugin_slurm as plugin

    check, ask_min_job_age = plugin.Executor.check_active_jobs, plugin.get_min_job_age
    known_s: int | None = None

    def last_known_min_job_age() -> int | None:
        nonlocal known_s
        now_s = ask_min_job_age()
        known_s = known_s if now_s is None else now_s
        return known_s

    async def check_and_keep(executor: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        # The first round may begin before the executor has this counter; it has no jobs then.
        answers = executor._status_query_calls if active_jobs else 0
        async for job in check(executor, active_jobs):
            yield job
        if active_jobs and executor._status_query_calls == answers:
            executor.logger.warning("Slurm gave no answer; its jobs go on, and it is asked again.")
            for job in active_jobs:
                yield job

    plugin.get_min_job_age = last_known_min_job_age
    plugin.Executor.check_active_jobs = check_and_keep
    # Ask once now, while Slurm answers.
    last_known_min_job_age()
