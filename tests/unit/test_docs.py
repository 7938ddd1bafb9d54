"""Guards the documentation: what it names is there, what is there it names, its examples are valid."""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import yaml
from pydantic import BaseModel

from shardwatt.analysis.survey import State
from shardwatt.cli import commands
from shardwatt.dag import Planner
from shardwatt.datasets import Catalogue
from shardwatt.errors import Reason
from shardwatt.matrix import expand
from shardwatt.models import Recipe
from shardwatt.schemas import with_key_tables
from shardwatt.shapes import Shapes
from shardwatt.site import Site, load_site
from shardwatt.study import Study, load_study

ROOT = Path(__file__).parents[2]
LOCAL_SITE = ROOT / "profiles" / "local" / "site.yaml"
PAGES = [ROOT / "README.md", ROOT / "config" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: What tells a kind of file from the others in an example.
KINDS: dict[str, type[BaseModel]] = {
    "matrix": Study,
    "launcher": Site,
    "datasets": Catalogue,
    "mean_response_tokens": Recipe,
    "architectures": Shapes,
}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Fenced blocks of a page: language and content."""
    for match in _FENCE.finditer(text_of(page)):
        yield match[2], textwrap.dedent(match[3])


def prose(page: Path) -> str:
    return _FENCE.sub("", text_of(page))


def section(page: Path, heading: str) -> str:
    _, found, rest = text_of(page).partition(f"\n## {heading}\n")
    assert found, f"{name(page)} has no section '{heading}'"
    return rest.partition("\n## ")[0]


def first_cells(table: str) -> list[list[str]]:
    """The codes in the first column of a table's rows."""
    return [
        re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("|")
    ]


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def said_commands(page: Path) -> Iterator[list[str]]:
    """Words of each `shardwatt …` command in a page's code."""
    code = [
        line for language, block in blocks(page) if language in ("", "bash") for line in block.splitlines()
    ]
    code += re.findall(r"`([^`\n]+)`", prose(page))
    for line in code:
        words = shlex.split(line, comments=True) if line.startswith("shardwatt ") else []
        if words:
            yield words[1:]


def test_every_reason_for_failing_is_explained_and_no_other() -> None:
    page = ROOT / "docs" / "troubleshooting.md"
    codes = list(itertools.chain(*first_cells(section(page, "Reasons of failed cells"))))
    assert codes == [str(reason) for reason in Reason]


def test_every_state_of_a_cell_is_explained_and_no_other() -> None:
    page = ROOT / "docs" / "troubleshooting.md"
    states = set(itertools.chain(*first_cells(section(page, "Outcomes"))))
    assert states == {str(state) for state in State}


def test_every_reason_of_the_survey_is_explained() -> None:
    source = (ROOT / "src" / "shardwatt" / "analysis" / "survey.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'"((?:[a-z]+_)+[a-z]+)"', source)) - {str(state) for state in State}
    assert {"no_end", "other_constants", "wrong_cell"} <= codes
    explained = section(ROOT / "docs" / "troubleshooting.md", "Outcomes")
    assert [code for code in sorted(codes) if f"`{code}`" not in explained] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_and_picture_is_there(page: Path) -> None:
    missing = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_exists_with_its_options(page: Path) -> None:
    for words in said_commands(page):
        command: click.Command | None = commands
        rest = iter(words)
        while isinstance(command, click.Group) and (word := next(rest, None)) is not None:
            command = command.commands.get(word)
        assert command is not None, f"{name(page)}: shardwatt {' '.join(words)}"
        known = {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        assert {word for word in words if word.startswith("--")} <= known, f"{name(page)}: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_said_for_a_site_that_has_what_its_study_needs(page: Path) -> None:
    """As it is typed: without a site in its words or above it, profiles/local/site.yaml is meant."""
    studies = {path.stem for path in (ROOT / "config" / "studies").glob("*.yaml")}
    for language, block in blocks(page):
        exported = str(LOCAL_SITE)
        for line in block.splitlines() if language in ("", "bash") else ():
            if line.startswith("export SHARDWATT_SITE="):
                (exported,) = shlex.split(line.partition("=")[2], comments=True)
            elif line.startswith("shardwatt "):
                words = shlex.split(line, comments=True)
                site_file = words[words.index("--site") + 1] if "--site" in words else exported
                for study in studies & set(words):
                    site = load_site([ROOT / site_file])
                    assert expand(ROOT, study, load_study(ROOT, study), site, with_models=False), line


def test_commands_are_found_in_the_pages() -> None:
    said = {words[0] for page in PAGES for words in said_commands(page)}
    assert {"cells", "report", "fetch"} <= said


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_target_of_make_exists(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE)) <= known


def examples() -> list[Any]:
    found = []
    for page in PAGES:
        contents = [content for language, content in blocks(page) if language == "yaml"]
        for number, content in enumerate(contents, start=1):
            found.append(pytest.param(page, content, id=f"{name(page)}-{number}"))
    return found


@pytest.mark.parametrize(("page", "content"), examples())
def test_every_example_is_a_valid_file(page: Path, content: str) -> None:
    entries = yaml.safe_load(content)
    kinds = [model for key, model in KINDS.items() if key in entries]
    assert len(kinds) == 1, f"{name(page)}: an example of no kind, or of two: {', '.join(entries)}"
    read = kinds[0].model_validate(entries)
    if isinstance(read, Study):
        site = load_site([LOCAL_SITE])
        if all(gpu in site.gpus for block in read.matrix for gpu in block.gpu):
            assert expand(ROOT, "example", read, site)


def test_the_readme_has_an_example_of_a_study_and_of_a_site() -> None:
    read = [set(yaml.safe_load(content)) for language, content in blocks(PAGES[0]) if language == "yaml"]
    assert any("matrix" in keys for keys in read)
    assert any("launcher" in keys for keys in read)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_schema_that_an_example_names_is_there(page: Path) -> None:
    schemas = {path.name for path in (ROOT / "workflow" / "schemas").iterdir()}
    for schema in re.findall(r"\$schema=(\S+)", text_of(page)):
        assert Path(schema).name in schemas


def test_the_rule_graph_has_every_rule() -> None:
    drawn = next(content for language, content in blocks(ROOT / "README.md") if language == "mermaid")
    nodes = set(re.findall(r"[a-z_]+(?=\[| -->|$)", drawn, re.MULTILINE)) - {""}
    rules = {
        rule
        for path in (ROOT / "workflow" / "rules").glob("*.smk")
        for rule in re.findall(r"^rule (\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert nodes == rules


def test_the_tables_of_keys_are_what_the_models_say() -> None:
    page = text_of(ROOT / "config" / "README.md")
    assert with_key_tables(page) == page, "run `shardwatt schemas`"


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="keys of study: begin"):
        with_key_tables("# Configuration\n")


def test_first_light_shows_every_figure_of_its_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARDWATT_MODELS", raising=False)
    figures = Planner(ROOT, ROOT, [str(LOCAL_SITE)]).figure_names("first-light")
    shown = re.findall(r"\(images/first-light/(.+)\.png\)", text_of(ROOT / "docs" / "first-light.md"))
    assert sorted(shown) == sorted(figures)


def test_first_light_shows_its_cells() -> None:
    _, _, rest = text_of(ROOT / "docs" / "first-light.md").partition("<!-- first-light table -->\n")
    assert rest.startswith("|"), "fill in the table of its cells"
