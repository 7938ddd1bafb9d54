"""What Linux tells a process of its own memory and reads."""

from __future__ import annotations

from pathlib import Path


def of_process(file: str, key: str) -> int:
    """A number of this process: `VmRSS` or `VmHWM` of `status`, in kiB, or `rchar` of `io`, in bytes."""
    lines = Path(f"/proc/self/{file}").read_text(encoding="ascii", errors="replace").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0])


def forget_peak() -> None:
    """Begin `VmHWM` anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): 5 resets VmHWM
