"""The report: self-contained, escaped, and complete at any moment."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shardwatt.analysis.aggregate import read_cells
from shardwatt.analysis.build import build_all, build_cells, build_figures, build_report, build_tables
from shardwatt.analysis.report import Commands
from shardwatt.analysis.summary import SIGNS, cell_map
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tables import TABLES
from shardwatt.cell import Cell
from shardwatt.errors import RecordError, ShardwattError
from shardwatt.layout import CellPaths
from shardwatt.locks import alone
from shardwatt.readings import Status
from shardwatt.study import Block, Study
from synthetic_cells import (
    CONSTANTS,
    STUDY,
    Numbers,
    make_cell,
    write_does_not_fit,
    write_failed,
    write_ok,
    write_torn,
)

EVIL = "</pre><script>alert('owned')</script><img src=x onerror=alert(1)> & \"quotes\""
_BLOCK = Block(model="llama-7b", gpu="v100", shards=1, batch=4, length=256, dataset="alpaca")
SYNTHETIC = Study(title="A study of <made-up> cells", matrix=[_BLOCK], **CONSTANTS.model_dump())


class _Elements(HTMLParser):
    """Tags with their attributes, in order, and whether every tag was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a cell in every state but `outdated`, and its report; returns the base folder."""
    base = tmp_path_factory.mktemp("mixed study")  # a path with a space
    cells = [make_cell(batch=batch) for batch in (1, 2, 4, 5, 10)]
    write_ok(base, cells[0], Numbers(status=Status.ESTIMATED, text=EVIL))
    write_does_not_fit(base, cells[1])
    write_failed(base, cells[2], message="rank 0 said <b>no</b>")
    write_torn(base, cells[3])
    build_all(base, STUDY, SYNTHETIC, survey(base, STUDY, cells, CONSTANTS), base / "out")
    return base


def _html(base: Path) -> str:
    return (base / "out" / "report.html").read_text(encoding="utf-8")


def test_of_two_who_build_one_folder_the_second_waits(tmp_path: Path) -> None:
    """Or figures of one state of the study would stand beside the table of another."""
    out, states = tmp_path / "out", survey(tmp_path, STUDY, [make_cell()], CONSTANTS)
    with ThreadPoolExecutor() as pool:
        with alone(out / ".lock"):
            second = pool.submit(build_all, tmp_path, STUDY, SYNTHETIC, states, out)
            with pytest.raises(TimeoutError):
                second.result(timeout=2)
            assert [path.name for path in out.iterdir()] == [".lock"]
        second.result()
    assert (out / "report.html").is_file()


def test_everything_is_built_from_what_there_is(mixed: Path) -> None:
    out = mixed / "out"
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "cells.csv",
        "cells.parquet",
        "devices.csv",
        "devices.parquet",
        "figures",
        "report.html",
        "tables",
    }
    assert len(list((out / "figures").iterdir())) == 6 * 3
    assert len(list((out / "tables").iterdir())) == len(TABLES) * 3


def test_text_from_models_and_messages_is_escaped(mixed: Path) -> None:
    html = _html(mixed)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;owned&#39;)" in html
    assert "rank 0 said &lt;b&gt;no&lt;/b&gt;" in html
    assert "A study of &lt;made-up&gt; cells" in html
    elements = _Elements(html)
    assert not elements.open, "every element is closed"
    assert not [attrs for _, attrs in elements.found if any(name.startswith("on") for name in attrs)]


def test_nothing_is_loaded_from_elsewhere(mixed: Path) -> None:
    html = _html(mixed)
    for tag, attrs in _Elements(html).found:
        assert tag not in ("link", "script", "iframe", "object")
        if tag == "img":
            assert (attrs["src"] or "").startswith("data:image/svg+xml;base64,")
        if tag == "a":
            target = attrs["href"] or ""
            assert target.startswith("#") or (mixed / "out" / target).is_file()
    assert "@import" not in html
    assert "url(" not in html


def test_embedded_figures_are_the_files_and_have_words_for_those_who_cannot_see(mixed: Path) -> None:
    images = [attrs for tag, attrs in _Elements(_html(mixed)).found if tag == "img"]
    assert len(images) == 5
    assert all(len(attrs["alt"] or "") > 60 for attrs in images)
    first = base64.b64decode((images[0]["src"] or "").split(",", 1)[1])
    assert first == (mixed / "out" / "figures" / "throughput.svg").read_bytes()


def test_every_bad_cell_is_named_with_reason_log_and_command(mixed: Path) -> None:
    html = _html(mixed)
    for reason in ("device_memory", "rank_died", "unreadable_record", "not_run"):
        assert f"<code>{reason}</code>" in html
    assert f"<code>shardwatt cells {STUDY} --remove-invalid</code>" in html
    assert str(mixed) not in html, "what is shared names no folder above the project's"
    path = make_cell(batch=4).path
    target = f"results/{STUDY}/cells/{path}/result.json"
    assert f"snakemake --profile profiles/local {target}" in html
    assert f"logs/{STUDY}/cells/{path}/rank-0.log" in html


def test_commands_are_typed_for_the_site_of_the_study(tmp_path: Path) -> None:
    cell = make_cell()
    write_torn(tmp_path, cell)
    build_cells(survey(tmp_path, STUDY, [cell], CONSTANTS), tmp_path / "out")
    commands = Commands("snakemake --profile profiles/slurm", " --site profiles/slurm/site.yaml")
    build_report(tmp_path, STUDY, SYNTHETIC, tmp_path / "out", commands=commands)
    html = _html(tmp_path)
    assert "profiles/local" not in html
    assert f"<code>snakemake --profile profiles/slurm results/{STUDY}/report.html</code>" in html
    assert f"<code>shardwatt cells {STUDY} --remove-invalid --site profiles/slurm/site.yaml</code>" in html


def test_records_of_cells_that_the_study_no_longer_has_are_named(tmp_path: Path) -> None:
    """As after an edit of the study, or of the memory that `minimum` and `maximum` go by."""
    cells = [make_cell(shards=shards) for shards in (1, 2, 4, 8, 16)]
    for cell in cells:
        write_ok(tmp_path, cell)
    for kept, others in ((5, ""), (3, ": 2, {4}, {3}"), (1, ": 4, {4}, {1}, {2}, …")):
        build_cells(survey(tmp_path, STUDY, cells[:kept], CONSTANTS), tmp_path / "out")
        build_report(tmp_path, STUDY, SYNTHETIC, tmp_path / "out")
        paths = [f"results/{STUDY}/cells/{cell.path}/result.json" for cell in cells]
        sentence = re.search("Records below .*and count nowhere(.*?)</p>", _html(tmp_path))
        assert (sentence[1] if sentence else "") == others.format(*paths)


def test_estimates_are_labelled_in_the_headlines(mixed: Path) -> None:
    html = _html(mixed)
    assert re.search(r'J/token <span class="tag">estimated</span>', html)
    assert "65 W TDP (data sheet)" in html, "constants of an estimate, with their source"


def test_partial_report_does_not_wait_for_figures(tmp_path: Path) -> None:
    cells = [make_cell()]
    build_cells(survey(tmp_path, STUDY, cells, CONSTANTS), tmp_path / "out")
    path = build_report(tmp_path, STUDY, SYNTHETIC, tmp_path / "out")
    html = path.read_text(encoding="utf-8")
    assert "No cell has run through yet." in html
    assert html.count("Not drawn yet.") == 5
    assert not _Elements(html).open


def test_report_is_made_although_responses_have_gone(tmp_path: Path) -> None:
    cell = make_cell()
    write_ok(tmp_path, cell)
    build_cells(survey(tmp_path, STUDY, [cell], CONSTANTS), tmp_path / "out")
    (CellPaths(tmp_path, STUDY, cell).results / "responses.parquet").unlink()
    path = build_report(tmp_path, STUDY, SYNTHETIC, tmp_path / "out")
    assert "Sample responses" not in path.read_text(encoding="utf-8")


def test_report_of_the_same_cells_is_the_same(mixed: Path, tmp_path: Path) -> None:
    again = build_report(mixed, STUDY, SYNTHETIC, mixed / "out")
    first = again.read_bytes()
    assert build_report(mixed, STUDY, SYNTHETIC, mixed / "out").read_bytes() == first


def test_single_steps_and_an_unknown_figure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RecordError, match="aggregate again"):
        build_tables(out)
    build_cells(survey(tmp_path, STUDY, [make_cell()], CONSTANTS), out)
    assert [path.name for path in build_figures(out, ["power"])] == ["power.svg", "power.pdf", "power.png"]
    with pytest.raises(ShardwattError, match="did you mean 'throughput'"):
        build_figures(out, ["troughput"])


def test_map_has_every_cell_once_with_its_outcome(mixed: Path) -> None:
    frame = read_cells(mixed / "out" / "cells.parquet")
    layout = cell_map(frame)
    (row,) = layout.rows
    assert [sign.outcome for signs in row[1] for sign in signs] == frame["outcome"].tolist()
    assert row[1][2][0].words.startswith("llama-7b, v100, 1 shard, alpaca, length 256, batch 4, repeat 1")
    assert sum(heading.span for heading in layout.headings[0]) == len(row[1])


def test_map_puts_cells_of_one_model_under_their_own_columns(tmp_path: Path) -> None:
    cells: list[Cell] = [make_cell(batch=5), make_cell(model="other", batch=4), make_cell(batch=5, repeat=2)]
    build_cells(survey(tmp_path, STUDY, cells, CONSTANTS), tmp_path / "out")
    layout = cell_map(read_cells(tmp_path / "out" / "cells.parquet"))
    assert [heading.text for heading in layout.headings[2]] == ["4", "5"]
    assert [[len(signs) for signs in places] for _, places in layout.rows] == [[0, 2], [1, 0]]
    assert {sign for sign, _ in SIGNS.values()} >= {"✓", "!"}


def test_a_report_of_simulated_cells_says_so_at_its_head_and_at_every_number(tmp_path: Path) -> None:
    cells = [make_cell(engine="simulated", batch=batch) for batch in (4, 5)]
    for cell in cells:
        write_ok(tmp_path, cell)
    build_all(tmp_path, STUDY, SYNTHETIC, survey(tmp_path, STUDY, cells, CONSTANTS), tmp_path / "out")
    html = _html(tmp_path)
    head, _, rest = html.partition("<nav")
    assert "(simulated)</title>" in head or "(simulated) ·" in head
    assert '<span class="tag">simulated</span> Simulated: no model ran' in head
    headlines = re.search(r'<ul class="headlines">(.*?)</ul>', rest, re.S)
    assert headlines is not None
    values = re.findall(r'<span class="value">(.*?)</span>', headlines[1], re.S)
    assert len(values) == 5
    assert all('class="tag">simulated' in value for value in values)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.S)
    assert captions
    assert all("(simulated)." in caption for caption in captions)
    assert all(
        "(simulated)" in title for title in re.findall(r"<h3>([^<]*(?:hardware|efficiency)[^<]*)</h3>", html)
    )
    assert "Sample responses" not in html, "nothing was answered"


def test_a_report_of_cells_that_ran_does_not_speak_of_simulation(mixed: Path) -> None:
    assert "imulated" not in re.sub(r"<style>.*?</style>", "", _html(mixed), flags=re.S)
