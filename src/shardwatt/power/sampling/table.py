"""Reading back what a sampler wrote, into arrays: hours of many devices are millions of samples.

Apart from the sampler's own modules, which do without numpy and pyarrow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from shardwatt.errors import RecordError
from shardwatt.power.curve import Array
from shardwatt.power.sampling.files import COLUMNS

#: What every sample has.
_ALWAYS = ("t_s", "device")


def read_samples(path: Path) -> dict[str, Array]:
    """Read a sampler's rows; NaN for unknown.

    A last line without its end, as a killed sampler leaves it, is dropped.

    Returns:
        each of COLUMNS -> [samples]

    Raises:
        RecordError: the file is missing, or a line is no sample.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise RecordError(f"{path}: torn or unreadable: {problem}") from None
    header, _, rest = content.partition(b"\n")
    if header.decode("ascii", errors="replace") != ",".join(COLUMNS):
        found = header.decode("ascii", errors="replace") or "of an empty file"
        raise RecordError(f"{path}: found the columns {found}; expected {COLUMNS}")
    whole = memoryview(rest)[: rest.rfind(b"\n") + 1]
    if not whole:
        return {name: np.empty(0) for name in COLUMNS}
    try:
        table = csv.read_csv(
            pa.py_buffer(whole),
            # Told in the order of the lines, so that the line of a mistake is known.
            csv.ReadOptions(column_names=list(COLUMNS), use_threads=False),
            csv.ParseOptions(ignore_empty_lines=False),
            csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.float64()), null_values=[""]),
        )
    except pa.ArrowInvalid as problem:
        raise RecordError(f"{path}: {problem}; expected {len(COLUMNS)} numbers in every line") from None
    columns = {name: table.column(name).to_numpy() for name in COLUMNS}
    for name in _ALWAYS:
        unknown = np.flatnonzero(~np.isfinite(columns[name]))
        if len(unknown):
            # The header is line 1.
            raise RecordError(f"{path}, line {unknown[0] + 2}: {name} is missing; expected a number")
    return columns
