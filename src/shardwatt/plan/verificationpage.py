"""The checks of the plan's models as the tables of docs/plan.md.

`python -m shardwatt.plan.verificationpage docs/plan.md` writes them there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from shardwatt.datasets import TokenLengths
from shardwatt.plan.device import DEFAULT_FACTORS
from shardwatt.plan.positions import most_positions, table_2_positions
from shardwatt.plan.power import ON_CHIP_J_PER_BYTE
from shardwatt.plan.published import (
    A100,
    BATCHES,
    USUAL_CAP_W,
    V100,
    Published,
    Quantity,
    implied_power_ratio,
    published,
)
from shardwatt.plan.reckoning import CACHE_TOKENS, SITE, TOGETHER, Run, predict, site_of
from shardwatt.plan.verification import (
    PAPER_DATASETS,
    TABLE_3_READINGS,
    CheckRow,
    Reckon,
    lengths_of,
    predictor,
    verification,
)
from shardwatt.schemas import with_generated
from shardwatt.units import rounded

#: What quantities are called in tables, with their unit.
_NAMES: dict[Quantity, tuple[str, str]] = {
    "fewest_gpus": ("fewest GPUs", ""),
    "largest_batch": ("largest batch", ""),
    "duration_change_percent": ("time against 250 W", "%"),
    "energy_change_percent": ("energy against 250 W", "%"),
    "token_rate_change_percent": ("token rate against 250 W", "%"),
    "memory_activity_percent": ("time in which memory is busy", "%"),
    "memory_activity_max_percent": ("time in which memory is busy", "%"),
    "sm_utilisation_percent": ("time in which a kernel runs", "%"),
    "power_w": ("power of all GPUs", "W"),
    "energy_per_token_j": ("energy per output token", "J"),
    "throughput_ratio": ("output tokens/s, A100 over V100", ""),
    "energy_per_token_ratio": ("energy per output token, over 8 shards", ""),
    "most_efficient_shards": ("shards with the least energy per token", ""),
    "step_s": ("decode step", "s"),
}

#: Quantities that are whole numbers.
_COUNTS: tuple[Quantity, ...] = ("fewest_gpus", "largest_batch", "most_efficient_shards")


def markdown(root: Path) -> str:
    """All checks as tables, a section each, and what follows for T.

    Raises:
        CatalogueError: the data sets cannot be read.
    """
    rows = verification(root)
    parts: list[str] = []
    for section in dict.fromkeys(row.section for row in rows):
        of_section = [row for row in rows if row.section == section]
        parts += [f"### {section}", _positions_of(section), *_section(of_section)]
        if section == "Table III":
            parts.append(_anomaly(rows))
    parts += ["### Where the watts go", _watts(predictor(root)), "### Positions that fit", _positions()]
    lengths = lengths_of(root)
    parts += ["### What the assumptions weigh", _weights(lengths), _weights_of_network(lengths)]
    return "\n\n".join(parts)


def _section(rows: list[CheckRow]) -> Iterator[str]:
    for on in dict.fromkeys(row.on for row in rows):
        if on:
            yield f"With {on}:"
        heads = ["run", "quantity", "published", "predicted", "deviation", "bound", "role", "from"]
        of_reading = [row for row in rows if row.on == on]
        lines = [_cells(row) for row in of_reading]
        if any(row.planned is not None for row in of_reading):
            heads.insert(4, "predicted, T = prompt + length")
            for row, line in zip(of_reading, lines, strict=True):
                line.insert(4, "" if row.planned is None else _number(row.published.quantity, row.planned))
        yield _table(heads, lines)


def _positions_of(section: str) -> str:
    """Which T a section's predictions are of."""
    if section == "Table II":
        least, most = table_2_positions()
        return (
            f"T = {CACHE_TOKENS}. The ten rows with a bound come out for every T from {least} to {most}, and "
            "for no other."
        )
    if section == "Measurements of others":
        return "T = prompt + length of each row, as a plan has it."
    if section == "Table III":
        return f"T = {CACHE_TOKENS}."
    both = (
        f"T = {CACHE_TOKENS}, in the deviations too; beside it T = longest prompt + length, "
        "as a study without `cache_tokens` has it."
    )
    if section == "Tables IV and V":
        return (
            f"{both} Predicted are means over the window. Of memory Table IV prints a **maximum**, so that "
            "its mean may be well below; Table V does not say which of the two it prints."
        )
    return both


