"""Guards the table of a plan: what its numbers are, what is left empty, sums, and how it is shown."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest

from shardwatt.analysis.planfiles import write_plan
from shardwatt.cell import AXES, Cell
from shardwatt.cli.planpage import page
from shardwatt.plan.cellforecast import CellForecast, PhaseForecast
from shardwatt.plan.columns import PLAN_COLUMNS, PlanRow, markdown, values, with_columns
from shardwatt.plan.digits import duration, in_line
from shardwatt.plan.markdown import as_markdown
from shardwatt.plan.memory import MemoryNeed
from shardwatt.plan.price import carbon_kg, cost
from shardwatt.plan.table import Plan, as_json, make_plan, write_csv
from shardwatt.plan.totals import SUMMED, Sum
from shardwatt.plan.view import view
from shardwatt.plan.warned import Warned
from shardwatt.study import Study
from small_project import BLOCK, make_site, study_content

DOCS = Path(__file__).parents[2] / "docs" / "plan.md"
PRICES = {"currency": "EUR", "gpu_hour": 2.0, "source": "a test"}
CARBON = {"g_per_kwh": 380.0, "source": "a test", "year": 2025}
NEED = MemoryNeed(weights_gib=15.5, kv_cache_gib=8.0, activations_gib=1.0, workspace_gib=0.75)
TOO_MUCH = MemoryNeed(weights_gib=15.5, kv_cache_gib=28.0, activations_gib=1.0, workspace_gib=0.75)

#: A cell's forecast worked out by hand: 1 h of job, half of it the window, at 1 kW.
USUAL: dict[str, Any] = {
    "need": NEED,
    "memory_gib": 32.0,
    "fits": True,
    "nodes": 4,
    "gpus": 8,
    "gpus_held": 8,
    "batches": 64,
    "prompt_tokens": 400_000,
    "output_tokens": 900_000,
    "generated_tokens": 1_000_000,
    "phases": {
        "prefill": PhaseForecast(100.0, {"compute": 60.0}, 1100.0, 1.0),
        "walk": PhaseForecast(200.0, {}, 1000.0, 1.0),
        "decode": PhaseForecast(1500.0, {}, 993.3, 0.9),
    },
    "duration_s": 1800.0,
    "allocation_duration_s": 3600.0,
    "longest_job_s": 5400.0,
    "power_w": 1000.0,
    "energy_j": 1.8e6,
    "allocation_energy_j": 2.25e6,
    "duration_range_s": None,
    "energy_range_j": None,
    "gpu_hours": 8.0,
    "node_hours": 4.0,
    "cost": 16.0,
    "carbon_kg": 0.25,
    "host_memory_gib": 40.0,
    "notes": ("links between nodes are assumed",),
}
UNKNOWN: dict[str, Any] = {name: None for name in USUAL if name.endswith(("_s", "_j", "_w", "hours"))} | {
    "cost": None,
    "carbon_kg": None,
    "phases": {},
}


def forecast(cell: Cell, **changes: Any) -> CellForecast:
    return CellForecast(cell=cell, **(USUAL | changes))


def cell(**axes: Any) -> Cell:
    usual: dict[str, Any] = {"engine": "reference", "precision": "fp16", "cap": "none", "repeat": 1}
    return Cell(**(usual | BLOCK | axes))


def plan_of(
    *blocks: list[Cell],
    special: dict[Cell, dict[str, Any]] | None = None,
    matrix: list[dict[str, Any]] | None = None,
    folder: Path = Path("here"),
    **keys: Any,
) -> Plan:
    """A plan of blocks of cells; the forecasts of some cells differ from the usual one."""
    matrix = matrix or [{**BLOCK, "name": f"part {number}"} for number, _ in enumerate(blocks, start=1)]
    study = Study.model_validate(study_content(matrix=matrix, **keys))
    site = make_site(folder, prices=PRICES)
    return make_plan("paper", study, site, blocks, lambda one: forecast(one, **(special or {}).get(one, {})))


def csv_of(plan: Plan) -> str:
    stream = io.StringIO()
    write_csv(plan, stream)
    return stream.getvalue()


def rows_of_csv(plan: Plan) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(plan))))


def lines(plan: Plan, width: int = 100) -> list[str]:
    return [click.unstyle(line) for line in page(view(plan), width)]


def line_with(words: str, plan: Plan, width: int = 100) -> str:
    (found,) = [line for line in lines(plan, width) if words in line]
    return found


def test_values_by_hand() -> None:
    calibrated = {"duration_range_s": (1500.0, 2000.0), "energy_range_j": (1.5e6, 2e6)}
    one = cell()
    row = values(plan_of([one], special={one: calibrated}).rows[0])
    assert [row[axis] for axis in AXES] == [getattr(one, axis) for axis in AXES]
    assert (row["needed_gib"], row["had_gib"], row["fits"], row["runs"]) == (25.25, 32.0, True, True)
    assert row["needed_gib"] == sum(
        float(row[f"{part}_gib"] or 0) for part in ("weights", "kv_cache", "activations", "workspace")
    )
    assert (row["prefill_s"], row["walk_s"], row["decode_s"]) == (100, 200, 1500)
    assert (row["duration_low_s"], row["duration_high_s"]) == (1500, 2000)
    assert (row["energy_low_j"], row["energy_high_j"]) == (1.5e6, 2e6)
    assert (row["tokens_per_s"], row["energy_per_token_j"]) == (500, 2)
    assert (row["cost"], row["currency"], row["carbon_kg"]) == (16, "EUR", 0.25)
    assert row["allocation_energy_j"] == 2.25e6
    assert (row["cap_w"], row["blocks"]) == (None, "1")


def test_a_cell_that_is_left_out_has_its_memory_and_takes_nothing() -> None:
    fits, unfit = cell(), cell(batch=512)
    plan = plan_of([fits, unfit], special={unfit: {"need": TOO_MUCH, "fits": False}})
    row = values(plan.rows[1])
    assert (row["needed_gib"], row["fits"], row["runs"], row["nodes"]) == (45.25, False, False, 4)
    taken = ("prefill_s", "duration_s", "allocation_duration_s", "energy_j", "gpu_hours", "cost", "carbon_kg")
    assert [row[name] for name in taken] == [None] * len(taken)
    assert plan.total.left_out == 1
    assert plan.total.sums["gpu_hours"] == Sum(8.0, 0)


def test_a_cell_that_is_run_all_the_same_is_counted_and_marked() -> None:
    unfit = cell(batch=512)
    plan = plan_of(
        [unfit],
        special={unfit: {"need": TOO_MUCH, "fits": False}},
        matrix=[{**BLOCK, "batch": 512}],
        unfit="run",
    )
    assert plan.total.sums["gpu_hours"] == Sum(8.0, 0)
    assert "45.2*" in "\n".join(lines(plan))
    assert "1 does not fit and is run all the same" in lines(plan)[0]
    assert any(line.startswith("* does not fit") for line in lines(plan))


def test_what_is_unknown_is_empty_and_never_zero() -> None:
    one = cell()
    plan = plan_of([one], special={one: {**UNKNOWN, "need": None, "fits": None}})
    (row,) = rows_of_csv(plan)
    known = {*AXES, "blocks", "runs", "had_gib", "nodes", "gpus", "gpus_held", "batches", "host_memory_gib"}
    known |= {"prompt_tokens", "output_tokens", "generated_tokens", "currency", "notes"}
    assert {name for name, text in row.items() if text} == known
    assert plan.total.sums["energy_j"] == Sum(None, 1)
    text = "\n".join(lines(plan))
    assert "whether they fit is not known" in text
    assert "Not known of any cell: window, job, power, energy, GPUs; see the notes." in text


def test_a_sum_says_that_some_of_it_is_unknown() -> None:
    known, unknown = cell(), cell(batch=128)
    plan = plan_of([known, unknown], special={unknown: UNKNOWN})
    assert plan.total.sums["energy_j"] == Sum(1.8e6, 1)
    assert "0.500+" in line_with("together", plan)
    assert "+ at least: of some cells it is not known." in lines(plan)
    whole = plan_of([known])
    assert "+" not in line_with("together", whole)


def test_a_cell_in_two_blocks_counts_once_in_the_whole() -> None:
    both, first, second = cell(), cell(batch=128), cell(batch=256)
    plan = plan_of([both, first], [both, second, cell(batch=1)])
    assert [row.blocks for row in plan.rows] == [(1, 2), (1,), (2,), (2,)]
    assert [block.sums["node_hours"].value for block in plan.blocks] == [8, 12]
    assert (plan.total.cells, plan.total.sums["node_hours"].value) == (4, 16)
    assert line_with("part 2", plan).split()[:4] == ["2", "part", "2", "3"]
    assert line_with("each cell once", plan).split()[:5] == ["together,", "each", "cell", "once", "4"]


def test_totals_are_of_the_cells_that_are_meant() -> None:
    study = Study.model_validate(study_content(matrix=[{**BLOCK, "name": "a"}, {**BLOCK, "name": "b"}]))
    blocks = [[cell(), cell(batch=128)], [cell(batch=256)]]
    plan = make_plan("paper", study, make_site(Path("here")), blocks, forecast, lambda one: one.batch == 128)
    assert (len(plan.rows), plan.cells, plan.total.sums["gpu_hours"].value) == (1, 3, 8)
    assert "1 of 3 cells" in lines(plan)[0]
    assert not any("b" in line.split() for line in lines(plan)), "a block without a cell here is not shown"


def test_repeats_are_one_line_and_all_count() -> None:
    repeats = [cell(batch=batch, repeat=repeat) for batch in (64, 128) for repeat in (1, 2, 3)]
    plan = plan_of(repeats)
    (section,) = view(plan).sections
    assert [list(line.axes) for line in section.lines] == [["64", "3"], ["128", "3"]]
    assert plan.total.sums["gpu_hours"].value == 48


def test_sections_are_of_a_model_and_gpu_and_their_numbers_ascend() -> None:
    cells = [
        cell(batch=batch, gpu=gpu, cap=cap)
        for gpu in ("v100", "a100")
        for batch in (512, 64)
        for cap in ("150", "none", "250")
    ]
    shown = view(plan_of(cells))
    assert [section.name for section in shown.sections] == ["v100, 32 GiB each", "a100, 32 GiB each"]
    assert [list(section.axes) for section in shown.sections] == [["batch", "cap"]] * 2
    order = [("64", "none"), ("64", "250"), ("64", "150"), ("512", "none"), ("512", "250"), ("512", "150")]
    assert [tuple(line.axes) for line in shown.sections[0].lines] == order
    assert "shards=8" in shown.common
    assert "dataset=gsm8k" in shown.common


def test_an_axis_with_one_value_in_a_section_stands_in_its_heading() -> None:
    small = [cell(gpu="v100", batch=batch) for batch in (64, 128)]
    large = [cell(gpu="a100", batch=batch, cap=cap) for batch in (64, 128) for cap in ("none", "150")]
    plan = plan_of([*small, *large])
    assert [(section.name, list(section.axes)) for section in view(plan).sections] == [
        ("v100, 32 GiB each, cap none", ["batch"]),
        ("a100, 32 GiB each", ["batch", "cap"]),
    ]
    narrow = lines(plan, 80)
    first, second = (line for line in narrow if line.strip().startswith("batch"))
    assert first.count("energy") == 2, "what the axis leaves free is room for a column"
    assert second.count("energy") <= first.count("energy")
    assert max(map(len, narrow)) <= 80


def test_missing_link_speeds_are_warned_of_and_not_noted_again() -> None:
    note = Warned("v100: 25 Gb/s Ethernet between nodes is assumed; give links.between")
    plan = plan_of([cell()], special={cell(): {"notes": (note, "another")}})
    text = lines(plan)
    assert text[3] == f"warning: {note}", "after summary and standing"
    assert text[-1] == "- another"
    assert f"**Warning:** {note}" in as_markdown(plan)


def test_a_warning_is_never_among_the_notes_that_there_is_no_room_for() -> None:
    """However many notes there are, and however few cells it is about; those that are left out need none."""
    crowd = [cell(batch=batch) for batch in range(1, 40)]
    left_out = cell(batch=512)
    special: dict[Cell, dict[str, Any]] = {one: {"notes": (f"note {one.batch}",)} for one in crowd}
    special[crowd[-1]] = {"notes": (Warned("the shape is not known"),)}
    special[left_out] = {"need": TOO_MUCH, "fits": False, "notes": (Warned("a link is assumed"),)}
    text = lines(plan_of([*crowd, left_out], special=special))
    warned = [line for line in text if line.startswith("warning: ")]
    assert warned == ["warning: the shape is not known (1 cell)"]
    assert not any("is assumed" in line for line in text)
    assert text[-1].startswith("- and 22 more")


def test_a_rehearsals_bill_is_nobodys() -> None:
    simulated = cell(engine="simulated")
    assert "All numbers are of what is rehearsed; nothing of it is spent." in " ".join(
        lines(plan_of([simulated]))
    )
    both = " ".join(lines(plan_of([simulated, cell()])))
    assert "Numbers of simulated cells are of what is rehearsed; nothing of it is spent." in both
    assert "rehearsed" not in " ".join(lines(plan_of([cell()])))


def test_what_is_left_out_and_what_is_run_all_the_same_are_told_apart() -> None:
    left, run = cell(batch=256), cell(batch=512)
    unfit = {one: {"need": TOO_MUCH, "fits": False} for one in (left, run)}
    matrix = [{**BLOCK, "batch": 256}, {**BLOCK, "batch": 512, "unfit": "run"}]
    told = lines(plan_of([left], [run], special=unfit, matrix=matrix))[0]
    assert "1 does not fit and is left out, 1 does not fit and is run all the same" in told


def test_an_axis_is_written_where_it_changes() -> None:
    cells = [cell(batch=batch, length=length) for batch in (64, 128) for length in (256, 512)]
    found = lines(plan_of(cells))
    first = next(place for place, line in enumerate(found) if "batch" in line and "length" in line)
    starts = [line[:13].split() for line in found[first + 2 : first + 6]]
    assert starts == [["64", "256"], ["512"], ["128", "256"], ["512"]]


def test_units_suit_the_study() -> None:
    small = cell()
    quick = {"duration_s": 12.0, "allocation_duration_s": 40.0, "energy_j": 700.0, "power_w": 58.3}
    heads = {(head.name, head.unit) for head in view(plan_of([small], special={small: quick})).heads}
    assert {("window", "s"), ("job", "s"), ("energy", "J")} <= heads
    heads = {(head.name, head.unit) for head in view(plan_of([small])).heads}
    assert {("window", "min"), ("energy", "kWh"), ("cost", "EUR")} <= heads


def test_decimal_points_stand_below_each_other() -> None:
    assert in_line(["12.3", "1,020", "0.123", "45.2*", "-", ""]) == [
        "   12.3  ",
        "1,020    ",
        "    0.123",
        "   45.2* ",
        "    -    ",
        "         ",
    ]
    assert in_line([]) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.250 s"), (90, "90.0 s"), (3599, "60.0 min"), (18_000, "5.00 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


#: Headings of what a study is planned by, in the order of the table; the second energy is J/token.
PLANNED_BY = ["nodes", "needed", "window", "job", "power", "energy", "energy", "GPUs"]


def headings(plan: Plan, width: int) -> list[str]:
    """Of the numbers of the first section."""
    line = next(line for line in lines(plan, width) if line.split()[:1] == ["shards"])
    return [word for word in line.split() if word not in AXES]


def many() -> Plan:
    """A study of a few hundred cells, some of which do not fit, with names of blocks as people write them."""
    cells = [
        cell(gpu=gpu, shards=shards, batch=batch, length=length, dataset=dataset, cap=cap)
        for gpu in ("v100", "a100")
        for shards in (8, 16, 32)
        for batch in (64, 128, 256, 512)
        for length in (256, 512, 1024)
        for dataset in ("alpaca", "gsm8k")
        for cap in ("none", "250")
    ]
    unfit = {one: {"need": TOO_MUCH, "fits": False} for one in cells if one.batch == 512 and one.shards == 8}
    name = "figures 4 to 9: watts and joules of the largest model over shards and batch sizes, both data sets"
    return plan_of(cells, cells[:100], matrix=[{**BLOCK, "name": name}, BLOCK], special=unfit)


def many_of_a_model() -> Plan:
    """The paper's largest model on one GPU type: a section with four axes, and prices."""
    cells = [
        cell(shards=shards, batch=batch, length=length, dataset=dataset)
        for shards in (8, 16, 32)
        for batch in (64, 128)
        for length in (256, 512, 1024)
        for dataset in ("alpaca", "gsm8k")
    ]
    return plan_of(cells)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    plan = many()
    found = lines(plan, width)
    assert max(map(len, found)) <= width
    shown = sum(len(section.lines) for section in view(plan).sections)
    assert len(plan.rows) == 288
    assert shown == 288 - 24 + 6, "those of a batch and length that do not fit are one line"
    assert sum("does not fit" in line for line in found[3:]) == 6
    assert any("…" in line for line in found) is (width < 200)


