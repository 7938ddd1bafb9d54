"""Guards a cell's Parquet files: one schema each, held when they are written and when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardwatt.cellfiles import SCHEMAS, Column, read_table, write_columns, write_table
from shardwatt.errors import RecordError
from shardwatt.layout import CELL_FILES

RESPONSE: dict[str, Any] = {
    "prompt_id": "gsm8k-1",
    "batch": 0,
    "prompt_tokens": 5,
    "output_tokens": 3,
    "words": 2,
    "finish": "eos",
    "text": "<b>ä\0\n",
}
SAMPLE: dict[str, Any] = {"t_s": -0.5, "node": "n1", "device": 0, "power_w": 250.0}


def refusal(path: Path) -> str:
    with pytest.raises(RecordError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_every_table_of_a_cell_has_a_schema_with_units() -> None:
    assert set(SCHEMAS) == set(CELL_FILES) - {"result.json"}
    for schema in SCHEMAS.values():
        assert all(field.metadata[b"unit"] for field in schema)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_an_empty_table_keeps_its_columns(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name, [])
    table = read_table(tmp_path / name)
    assert table.num_rows == 0
    assert table.schema.equals(SCHEMAS[name])


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_table(tmp_path / "responses.parquet", [RESPONSE, {**RESPONSE, "text": ""}])
    assert read_table(tmp_path / "responses.parquet").to_pylist() == [RESPONSE, {**RESPONSE, "text": ""}]


def test_what_a_sensor_did_not_give_is_null_and_not_zero(tmp_path: Path) -> None:
    write_table(tmp_path / "power.parquet", [SAMPLE])
    row = read_table(tmp_path / "power.parquet").to_pylist()[0]
    assert row["power_w"] == 250
    assert [key for key, value in row.items() if value is None] == [
        *("uuid", "power_average_w", "counter_j", "sm_utilisation", "memory_activity", "memory_filled"),
        *("cpu_utilisation", "clock_sm_mhz", "clock_memory_mhz", "temperature_c", "throttle_reasons"),
    ]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("responses.parquet", {**RESPONSE, "prompt_id": None}),
        ("responses.parquet", {key: value for key, value in RESPONSE.items() if key != "words"}),
        ("responses.parquet", {**RESPONSE, "batch": 2**40}),
        ("responses.parquet", {**RESPONSE, "output_tokens": "3"}),
        ("power.parquet", {**SAMPLE, "power": 250.0}),
    ],
)
def test_a_row_that_does_not_fit_the_schema_is_not_written(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    with pytest.raises((pa.ArrowException, OverflowError)):
        write_table(tmp_path / name, [row])


def columns(device: int = 0, rows: int = 3) -> dict[str, Column]:
    """Columns of power.parquet in which every second value is unknown but for times."""
    values: dict[str, Column] = {
        name: np.where(np.arange(rows) % 2, np.nan, 4.0) for name in SCHEMAS["power.parquet"].names
    }
    told: dict[str, Column] = {
        "t_s": np.arange(rows, dtype=np.float64) - 0.5,
        "node": "n1",
        "device": device,
        "uuid": None,
    }
    return values | told


def test_columns_are_written_part_after_part_as_rows_would_be(tmp_path: Path) -> None:
    parts = [columns(0), {**columns(1), "uuid": "GPU-1"}, columns(2, rows=0)]
    (tmp_path / "rows").mkdir()
    rows = [
        {
            name: column if not isinstance(column, np.ndarray) else None if np.isnan(at) else at
            for name, column in part.items()
            for at in [column[place] if isinstance(column, np.ndarray) else np.nan]
        }
        for part in parts
        for place in range(len(np.asarray(part["t_s"])))
    ]
    write_table(tmp_path / "rows" / "power.parquet", rows)
    write_columns(tmp_path / "power.parquet", parts)
    table = read_table(tmp_path / "power.parquet")
    assert table.num_rows == 6
    assert table.equals(read_table(tmp_path / "rows" / "power.parquet"))
    assert table.column("throttle_reasons").to_pylist() == [4, None, 4] * 2
    assert table.column("uuid").to_pylist() == [None] * 3 + ["GPU-1"] * 3


def test_no_parts_are_an_empty_table(tmp_path: Path) -> None:
    write_columns(tmp_path / "power.parquet", [])
    assert read_table(tmp_path / "power.parquet").num_rows == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"power": np.zeros(3)},
        {"node": None},
        {"t_s": np.full(3, np.nan)},
        {"throttle_reasons": np.full(3, 0.5)},
        {"device": "0x"},
    ],
)
def test_columns_that_do_not_fit_the_schema_are_not_written(tmp_path: Path, wrong: dict[str, Column]) -> None:
    with pytest.raises(pa.ArrowException):
        write_columns(tmp_path / "power.parquet", [columns() | wrong])


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "power.parquet").startswith("torn or unreadable: ")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_torn_table_is_refused_wherever_it_ends(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "responses.parquet"
    write_table(path, [RESPONSE] * 100)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert refusal(path).startswith("torn or unreadable: ")


def test_a_table_with_other_columns_is_refused_by_column(tmp_path: Path) -> None:
    path = tmp_path / "responses.parquet"
    schema = SCHEMAS[path.name]
    other = schema.remove(schema.get_field_index("words")).append(pa.field("letters", pa.int32()))
    pq.write_table(other.empty_table(), path)
    assert refusal(path) == ("unexpected columns: letters int32 or null; missing columns: words int32")


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "power.parquet"
    schema = SCHEMAS[path.name]
    position = schema.get_field_index("power_w")
    pq.write_table(schema.set(position, pa.field("power_w", pa.int64())).empty_table(), path)
    assert refusal(path) == (
        "unexpected columns: power_w int64 or null; missing columns: power_w double or null"
    )


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.parquet"
    fields = list(SCHEMAS[path.name])
    schema = pa.schema([fields[1], fields[0], *fields[2:]], metadata=SCHEMAS[path.name].metadata)
    pq.write_table(schema.empty_table(), path)
    assert refusal(path).startswith("columns in the order batch, prompt_id, prompt_tokens")


@pytest.mark.parametrize(("metadata", "found"), [({"schema_version": "1"}, "1"), (None, "none")])
def test_the_same_columns_under_another_schema_version_are_refused(
    tmp_path: Path, metadata: dict[str, str] | None, found: str
) -> None:
    path = tmp_path / "batches.parquet"
    pq.write_table(SCHEMAS[path.name].with_metadata(metadata).empty_table(), path)
    assert refusal(path) == f"schema version {found}; expected 4"
