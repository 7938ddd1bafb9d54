"""Power limits of a site against Slurm: who sets back what a killed job has left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from shardwatt.checks.findings import Finding, ok, warning
from shardwatt.sitepower import PowerLimits

#: Folders that jobs may have of their own, gone with them.
_PRIVATE = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - nothing is written there


def check_caps(settings: Mapping[str, str], power_limits: PowerLimits) -> Iterator[Finding]:
    """What Slurm does before and after a job, against what the site's way of setting limits needs.

    Args:
        settings: of the controller, by name.
        power_limits: the site's.
    """
    set_by = power_limits.set_by
    yield ok(f"power_limits: set_by: {set_by}")
    if set_by == "prolog" and not _names(settings, "Prolog"):
        yield warning(
            "Slurm has no Prolog=, and power_limits are set by one: every cell with a cap will be refused; "
            "install comment-prolog.sh, see docs/power-caps.md"
        )
    if not _names(settings, "Epilog"):
        script = "comment-epilog.sh" if set_by == "prolog" else "leases-epilog.sh"
        left = (
            "no job's limits are set back"
            if set_by == "prolog"
            else "what a killed job leaves on GPUs stays until its user's next cell there"
        )
        yield warning(f"Slurm has no Epilog=: {left}; install {script}, see docs/power-caps.md")
    container = settings.get("JobContainerType", "")
    if (
        set_by != "prolog"
        and container not in ("", "none", "job_container/none")
        and any(power_limits.leases.is_relative_to(folder) for folder in _PRIVATE)
    ):
        yield warning(
            f"JobContainerType is {container}: jobs may have {power_limits.leases.parent} to themselves, and "
            "leases there vanish with their job; let power_limits.leases be e.g. "
            "/var/lib/shardwatt/power-limits, see docs/power-caps.md"
        )


def _names(settings: Mapping[str, str], program: str) -> bool:
    """Whether Slurm runs such a program; newer ones number them: Epilog[0]."""
    return any(value and name.partition("[")[0] == program for name, value in settings.items())