def test_what_a_study_is_planned_by_has_room_at_80_columns() -> None:
    plan = many_of_a_model()
    assert headings(plan, 80) == PLANNED_BY
    assert max(map(len, lines(plan, 80))) <= 80
    assert "J/token" in "\n".join(lines(plan, 80))


def test_what_there_is_no_room_for_is_named_with_the_width_that_has_it() -> None:
    plan = many()
    told = re.search(r"No room for (.*?): see COLUMNS=(\d+)", " ".join(lines(plan, 60)))
    assert told is not None
    missing, whole = told.groups()
    assert missing.startswith("prefill, walk, decode, ")
    assert ", energy in J/token, " in missing, "there are two columns of energy"
    assert missing.endswith("(in the totals)")
    assert "walk" not in headings(plan, 60)
    assert "walk" in headings(plan, int(whole))
    assert not any("No room" in line for line in lines(plan, int(whole)))
    assert any("No room" in line for line in lines(plan, int(whole) - 1))


def test_columns_are_two_spaces_apart_where_that_hides_nothing_a_study_is_planned_by() -> None:
    plan = many_of_a_model()
    assert any("needed  window  " in line for line in lines(plan, 100))
    assert any("needed window " in line for line in lines(plan, 80))


def test_a_job_that_may_take_longer_says_how_long() -> None:
    """Its time limit follows from that."""
    plan = plan_of([cell()])
    (longest,) = [head for head in view(plan).heads if head.name == "longest"]
    assert longest.unit == "min"
    assert "longest: the job if no response ends by itself" in " ".join(lines(plan))
    fixed = plan_of([cell()], special={cell(): {"longest_job_s": USUAL["allocation_duration_s"]}})
    assert not [head for head in view(fixed).heads if head.name == "longest"]
    assert "longest:" not in " ".join(lines(fixed))


