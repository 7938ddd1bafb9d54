"""The power of one cell over time: whose lines, where they break, and what stands behind them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from shardwatt.analysis.powertrace import compose, device_lines, draw_trace
from shardwatt.cell import Cell
from shardwatt.cellfiles import read_table, write_table
from shardwatt.errors import RecordError
from shardwatt.layout import CellPaths
from shardwatt.readings import Status
from synthetic_cells import STUDY, Numbers, make_cell, write_does_not_fit, write_ok


def _samples(cell: Cell, *, period_s: float = 0.5, end_s: float = 60.0) -> list[dict[str, Any]]:
    """Two devices a node at 100 W and 110 W, from 10 s before the window on."""
    count = round((end_s + 10) / period_s)
    return [
        {
            "t_s": -10 + index * period_s,
            "node": f"node{rank // 2:03d}",
            "device": rank % 2,
            "power_w": 100.0 + 10 * (rank % 2),
        }
        for index in range(count)
        for rank in range(cell.shards)
    ]


def _write(
    base: Path, cell: Cell, samples: list[dict[str, Any]], numbers: Numbers | None = None
) -> CellPaths:
    write_ok(base, cell, numbers)
    paths = CellPaths(base, STUDY, cell)
    write_table(paths.results / "power.parquet", samples)
    return paths


def _figure(base: Path, cell: Cell, samples: list[dict[str, Any]], numbers: Numbers | None = None) -> Figure:
    record = write_ok(base, cell, numbers)
    paths = _write(base, cell, samples, numbers)
    assert record.timings is not None
    lines = device_lines(read_table(paths.results / "power.parquet"), record.timings.duration_s)
    return compose(record, lines, read_table(paths.results / "batches.parquet"))


def _texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return " ".join(" ".join(found).split())


def _curves(axes: Any) -> list[Any]:
    """Lines of devices: those with more than the two points of a border or a limit."""
    return [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if len(line.get_ydata()) > 2]


def test_every_node_has_a_panel_and_every_device_a_line_of_its_own_samples(tmp_path: Path) -> None:
    cell = make_cell(shards=4)
    figure = _figure(tmp_path, cell, _samples(cell))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["node000", "node001"]
    for axes in figure.axes:
        assert sorted(float(np.nanmean(line)) for line in _curves(axes)) == pytest.approx([100, 110])


def test_samples_far_from_the_window_are_left_out(tmp_path: Path) -> None:
    cell = make_cell()
    paths = _write(tmp_path, cell, _samples(cell))
    (line,) = device_lines(read_table(paths.results / "power.parquet"), 51.0)
    assert line.t_s.min() >= -0.05 * 51
    assert line.t_s.max() <= 1.05 * 51
    assert list(line.t_s) == sorted(line.t_s)


def test_a_gap_and_an_unknown_sample_break_the_line(tmp_path: Path) -> None:
    cell = make_cell()
    samples = [row for row in _samples(cell) if not 20 < row["t_s"] < 30]
    samples[60]["power_w"] = None
    figure = _figure(tmp_path, cell, samples)
    (line,) = _curves(figure.axes[0])
    assert int(np.isnan(line).sum()) == 2


def test_many_samples_are_drawn_as_means_with_their_range(tmp_path: Path) -> None:
    cell = make_cell()
    samples = _samples(cell, period_s=0.02)
    for index, row in enumerate(samples):
        row["power_w"] = 100.0 + 50 * (index % 2)
    figure = _figure(tmp_path, cell, samples)
    (line,) = _curves(figure.axes[0])
    assert len(line) == 1500
    assert math.isclose(float(np.nanmean(line)), 125, rel_tol=0.01)
    assert "Means of some samples each, with their range behind" in _texts(figure)


def test_phases_stand_where_they_were_and_as_long_as_they_took(tmp_path: Path) -> None:
    cell = make_cell()
    axes = _figure(tmp_path, cell, _samples(cell)).axes[0]
    spans = []
    for bars in axes.collections:
        corners = [np.asarray(path.vertices, dtype=float)[:, 0] for path in bars.get_paths()]
        spans.append(sorted((float(xs.min()), float(xs.max())) for xs in corners))
    prefill, walk, decode = spans
    # Batches of 10 s: a tenth is prefill, two tenths are walk, the rest is decode.
    assert [x for span in prefill for x in span] == pytest.approx([0, 1, 10, 11, 20, 21, 30, 31, 40, 41])
    assert walk[0] == pytest.approx((1, 3))
    assert decode[-1] == pytest.approx((43, 50))


def test_the_enforced_limit_is_drawn_and_in_sight(tmp_path: Path) -> None:
    cell = make_cell(cap="250")
    figure = _figure(tmp_path, cell, _samples(cell))
    limits = [line for line in figure.axes[0].lines if list(np.asarray(line.get_ydata())) == [250, 250]]
    assert len(limits) == 1
    assert figure.axes[0].get_ylim()[1] > 250
    assert "enforced limit" in _texts(figure)
    assert "enforced limit" not in _texts(_figure(tmp_path, make_cell(), _samples(make_cell())))


def test_an_estimate_is_called_one_in_every_panel(tmp_path: Path) -> None:
    cell = make_cell(shards=4)
    figure = _figure(tmp_path, cell, _samples(cell), Numbers(status=Status.ESTIMATED))
    for axes in figure.axes:
        assert "estimated" in [text.get_text() for text in axes.texts]


def test_a_sensor_that_said_nothing_is_drawn_as_nothing(tmp_path: Path) -> None:
    cell = make_cell()
    samples = [{**row, "power_w": None} for row in _samples(cell)]
    figure = _figure(tmp_path, cell, samples, Numbers(power_w=None))
    assert all(np.isnan(line).all() for line in _curves(figure.axes[0]))
    assert "unavailable" in _texts(figure)


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    missing, unfit, silent = (make_cell(batch=batch) for batch in (4, 5, 10))
    write_does_not_fit(tmp_path, unfit)
    _write(tmp_path, silent, [])
    for cell, words in (
        (missing, "has no result"),
        (unfit, "does_not_fit"),
        (silent, "no sample of the window"),
    ):
        with pytest.raises(RecordError, match=words):
            draw_trace(CellPaths(tmp_path, STUDY, cell), tmp_path / "traces")


def test_three_formats_are_written_under_the_cells_name(tmp_path: Path) -> None:
    cell = make_cell()
    written = draw_trace(_write(tmp_path, cell, _samples(cell)), tmp_path / "traces")
    name = "power-trace--reference--llama-7b--fp16--v100--1--4--256--alpaca--none--1"
    assert [path.name for path in written] == [f"{name}.svg", f"{name}.pdf", f"{name}.png"]
