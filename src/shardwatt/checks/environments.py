"""The environments of the GPU types: run here as a rank runs them, and torch compared with the GPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardwatt.checks.findings import Finding, error, note, ok, warning
from shardwatt.errors import EXIT_CONFIGURATION
from shardwatt.run.srun import with_environment
from shardwatt.site import GpuType

#: Importing torch from a busy network file system takes minutes.
TIMEOUT_S = 300.0

_ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<major>[0-9]+)(?P<minor>[0-9])(?P<suffix>[af]?)")

#: First compute capability that torch's wheels for CUDA 12.8 and newer know (torch 2.11: Turing).
_NEW_WHEELS = (7, 5)

#: The Python that shardwatt needs.
_OLDEST_PYTHON = (3, 11)

#: Lines of a failed environment that are quoted.
_QUOTED_LINES = 3

#: What `with_environment` prints after a line of the site's that failed.
_FAILED_LINE = re.compile(r"environment line ([0-9]+) failed")


@dataclass(frozen=True, slots=True)
class Environment:
    """A GPU type's Python.

    Attributes:
        found: what `shardwatt.checks.probe` printed; None where it could not be run.
        problem: why not.
    """

    found: Mapping[str, Any] | None
    problem: str = ""


def probe(lines: Sequence[str], root: Path, environment: Mapping[str, str]) -> Environment:
    """Run a type's environment lines and ask the Python that they leave.

    Args:
        lines: shell, from the site file.
        root: the project's root.
        environment: variables beside this process's, as jobs have them.
    """
    with tempfile.TemporaryDirectory(prefix="shardwatt-") as folder:
        # Through /bin/sh, as a job comes: what only a login shell has is not there.
        words = with_environment(lines, Path(folder) / "lines.sh", ["-m", "shardwatt.checks.probe"])
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", 'exec "$@"', "sh", *words],
                cwd=root,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Environment(None, f"gave no answer in {TIMEOUT_S:g} s")
        except OSError as problem:
            return Environment(None, f"cannot be run: {words[0]}: {problem.strerror}")
    said = [line.replace(f"{folder}/", "").strip() for line in done.stderr.splitlines() if line.strip()]
    failed = [lines[int(match[1]) - 1] for line in said if (match := _FAILED_LINE.fullmatch(line))]
    other = [line for line in said if not _FAILED_LINE.fullmatch(line)]
    shown = "; ".join(other[-_QUOTED_LINES:]) or "nothing"
    if done.returncode == EXIT_CONFIGURATION and failed:
        return Environment(
            None,
            f"`{failed[0]}` failed, and no rank would start; it said: {shown}; write || true behind "
            "a line that may fail",
        )
    try:
        return Environment(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return Environment(None, f"ended with exit code {done.returncode} and said: {shown}")


def check_environment(kind: GpuType, environment: Environment, source: Path) -> Iterator[Finding]:
    """Whether ranks can run in a type's environment, on its GPUs.

    Args:
        kind: the GPU type.
        environment: what its Python said.
        source: the project's src, which ranks must import.
    """
    where = "environment" if kind.environment else "environment: none is given; this Python"
    if environment.found is None:
        yield error(f"{where}: {environment.problem}; on a node these lines may do more than here: see why")
        return
    found = environment.found
    if tuple(map(int, found["python"].split("."))) < _OLDEST_PYTHON:
        yield error(f"{where}: Python {found['python']} at {found['executable']}; expected 3.11 or newer")
        return
    missing = dict(found["missing"])
    if missing:
        listed = "; ".join(f"{name} ({why})" for name, why in missing.items())
        yield error(
            f"{where}: Python at {found['executable']} lacks {listed}; install the project there: "
            "make env, with TORCH_INDEX where torch is to be another"
        )
    own = source / "shardwatt" / "__init__.py"
    if found.get("shardwatt", str(own)) != str(own):
        yield error(
            f"{where}: ranks would import {found['shardwatt']}; expected {own}: leave PYTHONPATH as it is"
        )
    if "torch" not in found:
        return
    torch = found["torch"]
    built = f"torch {torch['version']}" + (f" for CUDA {torch['cuda']}" if torch["cuda"] else " without CUDA")
    if kind.kind == "cpu":
        if not missing:
            yield ok(f"{where}: {found['executable']}, {built}")
        return
    if not torch["cuda"] or not torch["architectures"]:
        yield error(
            f"{where}: {built}: no rank would see a GPU; install torch with another TORCH_INDEX than "
            "…/whl/cpu"
        )
    elif kind.compute_capability is None:
        yield warning(
            f"compute_capability: not given, so {built} is not compared with these GPUs; it was built for "
            f"{' '.join(torch['architectures'])}; see `nvidia-smi --query-gpu=compute_cap --format=csv` on a "
            "node"
        )
    else:
        yield _compared(where, built, torch["architectures"], kind.compute_capability)
    yield note(
        "the driver cannot be seen from here; a rank of a first small cell tells whether it is new enough"
    )


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether what a library was built for runs on a GPU.

    Machine code of sm_XY runs on the same major version and the same or a higher minor one; PTX of
    compute_XY is compiled by the driver for XY and anything later; a letter behind the number ties both to
    that architecture (a) or its family (f). Source: NVIDIA, CUDA C++ Programming Guide, "Binary
    Compatibility", "PTX Compatibility" and "Feature Availability"
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/).

    Args:
        architecture: one of torch's words, e.g. sm_90, compute_120, sm_90a.
        capability: of the GPU, e.g. (9, 0).
    """
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        return False
    built = int(match["major"]), int(match["minor"])
    if match["suffix"] == "a":
        return built == capability
    if match["kind"] == "compute" and not match["suffix"]:
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def _compared(where: str, built: str, architectures: Sequence[str], capability: str) -> Finding:
    major, minor = map(int, capability.split("."))
    running = [name for name in architectures if runs_on(name, (major, minor))]
    known = " ".join(architectures)
    if any(name.startswith("sm_") for name in running):
        return ok(f"{where}: {built} runs on compute capability {capability} (built for {known})")
    if running:
        return warning(
            f"{where}: {built} has no machine code for compute capability {capability}, only "
            f"{' '.join(running)}, which the driver compiles at every first start; install a newer torch"
        )
    instead = (
        "torch's wheels for CUDA 12.6 are the last for these GPUs: TORCH_INDEX=…/whl/cu126"
        if (major, minor) < _NEW_WHEELS
        else "install a newer torch, for a newer CUDA"
    )
    return error(
        f"{where}: {built} does not run on compute capability {capability}: it was built for {known}; "
        f"{instead}"
    )