def test_intervals_stand_at_their_section() -> None:
    one, other = cell(), cell(batch=128)
    ranges = {"duration_range_s": (1620.0, 2070.0), "energy_range_j": (1.62e6, 1.8e6), "is_calibrated": True}
    plan = plan_of([one, other], special={one: ranges, other: ranges})
    assert line_with("90 %", plan).endswith("90 % interval: time -10 to +15 %, energy -10 to +0 %")
    assert lines(plan)[1] == "Estimates, calibrated with finished cells."
    assert "not calibrated: `shardwatt calibrate`" in lines(plan_of([one]))[1]


def test_an_interval_wider_than_a_factor_of_two_is_told_in_times() -> None:
    """In per cent its lower end would be -100 %, a time of zero."""
    one = cell()
    ranges = {"duration_range_s": (1800 / 206, 1800 * 206.0), "energy_range_j": (0.95 * 1.8e6, 1.8e6 / 0.95)}
    plan = plan_of([one], special={one: ranges})
    assert line_with("90 %", plan).endswith("90 % interval: time 1/206 to 206 times, energy -5 to +5 %")
    plan = plan_of([one], special={one: {"duration_range_s": (0.45 * 1800, 2.2 * 1800)}})
    assert line_with("90 %", plan).endswith("90 % interval: time 1/2.22 to 2.20 times")


