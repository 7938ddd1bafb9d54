"""Writing a table as CSV (full precision), Markdown and LaTeX (rounded)."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from tabulate import tabulate

from shardwatt.analysis.tablemodel import Field, Row, Table
from shardwatt.recordfiles import write_whole

#: Shown for what is not known; the CSV has an empty field instead.
UNKNOWN = "--"
#: Shown for a range without an upper end.
ENDLESS = "∞"

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    ENDLESS: r"$\infty$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write NAME.csv, NAME.md and NAME.tex into a folder, and return their paths.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"csv": as_csv(table), "md": as_markdown(table), "tex": as_latex(table)}
    paths = []
    for extension, text in texts.items():
        path = folder / f"{table.name}.{extension}"
        write_whole(text, path)
        paths.append(path)
    return paths


def as_csv(table: Table) -> str:
    """Numbers at full precision; an empty table is the column `note` with its note."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if table.rows:
        writer.writerow([field.name for field in table.fields])
        writer.writerows([[row.get(field.name) for field in table.fields] for row in table.rows])
    else:
        writer.writerows([["note"], [table.note]])
    return stream.getvalue()


def as_markdown(table: Table) -> str:
    """A pipe table under its title, with its note below."""
    parts = [f"### {table.title}"]
    if table.rows:
        cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in shown(table)]
        parts.append(
            tabulate(
                cells,
                headers=[field.label for field in table.shown_fields],
                tablefmt="pipe",
                colalign=alignment(table),
                disable_numparse=True,
            )
        )
    parts.append(table.shown_note)
    return "\n\n".join(parts) + "\n"


def as_latex(table: Table) -> str:
    r"""A `table` float with booktabs rules; wants \usepackage{booktabs}."""
    label = table.name.removeprefix("table-")
    head = [r"\begin{table}", r"\centering", rf"\caption{{{latex(table.title)}. {latex(table.shown_note)}}}"]
    head.append(rf"\label{{tab:shardwatt-{label}}}")
    if not table.rows:
        return "\n".join([*head, r"\end{table}"]) + "\n"
    columns = "".join("r" if side == "right" else "l" for side in alignment(table))
    lines = [
        " & ".join(latex(cell) for cell in row) + r" \\"
        for row in [[field.label for field in table.shown_fields], *shown(table)]
    ]
    body = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*head, *body]) + "\n"


def latex(text: str) -> str:
    """Text with every character that LaTeX would take for a command escaped; line breaks are spaces."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def shown(table: Table) -> list[list[str]]:
    """The cells of a table as rounded text."""
    fields = table.shown_fields
    return [[_shown(row, field) for field in fields] for row in table.rows]


def _shown(row: Row, field: Field) -> str:
    value = row.get(field.name)
    if value is None:
        return UNKNOWN
    if field.digits is None:
        return str(value)
    if value == math.inf:
        return ENDLESS
    digits = field.digits(row) if callable(field.digits) else field.digits
    return f"{value:z.{digits}f}"  # z: no sign before what is rounded to zero


def alignment(table: Table) -> list[str]:
    """Right for numbers, left for words."""
    sides = []
    for field in table.shown_fields:
        values = [row.get(field.name) for row in table.rows]
        number = all(value is None or isinstance(value, int | float) for value in values)
        sides.append("right" if number else "left")
    return sides
