"""Cells that a study leaves out because they do not fit by the plan, and why in words."""

from __future__ import annotations

from dataclasses import dataclass

from shardwatt.cell import Cell
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.memory import MemoryNeed
from shardwatt.site import Site
from shardwatt.study import Study


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell that does not fit by the plan.

    Attributes:
        cell: the cell.
        need: memory of one device.
        memory_gib: what one device has.
    """

    cell: Cell
    need: MemoryNeed
    memory_gib: float

    def __str__(self) -> str:
        need = self.need
        parts = {
            "weights": need.weights_gib,
            "KV cache": need.kv_cache_gib,
            "activations": need.activations_gib,
            "workspace": need.workspace_gib,
        }
        listed = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())
        return (
            f"the plan needs {need.total_gib:.1f} GiB of each {self.cell.gpu}, which has "
            f"{self.memory_gib:g} GiB: {listed}"
        )


def left_out(forecaster: Forecaster, study: Study, site: Site, cell: Cell) -> LeftOut | None:
    """Why a study leaves a cell out; None where it runs it."""
    if forecaster.fits(cell) is not False or study.runs_unfit(cell):
        return None
    need = forecaster.need(cell)
    assert need is not None, cell.path  # without it nobody knows that it does not fit
    return LeftOut(cell, need, site.gpus[cell.gpu].memory_gib)
