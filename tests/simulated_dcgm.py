"""Puts the stand-in for `dcgmi` (tests/dcgm) where a test's programs find it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent


def install(folder: Path) -> Path:
    """Write the program `dcgmi` into a folder, for PATH or the site's dcgm.command; returns the program."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "dcgmi"
    program.write_text(f"#!/bin/sh\nPYTHONPATH='{_TESTS}' exec '{sys.executable}' -m dcgm \"$@\"\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return program


def settings(state: Path, **values: object) -> dict[str, str]:
    """The variables under which it runs, beside those of the simulated GPUs.

    Args:
        state: folder of the host engine's memory.
        values: settings without their `SIMULATED_DCGM_`, as tests/dcgm/__init__.py lists them.
    """
    known = {"STATE": state, "OWNER": os.getpid()} | values
    return {f"SIMULATED_DCGM_{name}": str(value) for name, value in known.items()}


def set_faults(state: Path, *words: str, host: str | None = None) -> None:
    """What fails from now on, on a host (this one if none is named); see FAULTS in tests/dcgm/__main__.py."""
    _tell(_folder(state, host), "faults", " ".join(words))


def set_activity(state: Path, shares: str, host: str | None = None) -> None:
    """What the profiling fields are from now on: SMACT:TENSO:DRAMA a GPU, separated by ';'."""
    _tell(_folder(state, host), "activity", shares)


def _tell(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{name}.written"
    written.write_text(text)
    written.rename(folder / name)


def _folder(state: Path, host: str | None) -> Path:
    return state / (host or socket.gethostname())


def memory(state: Path, host: str | None = None) -> Mapping[str, Any]:
    """What the host engine remembers: `groups`, `jobs` and `watches`, by id."""
    path = _folder(state, host) / "memory.json"
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def sample_times_s(state: Path, gpu: int, host: str | None = None) -> list[float]:
    """When the host engine took samples of a GPU (by DCGM's id): CLOCK_MONOTONIC in s."""
    path = _folder(state, host) / f"samples-{gpu}.txt"
    if not path.exists():
        return []
    return [
        float(line.split()[0]) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]


def streamed(state: Path, host: str | None = None) -> list[str] | None:
    """The profiling fields of each set of lines that was streamed so far; None: no stream has begun."""
    path = _folder(state, host) / "streamed"
    return path.read_text().splitlines() if path.exists() else None


def stop(state: Path, host: str | None = None) -> None:
    """End the host engine's process, if it runs."""
    path = _folder(state, host) / "engine.pid"
    if path.exists():
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGTERM)
