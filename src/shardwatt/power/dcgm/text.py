"""What `dcgmi` prints: its tables and streams, its words for no value, and its errors.

It has no other output for these commands. Layouts from 2.1 to 4.6 are understood; what is not is refused and
quoted, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shardwatt.errors import ShardwattError
from shardwatt.readings import Status


class DcgmError(ShardwattError):
    """DCGM cannot be asked, or says nothing that can be used.

    Args:
        status: what a reading is worth for it.
        message: what was found, in DCGM's words where it gave some.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Value:
    """A number that DCGM gave, or why it gave none.

    Attributes:
        number: in the unit that was asked for; None where there is none.
        status: what a reading is worth without it; None where there is a number.
        said: DCGM's words, or what was wrong with them.
    """

    number: float | None
    status: Status | None
    said: str


#: DCGM's words for no value, small letters.
_NO_VALUES = {
    "not specified": Status.UNAVAILABLE,
    "not found": Status.UNAVAILABLE,
    "n/a": Status.UNAVAILABLE,
    "unknown": Status.UNAVAILABLE,
    "still running": Status.UNAVAILABLE,
    "has not started": Status.UNAVAILABLE,
    "not supported": Status.UNSUPPORTED,
    "insf. permission": Status.PERMISSION_DENIED,
}

_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(\S*)", re.I)

#: What DCGM's errors are worth, first match; anything else is `unavailable`.
_ERRORS = (
    (re.compile(r"non-?root|requires?[ _]root|permission", re.I), Status.PERMISSION_DENIED),
    (re.compile(r"not supported|unsupported|\bMIG\b", re.I), Status.UNSUPPORTED),
)

_LONGEST_QUOTE = 300


def quote(text: str) -> str:
    """What `dcgmi` said, on one line: its first lines of an error, or its last line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return "; ".join(errors[:2] or lines[-1:])[:_LONGEST_QUOTE]


def status_of(said: str) -> Status:
    """What a reading is worth after DCGM gave an error."""
    return next((status for pattern, status in _ERRORS if pattern.search(said)), Status.UNAVAILABLE)


def _value(cell: str, unit: str) -> Value:
    """Read one number of a cell, which may carry its unit."""
    text = " ".join(cell.split())
    if (status := _NO_VALUES.get(text.lower())) is not None:
        return Value(None, status, text)
    match = _NUMBER.fullmatch(text)
    # `dcgmi` cuts cells that are too long and ends them with dots: their number may be cut, too.
    if not match or match[2].lower() not in ("", unit.lower(), unit[:1].lower()):
        return Value(None, Status.UNAVAILABLE, f"found '{text}'; expected a number of {unit}")
    return Value(float(match[1]), None, text)


@dataclass(frozen=True, slots=True)
class Block:
    """One GPU of a job's statistics.

    Attributes:
        gpu_id: DCGM's number of the GPU.
        rows: cells by the name in front of them, without unit.
        units: units by name, as they stand there in brackets.
    """

    gpu_id: int
    rows: Mapping[str, str]
    units: Mapping[str, str]

    def number(self, name: str, unit: str) -> Value:
        """The number of a row.

        Args:
            name: e.g. `Energy Consumed`.
            unit: e.g. `Joules`, which a row must bear if it bears one.
        """
        cell = self._cell(name, unit)
        return cell if isinstance(cell, Value) else _value(cell, unit)

    def part(self, name: str, unit: str, which: str) -> Value:
        """One of `Avg`, `Max` and `Min` of a row."""
        cell = self._cell(name, unit)
        if isinstance(cell, Value):
            return cell
        if cell.lower() in _NO_VALUES:
            return _value(cell, unit)
        for entry in cell.split(","):
            label, _, rest = entry.partition(":")
            if label.strip().lower() == which.lower():
                return _value(rest, unit)
        return Value(None, Status.UNAVAILABLE, f"{name}: found '{cell}'; expected '{which}: NUMBER'")

    def _cell(self, name: str, unit: str) -> str | Value:
        if name not in self.rows:
            return Value(None, Status.UNAVAILABLE, f"dcgmi printed no line '{name}'")
        found = self.units.get(name, "")
        if found and found.lower() != unit.lower():
            return Value(None, Status.UNAVAILABLE, f"{name}: found ({found}); expected ({unit})")
        return self.rows[name]


_RULE = re.compile(r"[|+][-=]")
_HEADER = re.compile(r"GPU ID:\s*(\d+)")
_UNIT = re.compile(r"(.*?)\s*\(([^()]*)\)")


def _table_rows(text: str) -> Iterator[list[str]]:
    """Cells of the rows of tables, row by row; prose around tables is passed over.

    Raises:
        DcgmError: a row is torn.
    """
    for line in text.splitlines():
        row = line.strip()
        if not row.startswith("|") or _RULE.match(row):
            continue
        if len(row) < 2 or not row.endswith("|"):
            raise DcgmError(Status.UNAVAILABLE, f"dcgmi printed a torn row: '{row[:_LONGEST_QUOTE]}'")
        yield [cell.strip() for cell in row[1:-1].split("|")]


def job_statistics(text: str) -> list[Block]:
    """Read `dcgmi stats -v -j JOB`: a block for each GPU.

    Raises:
        DcgmError: there is none; it is the summary that is printed without `-v`, or another layout.
    """
    blocks: list[tuple[int, list[list[str]]]] = []
    for cells in _table_rows(text):
        if len(cells) == 1 and (match := _HEADER.fullmatch(cells[0])):
            blocks.append((int(match[1]), []))
        elif cells == ["Summary"]:
            raise DcgmError(
                Status.UNAVAILABLE, "dcgmi printed the 'Summary' of all GPUs; expected a block for each (-v)"
            )
        elif len(cells) == 2 and blocks:
            rows = blocks[-1][1]
            if rows and "" in cells:
                # A cell that was too long goes on below, beside an empty one.
                rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], cells, strict=True)]
            else:
                rows.append(cells)
        else:
            raise DcgmError(Status.UNAVAILABLE, f"dcgmi printed a row unknown here: '{' | '.join(cells)}'")
    if not blocks:
        raise DcgmError(status_of(text), f"dcgmi printed no statistics: {quote(text) or 'nothing at all'}")
    return [_block(gpu_id, rows) for gpu_id, rows in blocks]


def _block(gpu_id: int, cells: list[list[str]]) -> Block:
    rows: dict[str, str] = {}
    units: dict[str, str] = {}
    for label, cell in cells:
        # A star marks what belongs to a process; dashes set reasons of a slowdown apart.
        name = " ".join(label.replace("*", " ").removeprefix("Due to").lstrip(" -").split())
        if match := _UNIT.fullmatch(name):
            name = match[1]
        rows[name] = cell
        units[name] = match[2] if match else ""
    return Block(gpu_id, rows, units)


_UUID = re.compile(r"Device UUID:\s*(GPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})")


def discovered(text: str) -> dict[str, int]:
    """Read `dcgmi discovery -l`: DCGM's number of each GPU by its UUID in small letters.

    A GPU whose UUID DCGM cannot tell is left out; tables of switches and processors are passed over.

    Raises:
        DcgmError: there is no table of GPUs.
    """
    described: dict[int, str] = {}
    heading, current = "", None
    for cells in _table_rows(text):
        if cells[0].endswith("ID"):
            heading, current = cells[0], None
        elif heading == "GPU ID" and len(cells) == 2:
            current = int(cells[0]) if cells[0].isdecimal() else current
            if current is not None:
                described[current] = f"{described.get(current, '')} {cells[1]}"
    if not described:
        raise DcgmError(status_of(text), f"dcgmi found no GPUs: {quote(text) or 'it printed nothing'}")
    found = {gpu_id: _UUID.search(words) for gpu_id, words in described.items()}
    return {match[1].lower(): gpu_id for gpu_id, match in found.items() if match}


def created_group(text: str) -> int | None:
    """Read `dcgmi group -c`: the new group's number; None if there is none."""
    match = re.search(r"group ID of (\d+)", text)
    return int(match[1]) if match else None