def test_an_interval_alone_makes_no_forecast_calibrated() -> None:
    """Cells that told no factor give the assumptions an interval, and no more."""
    one, other = cell(), cell(engine="fast")
    ranges = {"duration_range_s": (1620.0, 2070.0), "energy_range_j": None}
    plan = plan_of([one, other], special={one: {**ranges, "is_calibrated": True}, other: ranges})
    assert "not calibrated for fast on v100: `shardwatt calibrate`" in " ".join(lines(plan)[1:3])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "No cost and no carbon: that takes the site's keys `prices`, `pue` and `carbon`"),
        ({"pue": 1.2}, "No cost and no carbon: that takes the site's keys `prices` and `carbon`"),
        (
            {"prices": {"currency": "EUR", "kwh": 0.3, "source": "a test"}, "carbon": CARBON},
            "No cost and no carbon: that takes the site's key `pue`",
        ),
        (
            {"prices": {"currency": "EUR", "source": "a test"}, "carbon": CARBON, "pue": 1.2},
            "No cost: that takes the site's key `prices.kwh`",
        ),
        ({"prices": PRICES, "pue": 1.2}, "No carbon: that takes the site's key `carbon`"),
        ({"prices": PRICES, "carbon": CARBON}, "No carbon: that takes the site's key `pue`"),
    ],
    ids=["nothing", "pue", "no pue", "no price", "no carbon", "hours have a price"],
)
def test_keys_that_the_site_has_are_not_asked_for(keys: dict[str, Any], said: str) -> None:
    place = make_site(Path("here"), **keys)

    def forecasts(one: Cell) -> CellForecast:
        """Of a job of a kWh."""
        hours = cost(place, one.gpu, device_hours=8.0, energy_j=3.6e6)
        return forecast(one, cost=hours, carbon_kg=carbon_kg(place, 3.6e6))

    study = Study.model_validate(study_content(matrix=[BLOCK]))
    plan = make_plan("paper", study, place, [[cell()]], forecasts)
    assert f"{said} (config/README.md)." in " ".join(lines(plan))


