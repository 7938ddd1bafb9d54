"""How the energy was obtained: coverage, what is missing and why, violations, and the two ratios."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from shardwatt.analysis import obtained, ratios
from shardwatt.analysis.aggregate import aggregate
from shardwatt.analysis.build import build_cells, build_figures, build_report
from shardwatt.analysis.figures import draw, figure_of
from shardwatt.analysis.survey import survey
from shardwatt.cell import Cell
from shardwatt.figurelist import FigureSpec, Kind, figures
from shardwatt.readings import Status, Violation
from shardwatt.study import Block, Study
from synthetic_cells import CONSTANTS, STUDY, Numbers, make_cell, write_failed, write_ok

_BLOCK = Block(model="llama-7b", gpu="v100", shards=1, batch=4, length=256, dataset="alpaca")
SYNTHETIC = Study(title="A study of made-up cells", matrix=[_BLOCK], **CONSTANTS.model_dump())
SHORT = Violation(code="short_window", message="window 3.2 s; expected at least 5 s")


def _frame(base: Path, cells: dict[Cell, Numbers]) -> pd.DataFrame:
    for cell, numbers in cells.items():
        write_ok(base, cell, numbers)
    return aggregate(survey(base, STUDY, cells, CONSTANTS))


def _html(base: Path, cells: dict[Cell, Numbers]) -> str:
    for cell, numbers in cells.items():
        write_ok(base, cell, numbers)
    build_cells(survey(base, STUDY, cells, CONSTANTS), base / "out")
    build_figures(base / "out", ["ratios"])
    return build_report(base, STUDY, SYNTHETIC, base / "out").read_text(encoding="utf-8")


def _ratios(cells: list[Cell]) -> FigureSpec:
    return next(spec for spec in figures(cells) if spec.kind is Kind.RATIOS)


def _spread(base: Path) -> dict[Cell, Numbers]:
    """Cells on one, two and four nodes; each further node draws more, DCGM sees less and less."""
    return {
        make_cell(shards=shards, batch=batch): Numbers(skew=0.01 * batch, dcgm_share=0.99 - 0.01 * batch)
        for shards in (2, 4, 8)
        for batch in (1, 2, 4, 5)
    }


def test_coverage_is_stated_group_by_group(tmp_path: Path) -> None:
    cells = {
        make_cell(shards=4): Numbers(),
        make_cell(shards=1): Numbers(),
        make_cell(batch=5): Numbers(status=Status.ESTIMATED),
        make_cell(batch=10): Numbers(power_w=None),
    }
    measured, estimated, unknown = obtained.coverage(_frame(tmp_path, cells))
    assert (measured["cells"], measured["energy"], measured["obtained by"]) == (
        "2",
        "measured",
        "nvml_counter",
    )
    assert measured["nodes read"] == "all (1 to 2 a cell)"
    assert measured["devices read"] == "all (1 to 4 a cell)"
    assert measured["period achieved (s)"] == "0.100"
    assert measured["jitter, 95th percentile (s)"] == "0.00200"
    assert measured["clocks of nodes apart (s)"] == "0 to 0.00400"
    assert measured["counter over integral"] == "1.01"
    assert measured["idle, loaded (W a device)"] == "40.0"
    assert (estimated["energy"], estimated["tick of the counter (s)"]) == ("estimated", "unknown")
    assert (unknown["energy"], unknown["obtained by"]) == ("unavailable", "nothing")


def test_a_node_that_was_not_read_is_counted_and_named_by_its_number(tmp_path: Path) -> None:
    frame = _frame(tmp_path, {make_cell(shards=8): Numbers(), make_cell(shards=4): Numbers()})
    frame.loc[0, ["energy_nodes", "energy_devices"]] = [3, 6]
    (group,) = obtained.coverage(frame)
    assert group["nodes read"] == "3 of 4 at worst; not all in 1 cell"
    assert group["devices read"] == "6 of 8 at worst; not all in 1 cell"


def test_gaps_and_clocks_held_back_are_counted(tmp_path: Path) -> None:
    held = Numbers().utilisation.model_copy(update={"throttled": {"sw_power_cap": 0.25}})
    frame = _frame(tmp_path, {make_cell(): Numbers(utilisation=held), make_cell(batch=5): Numbers()})
    assert obtained.coverage(frame)[0]["gaps over ten periods"] == "none"
    frame["energy_gaps"] = pd.array([2, 0], dtype="Int64")
    (group,) = obtained.coverage(frame)
    assert group["gaps over ten periods"] == "2 in 1 cell"
    assert group["clocks held back"] == "sw_power_cap in 1 cell, up to 25.0 % of samples"


def test_what_could_not_be_read_says_why_with_the_number_of_cells(tmp_path: Path) -> None:
    cells = {
        make_cell(batch=4): Numbers(),
        make_cell(batch=5): Numbers(cpu_w=None, dcgm_share=None),
        make_cell(batch=10): Numbers(cpu_w=None),
    }
    rows = {row["reading"]: row for row in obtained.beside(_frame(tmp_path, cells))}
    rapl = rows["processors (RAPL)"]
    assert rapl["cells that have it"] == "1 of 3"
    assert rapl["the others"] == "permission_denied in 2 cells: energy_uj: only root may read it"
    dcgm = next(row for reading, row in rows.items() if reading.startswith("DCGM"))
    assert dcgm["the others"] == "unavailable in 1 cell: dcgmi is not on this node"
    assert rows["memory (RAPL)"]["the others"] == "--"
    assert rows["whole nodes (Slurm)"]["cells that have it"] == "0 of 3"


def test_violations_are_listed_with_their_cells(tmp_path: Path) -> None:
    cells = {make_cell(batch=batch): Numbers(violations=[SHORT]) for batch in range(1, 13)}
    cells[make_cell(batch=20)] = Numbers()
    (one,) = obtained.violations(_frame(tmp_path, cells))
    assert (one.code, one.cells, len(one.named)) == ("short_window", 12, 10)
    words, found = one.named[0]
    assert words == "llama-7b, v100, 1 shard, alpaca, length 256, batch 1, repeat 1"
    assert found == SHORT.message


def test_the_report_states_coverage_violations_and_ratios(tmp_path: Path) -> None:
    cells = _spread(tmp_path) | {make_cell(cap="150"): Numbers(violations=[SHORT], cpu_w=None)}
    html = _html(tmp_path, cells)
    assert "How the energy was obtained" in html
    assert "<code>short_window</code> <strong>1</strong> cell" in html
    assert "window 3.2 s; expected at least 5 s" in html
    assert "permission_denied in 1 cell: energy_uj" in html
    assert '<figure id="figure-ratios">' in html
    assert html.index('id="figure-ratios"') > html.index('id="ratios"'), "in its own section"
    assert html.count("figures/ratios.svg") == 1
    assert 'href="devices.csv"' in html


def test_a_report_without_ratios_or_violations_says_so_and_shows_no_empty_figure(tmp_path: Path) -> None:
    html = _html(tmp_path, {make_cell(): Numbers(dcgm_share=None)})
    assert "No reading breaks one." in html
    assert "figure-ratios" not in html
    assert 'id="ratios"' not in html


def test_an_estimate_is_marked_in_the_statement_of_coverage(tmp_path: Path) -> None:
    html = _html(tmp_path, {make_cell(): Numbers(status=Status.ESTIMATED)})
    coverage = html.partition("<h3>Coverage</h3>")[2]
    assert '<span class="tag">estimated</span>' in coverage
    assert "65 W TDP (data sheet)" in coverage


def test_scope_is_grouped_by_nodes_and_method_by_gpu_type(tmp_path: Path) -> None:
    scope, method = ratios.parts(_frame(tmp_path, _spread(tmp_path)))
    assert [(words, len(values)) for words, values in scope.groups] == [("2 nodes", 4), ("4 nodes", 4)]
    assert [(words, len(values)) for words, values in method.groups] == [("v100", 12)]
    # Two nodes of which the second draws 1, 2, 4 and 5 % more.
    assert list(scope.groups[0][1]) == pytest.approx(sorted(2 / (2 + 0.01 * batch) for batch in (1, 2, 4, 5)))
    assert max(method.known) == pytest.approx(0.98, abs=1e-3)


def test_an_estimate_has_no_ratio(tmp_path: Path) -> None:
    scope, method = ratios.parts(
        _frame(tmp_path, {make_cell(shards=4): Numbers(status=Status.ESTIMATED, skew=0.2)})
    )
    assert scope.known == method.known == []


def test_each_ratio_has_its_own_panel_axis_median_and_number(tmp_path: Path) -> None:
    cells = _spread(tmp_path)
    frame = _frame(tmp_path, cells)
    figure = figure_of(frame, _ratios(list(cells)))
    left, right = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("Scope ratio", "Method ratio")
    assert not left.get_shared_y_axes().joined(left, right)
    assert [label.get_text() for label in left.get_xticklabels()] == ["2 nodes\nN = 4", "4 nodes\nN = 4"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["v100\nN = 12"]
    scope, method = ratios.parts(frame)
    for axes, part in ((left, scope), (right, method)):
        low, high = axes.get_ylim()
        assert low < min(part.known), "every value is inside"
        assert max(part.known) < high
        assert low < 1 < high, "and so is 1"
        lines = {float(end) for line in axes.lines for end in np.asarray(line.get_ydata())}
        assert {median(values) for _, values in part.groups} <= lines
        assert sum(len(np.asarray(dots.get_offsets())) for dots in axes.collections) == len(part.known)


def test_the_axis_holds_one_although_every_value_is_above_it(tmp_path: Path) -> None:
    cells = {make_cell(shards=4, batch=batch): Numbers(skew=-0.05 * batch) for batch in (2, 4)}
    left, _ = figure_of(_frame(tmp_path, cells), _ratios(list(cells))).axes
    low, high = left.get_ylim()
    assert low < 1 < 2 / 1.8 < high


def test_a_panel_without_values_says_why(tmp_path: Path) -> None:
    cells = {make_cell(): Numbers()}
    figure = figure_of(_frame(tmp_path, cells), _ratios(list(cells)))
    words = " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    assert "no cell on several nodes was read" in words
    assert "N = 1" in words, "the other has its one cell"
    empty = make_cell(batch=5)
    write_failed(tmp_path, empty)
    frame = aggregate(survey(tmp_path, STUDY, [empty], CONSTANTS))
    assert ratios.summary(frame) == []
    assert "no cell was read by DCGM" in ratios.in_words(frame)


def test_the_picture_is_the_same_again(tmp_path: Path) -> None:
    cells = _spread(tmp_path)
    frame, spec = _frame(tmp_path, cells), _ratios(list(cells))
    first, second = draw(frame, spec, tmp_path / "a"), draw(frame, spec, tmp_path / "b")
    assert [path.name for path in first] == ["ratios.svg", "ratios.pdf", "ratios.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_quartiles_are_of_four_cells_or_more(tmp_path: Path) -> None:
    cells = {make_cell(batch=batch): Numbers(dcgm_share=share) for batch, share in ((4, 0.9), (5, 0.8))}
    (row,) = ratios.summary(_frame(tmp_path, cells))
    assert (row["ratio"], row["of"], row["cells"], row["middle half"]) == ("method", "v100", "2", "--")
    rows = ratios.summary(_frame(tmp_path, _spread(tmp_path)))
    assert all(" to " in row["middle half"] for row in rows)
