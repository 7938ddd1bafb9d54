"""How DCGM lays out what it prints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dcgm.memory import Sample

_NAME, _CELL = 35, 39
_EDGE = f"+{'-' * 36}+{'-' * 41}+"


def cut(text: str, width: int) -> str:
    """A cell; what is too long ends with dots."""
    return text.ljust(width) if len(text) <= width else f"{text[: width - 3]}..."


def row(name: str, cell: object) -> str:
    return f"| {cut(name, _NAME)}| {cut(str(cell), _CELL)} |"


def section(name: str, first: bool = False) -> str:
    title = f"-----  {name}  ".ljust(36, "-")
    edge = "|" if first else "+"
    return f"{edge}{title}+{'-' * 41}{edge}"


def number(value: float) -> str:
    """As a C++ stream prints it: six digits."""
    return f"{value:g}"


def spread(values: Sequence[float]) -> str:
    if not values:
        return "Avg: N/A, Max: N/A, Min: N/A"
    mean = sum(values) / len(values)
    if all(isinstance(value, int) for value in values):
        mean = int(mean)
    return f"Avg: {number(mean)}, Max: {number(max(values))}, Min: {number(min(values))}"


def clock(at_s: float | None, wall_s: float) -> str:
    return time.ctime(at_s + wall_s) if at_s is not None else "Still Running"


def job_block(title: str, job: Mapping[str, Any], samples: Sequence[Sample], is_sliced: bool) -> list[str]:
    """The statistics of one GPU over a job: `samples` are those that fell into its time."""
    start_s, stop_s = job["start_s"], job["stop_s"]
    if is_sliced or not samples:
        energy: object = "Not Specified"
    else:
        energy = (samples[-1].counter_mj - samples[0].counter_mj) // 1000
    seen = [] if is_sliced else samples
    duration = "Still Running" if stop_s is None else number(int((stop_s - start_s) * 100) / 100)
    return [
        f"+{'-' * 78}+",
        f"| {cut(title, 76)} |",
        f"+{'=' * 36}+{'=' * 41}+",
        section("Execution Stats", first=True),
        row("Start Time", clock(start_s, job["wall_s"])),
        row("End Time", clock(stop_s, job["wall_s"])),
        row("Total Execution Time (sec)", duration),
        row("No. of Processes", 0),
        section("Performance Stats"),
        row("Energy Consumed (Joules)", energy),
        row("Power Usage (Watts)", spread([sample.power_w for sample in seen])),
        row("Max GPU Memory Used (bytes)", max((sample.memory_bytes for sample in seen), default=0)),
        row("SM Clock (MHz)", spread([1410 for _ in seen])),
        row("Memory Clock (MHz)", spread([1593 for _ in seen])),
        row("SM Utilization (%)", spread([sample.sm_percent for sample in seen])),
        row("Memory Utilization (%)", spread([sample.memory_percent for sample in seen])),
        row("PCIe Rx Bandwidth (megabytes)", spread([])),
        row("PCIe Tx Bandwidth (megabytes)", spread([])),
        section("Event Stats"),
        row("Single Bit ECC Errors", 0),
        row("Double Bit ECC Errors", 0),
        row("PCIe Replay Warnings", 0),
        row("Critical XID Errors", 0),
        section("Slowdown Stats"),
        row("Due to - Power (%)", "Not Supported" if is_sliced else 0),
        row("       - Thermal (%)", "Not Supported" if is_sliced else 0),
        row("       - Reliability (%)", "Not Supported"),
        row("       - Board Limit (%)", "Not Supported"),
        row("       - Low Utilization (%)", "Not Supported"),
        row("       - Sync Boost (%)", "Not Specified" if is_sliced else 0),
        section("Overall Health"),
        row("Overall Health", "Healthy"),
        _EDGE,
    ]


def discovery(gpus: Mapping[int, tuple[str, str]]) -> list[str]:
    """The list of GPUs (name and UUID by id), and of what else there is."""
    edge = f"+{'-' * 8}+{'-' * 70}+"

    def line(left: str, right: str) -> str:
        return f"| {left.ljust(6)} | {right.ljust(68)} |"

    lines = [
        f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'} found.",
        edge,
        line("GPU ID", "Device Information"),
        edge,
    ]
    for gpu, (name, uuid) in gpus.items():
        lines += [
            line(str(gpu), f"Name: {name}"),
            line("", f"PCI Bus ID: 00000000:{0x10 + gpu:02X}:00.0"),
            line("", f"Device UUID: {uuid}"),
            edge,
        ]
    return lines


def switches() -> list[str]:
    edge = f"+{'-' * 11}+"
    return ["0 NvSwitches found.", edge, "| Switch ID |", edge, edge]


def group_list(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    edge = f"+{'-' * 19}+{'-' * 58}+"

    def line(left: str, right: str = "") -> str:
        return f"| {left.ljust(17)} | {right.ljust(56)} |"

    lines = [
        edge,
        f"| {'GROUPS'.ljust(76)} |",
        f"| {f'{len(groups)} groups found.'.ljust(76)} |",
        edge.replace("-", "="),
        line("Groups"),
    ]
    for number_, group in groups.items():
        entities = ", ".join(f"GPU {gpu}" for gpu in group["gpus"]) or "None"
        lines += [
            line(f"-> {number_}"),
            line("   -> Group ID", number_),
            line("   -> Group Name", group["name"]),
            line("   -> Entities", entities),
        ]
    return [*lines, edge]


def stream_header(columns: Sequence[str]) -> list[str]:
    return ["#Entity   " + "".join(name.ljust(13) for name in columns), "ID" + " " * (8 + 13 * len(columns))]
