"""Where a record comes from: commit, versions, hosts."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

#: Distributions whose versions stand in every record.
_DISTRIBUTIONS = (
    "shardwatt",
    "torch",
    "fairscale",
    "sentencepiece",
    "nvidia-ml-py",
    "submitit",
    "snakemake",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of what a cell runs on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The project's commit, and whether tracked files differ from it; (None, None) outside a checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *words: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
