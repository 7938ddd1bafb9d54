"""Guards that a cell's path is its name, both ways, and that nothing else passes for one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.cell import (
    AXES,
    AXIS_PATTERNS,
    COUNT_AXES,
    PATH_PATTERN,
    STUDY_PATTERN,
    Cell,
    CellError,
    is_axis_value,
)

PATH = (
    "engine=reference/model=llama-65b/precision=fp16/gpu=v100/shards=8/batch=64/length=512/"
    "dataset=gsm8k/cap=none/repeat=1"
)
CELL = Cell("reference", "llama-65b", "fp16", "v100", 8, 64, 512, "gsm8k", "none", 1)

names = st.from_regex(AXIS_PATTERNS["model"], fullmatch=True)
counts = st.integers(1, 999_999)
cells = st.builds(
    Cell,
    engine=names,
    model=names,
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    gpu=names,
    shards=counts,
    batch=counts,
    length=counts,
    dataset=names,
    cap=st.just("none") | counts.map(str),
    repeat=counts,
)

BAD_NAMES = [
    *("", ".", "..", "a..b", "a/b", "../a", "a/../b", "/etc", "a b", " a", "a\n", "a\tb", "A", "Llama"),
    *("-a", "a-", "a_", ".a", "a.", "a--b", "a;b", "$(a)", "`a`", "a&b", "a|b", "a*", "a?", "'a'", "~"),
    *("{a}", "a=b", "a\\b", "ä", "а", "a\0", "٣"),  # noqa: RUF001 - a Cyrillic a and an Arabic 3 are meant
]
BAD_COUNTS = ["", "0", "00", "01", "-1", "+1", "1.5", "1e3", " 1", "1 ", "1\n", "1000000", "٣", "one", "none"]


def test_a_cells_path_names_every_axis_in_order() -> None:
    assert CELL.path == PATH
    assert Cell.parse(PATH) == CELL


@given(cells)
def test_path_and_cell_go_both_ways(cell: Cell) -> None:
    assert Cell.parse(cell.path) == cell
    assert re.fullmatch(PATH_PATTERN, cell.path), "Snakemake's wildcard takes what the cell writes"
    assert len(cell.path.split("/")) == len(AXES)


@given(st.sampled_from(AXES), st.text(max_size=12))
def test_whatever_stands_in_an_axis_is_refused_or_kept_as_it_is(axis: str, value: str) -> None:
    path = re.sub(rf"{axis}=[^/]*", lambda _: f"{axis}={value}", PATH)
    try:
        cell = Cell.parse(path)
    except CellError:
        assert not is_axis_value(axis, value)
    else:
        assert is_axis_value(axis, value)
        assert cell.path == path


@pytest.mark.parametrize("value", BAD_NAMES)
@pytest.mark.parametrize("axis", ["engine", "model", "gpu", "dataset"])
def test_a_name_is_never_free_text(axis: str, value: str) -> None:
    assert not is_axis_value(axis, value)
    with pytest.raises(CellError, match="is no cell"):
        Cell.parse(re.sub(rf"{axis}=[^/]*", lambda _: f"{axis}={value}", PATH))


@pytest.mark.parametrize("value", BAD_COUNTS)
@pytest.mark.parametrize("axis", sorted(COUNT_AXES))
def test_a_count_is_a_whole_number_from_1_written_in_one_way(axis: str, value: str) -> None:
    assert not is_axis_value(axis, value)
    with pytest.raises(CellError):
        Cell.parse(re.sub(rf"{axis}=[^/]*", lambda _: f"{axis}={value}", PATH))


@pytest.mark.parametrize("value", ["fp8", "FP16", "int8", ""])
def test_precisions_are_those_that_there_are(value: str) -> None:
    assert not is_axis_value("precision", value)


@pytest.mark.parametrize("value", ["None", "0", "250W", "none ", ""])
def test_a_cap_is_watts_or_none(value: str) -> None:
    assert not is_axis_value("cap", value)


@pytest.mark.parametrize(
    "path",
    [
        "",
        PATH + "/",
        "/" + PATH,
        PATH + "\n",
        PATH.replace("batch=64/", ""),
        PATH.replace("batch=64/length=512", "length=512/batch=64"),
        PATH + "/repeat=1",
        PATH.replace("/", "//", 1),
        "results/" + PATH,
    ],
)
def test_a_path_with_an_axis_missing_doubled_or_out_of_order_is_no_cell(path: str) -> None:
    with pytest.raises(CellError, match="expected engine=…/model=…"):
        Cell.parse(path)


def test_the_power_limit_in_watts_is_unknown_where_none_is_set() -> None:
    assert CELL.cap_w is None
    assert Cell.parse(PATH.replace("cap=none", "cap=175")).cap_w == 175


def test_a_study_is_named_like_an_axis_value() -> None:
    assert re.fullmatch(STUDY_PATTERN, "first-light")
    for name in BAD_NAMES:
        assert re.fullmatch(STUDY_PATTERN, name) is None