def test_notes_stand_once_with_the_number_of_their_cells() -> None:
    one, other = cell(), cell(batch=128)
    plan = plan_of([one, other], special={other: {"notes": (*USUAL["notes"], "no tokens | <b>known</b>")}})
    found = lines(plan)
    assert found[-2:] == ["- links between nodes are assumed", "- no tokens | <b>known</b> (1 cell)"]
    crowd = [cell(batch=batch) for batch in range(1, 40)]
    special = {one: {"notes": (f"note {one.batch}",)} for one in crowd}
    assert lines(plan_of(crowd, special=special))[-1].startswith("- and 23 more")


def test_the_longest_job_is_named() -> None:
    long = cell(batch=128)
    text = "\n".join(lines(plan_of([cell(), long], special={long: {"allocation_duration_s": 18_000.0}})))
    assert "Longest job: 5.00 h (llama-65b on 8 x v100, batch 128, length 256)." in text


def test_csv_keeps_full_precision_and_whatever_people_write() -> None:
    one = cell()
    special = {one: {"duration_s": 1 / 3, "notes": ('a "note", with\na line', "another")}}
    (row,) = rows_of_csv(plan_of([one], special=special))
    assert float(row["duration_s"]) == 1 / 3
    assert row["notes"] == 'a "note", with\na line; another'
    assert list(row) == [column.name for column in PLAN_COLUMNS]


