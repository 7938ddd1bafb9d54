"""A made-up folder of the kernel's power domains, as /sys/class/powercap: files that tests write into."""

from __future__ import annotations

from pathlib import Path

#: Where a counter of Intel's wraps around, in microjoules.
RANGE_UJ = 262_143_328_850


def add_domain(root: Path, zone: str, name: str, energy_j: float = 0.0, range_uj: int = RANGE_UJ) -> Path:
    """Add a domain such as `intel-rapl:0`; returns its folder."""
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    set_energy(folder, energy_j)
    return folder


def set_energy(folder: Path, energy_j: float) -> None:
    """Let a domain's counter stand at so many joules; in place, as whoever has it open must see it.

    Of one length, and never cut to nothing first: a meter that reads meanwhile sees no half of it.
    """
    path = folder / "energy_uj"
    path.touch()
    with path.open("r+b", buffering=0) as stream:
        stream.write(f"{round(energy_j * 1e6):015d}\n".encode())
