"""What a record says of efficiency, as columns of the cell."""

from __future__ import annotations

from typing import Any

from shardwatt.efficiency import STEPWISE, Efficiency
from shardwatt.records import Memory, Provenance

Row = dict[str, Any]


def efficiency_columns(efficiency: Efficiency) -> Row:
    """Steps, tokens, bytes and operations of each phase, and their shares of what the devices can do."""
    row: Row = {}
    for phase in ("prefill", *STEPWISE):
        row |= {f"{phase}_{name}": value for name, value in getattr(efficiency, phase)}
    peak = efficiency.peak
    row |= efficiency.window.model_dump()
    if peak is not None:
        row |= {
            "data_sheet": peak.data_sheet,
            "data_sheet_source": peak.source,
            "peak_devices": peak.devices,
            "peak_bandwidth_b_s": peak.memory_bandwidth_b_s,
            "peak_flop_per_s": peak.flop_per_s,
        }
    return row


def memory_columns(memory: Memory) -> Row:
    """Peak memory beside the plan's prediction, and over what of that torch allocates."""
    peak, allocated = memory.peak_memory_gib, memory.planned_allocated_gib
    return {
        "peak_memory_gib": peak,
        "planned_memory_gib": memory.planned_memory_gib,
        "planned_allocated_gib": allocated,
        "peak_over_planned": peak / allocated if peak is not None and allocated else None,
    }


def engine_columns(provenance: Provenance) -> Row:
    """How the engine took the prompts, and how it ran, in its own words."""
    notes = [f"{name}: {words}" for name, words in sorted(provenance.engine.items())]
    return {"prompt_order": provenance.prompt_order, "engine_notes": "; ".join(notes) or None}
