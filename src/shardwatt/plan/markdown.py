"""The plan of a study as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardwatt.plan.sentences import DOES_NOT_FIT
from shardwatt.plan.table import Plan
from shardwatt.plan.view import Head, Section, View, view


def as_markdown(plan: Plan) -> str:
    """Totals first, then a table for each section of cells, then what is assumed."""
    return "\n\n".join(_parts(plan, view(plan))) + "\n"


def _parts(plan: Plan, shown: View) -> Iterator[str]:
    yield f"# Plan of {_safe(plan.study)}"
    yield _safe(f"{plan.title}.")
    yield _safe(f"{shown.summary}. {shown.standing}")
    for text in shown.warnings:
        yield f"**Warning:** {_safe(text)}"
    if shown.common:
        yield f"All cells: {' '.join(f'`{one}`' for one in shown.common)}"
    if shown.sections:
        yield "## Totals"
        sums = [[f"{number or ''}", name, *texts] for number, name, texts in shown.sums.lines]
        yield _table(["block", "", *map(_head, shown.sums.heads)], 2, sums)
        yield "## Cells"
    for section in shown.sections:
        if not section.axes and not shown.heads:
            continue
        if section.name or section.interval:
            yield ". ".join(
                filter(None, (f"**{section.name}**" if section.name else "", section.interval or ""))
            )
        yield _cells(shown, section)
    if shown.remarks:
        yield "\n".join(f"- {_safe(text)}" for text in shown.remarks)
    if shown.notes:
        yield "## Notes"
        yield "\n".join(f"- {_safe(text)}" for text in shown.notes)


def _cells(shown: View, section: Section) -> str:
    rows = []
    for line in section.lines:
        texts = [text.strip() for text in line.texts]
        if not line.runs and "" in texts:
            texts[texts.index("")] = DOES_NOT_FIT
        elif not line.runs:  # no cell takes anything: there is no column but of memory
            texts[-1] += f", {DOES_NOT_FIT}"
        rows.append([*line.axes, *texts])
    return _table([*section.axes, *map(_head, shown.heads)], len(section.axes), rows)


def _head(head: Head) -> str:
    return f"{head.name} ({head.unit})" if head.unit else head.name


def _table(heads: Sequence[str], names: int, rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; the first columns hold names, the others numbers."""
    rule = [*["---"] * names, *["---:"] * (len(heads) - names)]
    lines = [heads, rule, *([_safe(text.strip()) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """Text that Markdown shows as it stands: what people write in a study is no markup."""
    for sign in "\\*<>|[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