def test_json_has_what_phases_are_made_of() -> None:
    content = json.loads(as_json(plan_of([cell()])))
    assert content["cells"][0]["phases"]["prefill"] == {
        "duration_s": 100.0,
        "parts_s": {"compute": 60.0},
        "power_w": 1100.0,
        "clock": 1.0,
    }
    assert content["total"]["sums"]["cost"] == {"value": 16.0, "unknown": 0}
    assert content["currency"] == "EUR"


def test_markdown_is_no_markup_of_what_people_write() -> None:
    one, unfit = cell(), cell(batch=512)
    plan = plan_of(
        [one, unfit],
        [one],
        special={unfit: {"need": TOO_MUCH, "fits": False}},
        matrix=[{**BLOCK, "name": "a | b <script>"}, BLOCK],
        title="*Watts* [here](x)",
    )
    text = as_markdown(plan)
    assert "\\*Watts\\* \\[here\\](x)." in text
    assert "a \\| b \\<script\\>" in text
    (row,) = [line for line in text.splitlines() if "does not fit |" in line]
    assert row.startswith("| 512 | 4 | 45.2 | does not fit |")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) == 2, "totals, and cells"


def test_a_plan_of_cells_none_of_which_fits_is_written_all_the_same(tmp_path: Path) -> None:
    """Its tables have no column of what cells take: there is none to say in that they do not fit."""
    unfit = [cell(batch=batch) for batch in (512, 1024)]
    plan = plan_of(unfit, special={one: {"need": TOO_MUCH, "fits": False} for one in unfit})
    write_plan(plan, tmp_path)
    text = (tmp_path / "plan.md").read_text(encoding="utf-8")
    assert "| batch | nodes | needed (GiB) |" in text
    assert "| 512 | 4 | 45.2, does not fit |" in text
    assert len(rows_of_csv(plan)) == 2