def _cells(row: CheckRow) -> list[str]:
    one, (name, unit) = row.published, _NAMES[row.published.quantity]
    points = " points" if unit == "%" else " %" if row.is_relative else ""
    met = {None: "", True: " met", False: " **missed**"}[row.is_met]
    return [
        _of(one),
        f"{name} ({unit})" if unit else name,
        _range(one),
        _number(one.quantity, row.predicted),
        f"{_signed(row.deviation)}{points}",
        "" if row.bound is None else f"{row.bound:g}{met}",
        row.role,
        row.driver,
    ]


def _of(one: Published) -> str:
    """A run in words; what all runs of a table share is left out."""
    is_paper = one.dataset != "chat"
    parts = [one.model.removeprefix("llama-").upper()]
    if one.quantity != "throughput_ratio":
        gpu = one.gpu.split("-")[0].upper()
        parts.append(f"{one.shards} {gpu}" if one.shards else gpu)
    parts += [f"batch {one.batch}"] if one.batch and one.quantity != "throughput_ratio" else []
    parts += [f"length {one.length}"] if is_paper and one.where != "Table II" else []
    parts += [f"{one.cap_w} W"] if is_paper and one.cap_w != USUAL_CAP_W else []
    return ", ".join(parts)


def _number(quantity: Quantity, value: float) -> str:
    """A predicted value with as many digits as it is worth."""
    if quantity in _COUNTS:
        return f"{value:.0f}"
    return f"{value:.1f}" if quantity.endswith("_percent") else rounded(value)


def _signed(value: float) -> str:
    near = round(value, 1)
    return f"{near:+.0f}" if near % 1 == 0 and near else f"{near:+.1f}" if near else "0"


def _range(one: Published) -> str:
    """What is published, as it is printed; a maximum is called one."""
    if one.high == float("inf"):
        return f"above {one.low:g}"
    if one.quantity == "memory_activity_max_percent":
        return f"{one.value:g} (maximum)"
    return f"{one.low:g} to {one.high:g}" if one.is_range else f"{one.value:g}"


def _anomaly(rows: list[CheckRow]) -> str:
    """Power under a cap over that at 250 W: what the published rows imply, and what is predicted."""
    lines = []
    for length in (256, 512, 1024):
        for cap_w in (175, 150):
            predicted = []
            for on in TABLE_3_READINGS:
                change = {
                    row.published.quantity: 1 + row.predicted / 100
                    for row in rows
                    if row.on == on and (row.published.length, row.published.cap_w) == (length, cap_w)
                }
                predicted.append(change["energy_change_percent"] / change["duration_change_percent"])
            implied = implied_power_ratio(cap_w, length)
            ratios = [implied, *predicted, cap_w / USUAL_CAP_W]
            lines.append([f"{length}", f"{cap_w} W", *(f"{ratio:.3f}" for ratio in ratios)])
    heads = ["length", "cap", "implied by the rows", *TABLE_3_READINGS, "cap / 250 W"]
    return f"Mean power under a cap over that at 250 W:\n\n{_table(heads, lines)}"


def _watts(reckoned: Reckon) -> str:
    """Predicted power of one GPU by what takes it, of runs that the checks are about."""
    runs = [Run("llama-65b", V100, shards, 64, 256, PAPER_DATASETS, USUAL_CAP_W) for shards in (8, 16, 32)]
    capped = [Run("llama-65b", A100, 4, 64, 256, ("gsm8k",), cap_w) for cap_w in (250, 175, 150)]
    runs += [changes(run, reckoned) for changes in TABLE_3_READINGS.values() for run in capped]
    lines = []
    for run in runs:
        found = reckoned(run)
        on = " on NVLink" if run.gpu == TOGETHER else ", bursts capped" if run.cap_on == "bursts" else ""
        on += ", calibrated" if run.power != 1 else ""
        watts = found.parts
        lines.append(
            [
                f"{run.shards} {run.gpu.split('-')[0].upper()}{on}, {run.cap_w} W",
                f"{1e3 * found.step_s:.0f}",
                *(
                    f"{share:.0%}"
                    for share in (found.collective_share, found.memory_share, found.compute_share)
                ),
                f"{found.clock:.2f}",
                *(
                    f"{one_w:.0f}"
                    for one_w in (watts.idle_w, watts.awake_w, watts.dram_w, watts.on_chip_w, watts.compute_w)
                ),
                f"{found.gpu_w:.0f}",
            ]
        )
    heads = ["65B, batch 64, length 256", "step (ms)", "collectives", "memory", "matrix units", "clock"]
    heads += ["rest (W)", "clocks (W)", "memory (W)", "on chip (W)", "operations (W)", "a GPU (W)"]
    return _table(heads, lines)


