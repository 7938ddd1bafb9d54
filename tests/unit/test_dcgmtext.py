"""Guards the reading of what dcgmi prints: every layout, every word for no value, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardwatt.power.dcgm.text import (
    Block,
    DcgmError,
    Stream,
    StreamRow,
    created_group,
    discovered,
    groups,
    job_statistics,
    quote,
    status_of,
)
from shardwatt.readings import Status

PRINTED = Path(__file__).parents[1] / "dcgm"


def printed(name: str) -> str:
    return (PRINTED / f"{name}.txt").read_text()


@pytest.fixture(scope="module")
def two_gpus() -> list[Block]:
    return job_statistics(printed("verbose-two-gpus"))


def test_each_gpu_has_its_own_numbers(two_gpus: list[Block]) -> None:
    busy, idle = two_gpus
    assert (busy.gpu_id, idle.gpu_id) == (3, 0)
    assert busy.number("Energy Consumed", "Joules").number == 36075
    assert idle.number("Energy Consumed", "Joules").number == 0
    assert busy.number("Total Execution Time", "sec").number == 120.25
    power = [busy.part("Power Usage", "Watts", which).number for which in ("Avg", "Max", "Min")]
    assert power == [301.5, 402.125, 61.75]
    assert busy.number("Max GPU Memory Used", "bytes").number == 34359738368
    assert busy.part("SM Clock", "MHz", "Avg").number == 1395
    assert busy.part("Memory Clock", "MHz", "Min").number == 1593
    assert busy.number("Critical XID Errors", "").number == 2
    assert busy.number("Power", "%").number == 12.5
    assert busy.number("Thermal", "%").number == 0
    assert busy.number("Reliability", "%").status is Status.UNSUPPORTED


def test_utilisation_is_the_devices_and_not_that_of_a_process(two_gpus: list[Block]) -> None:
    assert two_gpus[0].part("SM Utilization", "%", "Avg").number == 87
    assert two_gpus[0].part("Memory Utilization", "%", "Avg").number == 42


def test_a_number_that_was_cut_off_is_none(two_gpus: list[Block]) -> None:
    idle = two_gpus[1]
    assert idle.part("Power Usage", "Watts", "Max").number == 61.0312
    cut = idle.part("Power Usage", "Watts", "Min")
    assert (cut.number, cut.status) == (None, Status.UNAVAILABLE)
    assert "58...." in cut.said


def test_every_word_for_no_value_is_none_with_its_status() -> None:
    (block,) = job_statistics(printed("verbose-no-values"))
    values = {
        "Total Execution Time": (block.number("Total Execution Time", "sec"), Status.UNAVAILABLE),
        "Energy": (block.number("Energy Consumed", "Joules"), Status.PERMISSION_DENIED),
        "Power": (block.part("Power Usage", "Watts", "Avg"), Status.UNAVAILABLE),
        "Memory": (block.number("Max GPU Memory Used", "bytes"), Status.UNAVAILABLE),
        "Clock": (block.part("SM Clock", "MHz", "Avg"), Status.UNSUPPORTED),
        "Utilisation": (block.part("Memory Utilization", "%", "Avg"), Status.UNAVAILABLE),
    }
    for name, (value, status) in values.items():
        assert (name, value.number, value.status) == (name, None, status)
    said = {value.said for value, _ in values.values()}
    assert said == {
        *("Still Running", "Insf. Permission", "N/A", "Not Found", "Not Supported", "Not Specified"),
    }


def test_cells_that_go_on_below_are_put_together() -> None:
    (block,) = job_statistics(printed("verbose-wrapped"))
    assert block.gpu_id == 2
    assert block.number("Energy Consumed", "Joules").number == 12900
    assert block.number("Total Execution Time", "sec").number == 64.5
    assert [block.part("Power Usage", "Watts", which).number for which in ("Avg", "Max", "Min")] == [
        *(200.25, 251.5, 80),
    ]
    assert block.part("SM Utilization", "%", "Avg").number == 99


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("| Energy Consumed (Joules)           | 36075", "| Energy Consumed (kJ)      | 36.0", r"\(kJ\)"),
        ("| 36075  ", "| 36075 kJ", "'36075 kJ'; expected a number of Joules"),
        ("| 36075  ", "| 3.6e4x ", "'3.6e4x'"),
        ("Energy Consumed (Joules)", "Consumption (Joules)    ", "no line 'Energy Consumed'"),
    ],
)
def test_energy_that_is_not_understood_is_none_and_quoted(before: str, after: str, words: str) -> None:
    text = printed("verbose-two-gpus")
    assert before in text
    value = job_statistics(text.replace(before, after))[0].number("Energy Consumed", "Joules")
    assert (value.number, value.status) == (None, Status.UNAVAILABLE)
    assert re.search(words, value.said)


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        (printed("summary"), Status.UNAVAILABLE, "'Summary' of all GPUs; expected a block for each"),
        ("", Status.UNAVAILABLE, "no statistics: nothing at all"),
        ("gpu,joules\n0,12\n", Status.UNAVAILABLE, "no statistics: 0,12"),
        ("| GPU ID: 0 |\n| Energy Con", Status.UNAVAILABLE, "a torn row: '| Energy Con'"),
        ("| GPU ID: 0 |\n| a | b | c |\n", Status.UNAVAILABLE, r"a row unknown here: 'a \| b \| c'"),
        ("| Energy Consumed (Joules) | 12 |\n", Status.UNAVAILABLE, "a row unknown here"),
        ("Error: No permission.\n", Status.PERMISSION_DENIED, "Error: No permission"),
    ],
)
def test_statistics_of_no_known_layout_are_refused_by_name(text: str, status: Status, words: str) -> None:
    with pytest.raises(DcgmError, match=words) as refused:
        job_statistics(text)
    assert refused.value.status is status


def test_gpus_are_found_by_uuid_in_any_letters_and_other_tables_are_passed_over() -> None:
    assert discovered(printed("discovery")) == {
        "gpu-0a0a0a0a-1111-2222-3333-444455556666": 0,
        "gpu-1b1b1b1b-1111-2222-3333-444455556666": 1,
        "gpu-2c2c2c2c-1111-2222-3333-444455556666": 10,
    }
    with pytest.raises(DcgmError, match="dcgmi found no GPUs: Error: unable to establish a connection"):
        discovered("Error: unable to establish a connection to the specified host: localhost\n")


def test_groups_are_told_by_number_and_name() -> None:
    assert groups(printed("group-list")) == {
        0: "DCGM_ALL_SUPPORTED_GPUS",
        1: "DCGM_ALL_SUPPORTED_NVSWITCHES",
        14: "somebody's own",
    }
    assert groups("No groups found. Please create one. \n") == {}
    assert created_group('Successfully created group "mine" with a group ID of 27\n') == 27
    assert (
        created_group("Error: Cannot create group mine. Return: Max limit reached for the object\n") is None
    )


def rows(stream: Stream, name: str) -> list[StreamRow]:
    return [row for line in printed(name).splitlines() if (row := stream.row(line)) is not None]


def test_a_stream_is_read_by_the_names_of_its_repeated_header() -> None:
    stream = Stream()
    found = rows(stream, "stream")
    assert [row.gpu_id for row in found] == [0, 12, 0, 12, 0]
    assert found[0].values == {"SMACT": None, "TENSO": None, "DRAMA": None}
    assert found[2].values == {"SMACT": 0.812, "TENSO": 0.433, "DRAMA": 0.301}
    assert found[3].values["DRAMA"] is None
    assert stream.said == "dmon was stopped do to receiving a signal"
    assert rows(Stream(), "stream-old") == [StreamRow(1, {"SMACT": 0.25, "TENSO": 0.125, "POWER": 97.5})]


def test_a_stream_without_rows_of_whole_gpus_says_why() -> None:
    stream = Stream()
    assert rows(stream, "stream-slices") == []
    assert stream.said == "'GPU-I 3   0.310        0.125' is of a slice of a GPU (MIG); expected whole GPUs"
    stream = Stream()
    assert rows(stream, "stream-refused") == []
    assert stream.said
    assert stream.said.startswith("Error setting watches. Result: -33")


def test_an_error_counts_more_than_the_prose_before_it() -> None:
    stream = Stream()
    for line in (
        "some prose",
        "Error: bad",
        "more prose",
        "#Entity   SMACT",
        "ID",
        "GPU 0  oops",
        "GPU 0  0.5",
    ):
        row = stream.row(line)
    assert row == StreamRow(0, {"SMACT": 0.5})
    assert stream.said == "Error: bad"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("Return: Host engine is running as non-root.", Status.PERMISSION_DENIED),
        ("DCGM_ST_REQUIRES_ROOT", Status.PERMISSION_DENIED),
        ("Return: No permission", Status.PERMISSION_DENIED),
        ("Result: -6: Feature not supported", Status.UNSUPPORTED),
        ("This GPU is not supported by DCGM", Status.UNSUPPORTED),
        ("Return: This Job Id is in use. Please use another job Id.", Status.UNAVAILABLE),
        ("Unable to connect to host engine.", Status.UNAVAILABLE),
    ],
)
def test_errors_are_worth_what_they_say(said: str, status: Status) -> None:
    assert status_of(said) is status


def test_a_quote_holds_the_errors_and_no_more() -> None:
    assert (
        quote("All well\n\nError: one.\nThen  \nError:   two.\nError: three\n") == "Error: one.; Error: two."
    )
    assert quote("a\nb \n\n") == "b"
    assert quote("") == ""