def groups(text: str) -> dict[int, str]:
    """Read `dcgmi group -l`: names of the groups by number."""
    names: dict[int, str] = {}
    number = None
    for cells in _table_rows(text):
        label = cells[0].removeprefix("->").strip()
        if len(cells) != 2:
            continue
        if label == "Group ID" and cells[1].isdecimal():
            number = int(cells[1])
        elif label == "Group Name" and number is not None:
            names[number] = cells[1]
    return names


_STREAM_ROW = re.compile(r"(GPU(?:-C?I)?)\s+(\d+)\s+(\S.*)")


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One line of `dcgmi dmon`: a GPU's values by the short names of their fields; None for `N/A`."""

    gpu_id: int
    values: dict[str, float | None]


@dataclass
class Stream:
    """The lines of `dcgmi dmon`, read one by one.

    Attributes:
        said: the first line that is neither header nor row: an error, if there was one.
    """

    said: str | None = None
    _columns: list[str] = field(default_factory=list)
    _after_header: bool = False

    def row(self, line: str) -> StreamRow | None:
        """Read a line; None for all that is no row of a whole GPU."""
        text = line.strip()
        is_units, self._after_header = self._after_header and text[:2].upper() == "ID", False
        if not text or is_units:
            return None
        if text.startswith("#"):
            # Repeated every so many rows; `# Entity` until 2.2, `#Entity` since.
            self._columns = text.lstrip("# ").split()[1:]
            self._after_header = True
            return None
        match = _STREAM_ROW.fullmatch(text)
        numbers = [_value(value, "share") for value in match[3].split()] if match else []
        is_understood = all(one.number is not None or one.said.upper() == "N/A" for one in numbers)
        if match is None or len(numbers) != len(self._columns) or not is_understood:
            self._pass_over(text)
            return None
        if match[1] != "GPU":
            self._pass_over(f"'{text}' is of a slice of a GPU (MIG); expected whole GPUs")
            return None
        values = {name: one.number for name, one in zip(self._columns, numbers, strict=True)}
        return StreamRow(int(match[2]), values)

    def _pass_over(self, text: str) -> None:
        if self.said is None or ("error" in text.lower() and "error" not in self.said.lower()):
            self.said = text[:_LONGEST_QUOTE]