def test_parquet_holds_the_same_under_typed_columns(tmp_path: Path) -> None:
    plan = many()
    assert [path.name for path in write_plan(plan, tmp_path / "out")] == [
        "plan.csv",
        "plan-totals.csv",
        "plan.parquet",
        "plan.md",
    ]
    table = pq.read_table(tmp_path / "out" / "plan.parquet")
    assert table.to_pylist() == [values(row) for row in plan.rows]
    assert table.schema.field("energy_j").metadata[b"unit"] == b"J"
    assert (tmp_path / "out" / "plan.csv").read_text() == csv_of(plan)
    assert (tmp_path / "out" / "plan.md").read_text() == as_markdown(plan)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_totals_are_a_file_too_with_what_is_unknown_beside_each_sum(tmp_path: Path) -> None:
    both, first, unfit = cell(), cell(batch=128), cell(batch=512)
    special = {first: UNKNOWN, unfit: {"need": TOO_MUCH, "fits": False}}
    matrix = [{**BLOCK, "name": 'a "b", c'}, BLOCK]
    write_plan(plan_of([both, first], [both, unfit], special=special, matrix=matrix), tmp_path)
    with (tmp_path / "plan-totals.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    told = [(row["block"], row["name"], row["cells"], row["left_out"]) for row in rows]
    assert told == [("1", 'a "b", c', "2", "0"), ("2", "block 2", "2", "1"), ("", "paper", "3", "1")]
    assert [(row["energy_j"], row["energy_j_unknown_cells"]) for row in rows] == [
        ("1800000.0", "1"), ("1800000.0", "0"), ("1800000.0", "1")
    ]  # fmt: skip
    assert {row["currency"] for row in rows} == {"EUR"}
    sums = [name for name in rows[0] if name.removesuffix("_unknown_cells") in SUMMED]
    assert len(sums) == 2 * len(SUMMED)
    page = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in rows[0] if not name.endswith("_unknown_cells"))


def test_columns_are_unique_complete_and_of_their_kind() -> None:
    assert len({column.name for column in PLAN_COLUMNS}) == len(PLAN_COLUMNS)
    assert all(column.unit and column.definition for column in PLAN_COLUMNS)
    full = plan_of([cell(cap="250")]).rows[0]
    ranges = replace(full.forecast, duration_range_s=(1.0, 2.0), energy_range_j=(1.0, 2.0))
    row = PlanRow(ranges, full.blocks, full.runs, full.currency)
    kinds = {"text": str, "count": int, "number": int | float, "truth": bool}
    for column in PLAN_COLUMNS:
        assert isinstance(column.value(row), kinds[column.kind]), column.name


def test_docs_show_the_columns_as_the_code_has_them() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert with_columns(page) == page, "run: python -m shardwatt.plan.columns docs/plan.md"
    assert markdown().count("\n") == len(PLAN_COLUMNS) + 1
