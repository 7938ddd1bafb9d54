"""Simulated NVIDIA GPUs: builds the C library of tests/nvml, and makes the environment that describes them.

What can be set is listed at the head of tests/nvml/simulated_nvml.c.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

SOURCES = sorted((Path(__file__).parent / "nvml").glob("*.c"))
LIBRARY = "libnvidia-ml.so.1"


def build(folder: Path, *flags: str) -> Path:
    """Build the library into a new folder, and return that: it belongs first on LD_LIBRARY_PATH.

    Args:
        flags: for the compiler, e.g. `-DWITHOUT_COUNTER`.

    Raises:
        FileNotFoundError: there is no gcc.
    """
    folder.mkdir(parents=True)
    words = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([*words, f"-Wl,-soname,{LIBRARY}", "-o", folder / LIBRARY, *SOURCES, "-lm"], check=True)
    return folder


def settings(library: Path, **values: object) -> dict[str, str]:
    """The variables under which a process finds the library, and GPUs as described.

    Args:
        library: what `build` returned.
        values: settings without their `SIMULATED_NVML_`, e.g. `POWER="100;250"`.
    """
    path = os.pathsep.join(filter(None, [str(library), os.environ.get("LD_LIBRARY_PATH")]))
    return {"LD_LIBRARY_PATH": path} | {
        f"SIMULATED_NVML_{name}": str(value) for name, value in values.items()
    }


def environment(library: Path, **values: object) -> dict[str, str]:
    """This process's environment with `settings` in it."""
    return {**os.environ, **settings(library, **values)}


def begin(origin: Path, in_s: float = 0.2) -> float:
    """Let the programmes begin of GPUs whose ORIGIN is this file; returns when: CLOCK_MONOTONIC in s."""
    begin_s = time.monotonic() + in_s
    written = origin.with_name(f"{origin.name}.written")
    written.write_text(f"{begin_s:.6f}")
    written.rename(origin)
    return begin_s