def _weights(lengths: Mapping[str, TokenLengths]) -> str:
    """The reading of Table III on NVLink at length 512, with other factors than those assumed."""
    usual = DEFAULT_FACTORS["cuda"]
    of_byte_j = ON_CHIP_J_PER_BYTE
    variants = [
        ("as assumed", usual, of_byte_j),
        *((f"bandwidth {share:g}", replace(usual, bandwidth=share), of_byte_j) for share in (0.7, 0.9)),
        *((f"compute {share:g}", replace(usual, compute=share), of_byte_j) for share in (0.5, 0.8)),
        *((f"power above rest x {times:g}", replace(usual, power=times), of_byte_j) for times in (0.9, 1.1)),
        *((f"on the chip {1e12 * byte_j:.0f} pJ a byte", usual, byte_j) for byte_j in (48e-12, 80e-12)),
    ]
    lines = []
    for name, factors, byte_j in variants:
        free, *capped = (
            predict(
                Run("llama-65b", TOGETHER, 4, 64, 512, ("gsm8k",), cap_w),
                lengths,
                factors,
                on_chip_j_per_byte=byte_j,
            )
            for cap_w in (250, 175, 150)
        )
        changes = (
            f"{100 * (of(found) / of(free) - 1):+.1f}"
            for found in capped
            for of in (attrgetter("duration_s"), attrgetter("energy_j"))
        )
        lines.append([name, f"{free.gpu_w:.0f}", *changes])
    heads = ["4 A100 on NVLink, length 512", "a GPU at 250 W (W)", "175 W: time (%)", "energy (%)"]
    return _table([*heads, "150 W: time (%)", "energy (%)"], lines)


def _weights_of_network(lengths: Mapping[str, TokenLengths]) -> str:
    """Memory activity on Ethernet, and A100 over V100, with other assumptions on links and memory."""
    usual = DEFAULT_FACTORS["cuda"]
    variants = [
        ("as assumed", usual, SITE),
        *((f"network {share:g}", replace(usual, network=share), SITE) for share in (0.6, 1.0)),
        *((f"latency {latency_us:g} µs", usual, site_of(latency_us)) for latency_us in (20.0, 50.0)),
        *((f"bandwidth {share:g}", replace(usual, bandwidth=share), SITE) for share in (0.7, 0.9)),
    ]
    tables = ("Table IV", "Table V")
    printed = [one for name in tables for one in published(name) if one.length == 256]
    printed = [one for one in printed if one.quantity != "sm_utilisation_percent"]
    (ratio,) = (one for one in published("findings", "throughput_ratio") if one.model == "llama-65b")
    lines = [["published", *map(_range, printed), _range(ratio)]]
    for name, factors, site in variants:
        runs = [
            Run("llama-65b", one.gpu, one.shards or 1, 64, 256, PAPER_DATASETS, USUAL_CAP_W)
            for one in printed
        ]
        a100, v100, *more = (predict(run, lengths, factors, site=site) for run in runs)
        shares = (f"{100 * one.memory_share:.1f}" for one in (a100, v100, *more))
        lines.append([name, *shares, f"{a100.tokens_per_s / v100.tokens_per_s:.2f}"])
    heads = [f"{one.shards} {one.gpu.split('-')[0].upper()}: memory busy (%)" for one in printed]
    return _table(["on Ethernet, length 256", *heads, "output tokens/s, 4 A100 over 8 V100"], lines)


def _positions() -> str:
    """Most cache positions that fit, of 65B in fp16 with the published loop."""
    lines = []
    for gpu, counts in ((V100, (8, 16, 32)), (A100, (4,))):
        memory_gib = SITE.gpus[gpu].memory_gib
        for shards in counts:
            most = [most_positions("llama-65b", shards, batch, memory_gib) for batch in BATCHES]
            lines.append(
                [f"{shards} {gpu.split('-')[0].upper()}", *(str(one) if one else "none" for one in most)]
            )
    return _table(["65B", *(f"batch {batch}" for batch in BATCHES)], lines)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_checks(page: str, root: Path) -> str:
    """A page with the tables of checks between its two markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    return with_generated(page, "plan checks", markdown(root))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(
        with_checks(path.read_text(encoding="utf-8"), path.resolve().parents[1]), encoding="utf-8"
    )
