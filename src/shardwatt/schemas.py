"""JSON schemas of the files that users write, for editors; tables of their keys, for config/README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shardwatt import datasheets
from shardwatt.cell import STUDY_PATTERN
from shardwatt.datasets import Catalogue, Dataset
from shardwatt.models import Recipe
from shardwatt.shapes import Shape, Shapes
from shardwatt.site import GpuType, Site, SlurmWords
from shardwatt.sitepeak import Peak
from shardwatt.siteplan import Calibration, Carbon, LinkFigures, Prices
from shardwatt.study import Block, Study

#: The model behind each kind of file.
SCHEMA_MODELS: dict[str, type[BaseModel]] = {
    "study": Study,
    "site": Site,
    "datasets": Catalogue,
    "recipe": Recipe,
    "architectures": Shapes,
}


def schema(kind: str) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a kind of file; titles and descriptions are the models' own."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SCHEMA_MODELS[kind].model_json_schema(),
    }


def schema_file(root: Path, kind: str) -> Path:
    """Where the schema of a kind of file lies below the project's root."""
    return root / "workflow" / "schemas" / f"{kind}.schema.json"


def schema_text(kind: str) -> str:
    """The contents of a schema's file."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def write_schemas(root: Path) -> list[Path]:
    """Write every schema's file, and return their paths.

    Raises:
        OSError: workflow/schemas cannot be written.
    """
    paths = []
    for kind in SCHEMA_MODELS:
        path = schema_file(root, kind)
        path.write_text(schema_text(kind), encoding="utf-8")
        paths.append(path)
    return paths


#: The models whose keys config/README.md lists, by the name in its markers.
KEY_TABLES: dict[str, type[BaseModel]] = {
    "study": Study,
    "block": Block,
    "site": Site,
    "gpu": GpuType,
    "peak": Peak,
    "slurm": SlurmWords,
    "link": LinkFigures,
    "prices": Prices,
    "carbon": Carbon,
    "calibration": Calibration,
    "dataset": Dataset,
    "recipe": Recipe,
    "architecture": Shape,
}

#: Lower and upper bounds in a JSON schema, and how they are said.
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
}


def key_table(name: str) -> str:
    """The keys of a kind of file as a Markdown table: key, value, default, meaning."""
    fields = KEY_TABLES[name].model_fields
    properties = KEY_TABLES[name].model_json_schema()["properties"]
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, node in properties.items():
        default = "needed" if fields[key].is_required() else _written(node.get("default"))
        meaning = " ".join(node["description"].split())
        lines.append(f"| `{key}` | {_value(node)} | {default} | {meaning} |")
    return "\n".join(lines)


def with_key_tables(page: str) -> str:
    """A page with every table of keys, and that of data sheets, between its two markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    for name in KEY_TABLES:
        page = with_generated(page, f"keys of {name}", key_table(name))
    return with_generated(page, "data sheets", datasheets.markdown())


def with_generated(page: str, name: str, text: str) -> str:
    """A page with what stands between the two markers of this name replaced.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name}: begin (generated) -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected the lines {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def write_key_tables(root: Path) -> Path:
    """Bring the tables of config/README.md up to date, and return its path.

    Raises:
        OSError: it is not there, or cannot be written.
        ValueError: it lacks a marker.
    """
    path = root / "config" / "README.md"
    path.write_text(with_key_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def _value(node: Mapping[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema."""
    if choices := [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]:
        words = [_value(choice) for choice in choices]
        if words[1:] == [f"list: {words[0]}"]:
            return f"{words[0]}; or a list"
        return " or ".join(words)
    if "const" in node or "enum" in node:
        return " or ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "array":
        return f"list: {_value(node['items'])}"
    if kind in ("integer", "number"):
        words = ["whole number" if kind == "integer" else "number"]
        words += [f"{word} {node[bound]}" for bound, word in _BOUNDS.items() if bound in node]
        return " ".join(words).replace(str(2**63), "2^63")
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "string":
        is_name = node.get("pattern") == f"^{STUDY_PATTERN}$"
        return "name" if is_name else "path" if node.get("format") == "path" else "text"
    return "keys and values"


def _written(default: object) -> str:
    """A default as a user would write it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, list):
        return ", ".join(_written(item) for item in default) or "empty"
    return f"`{default}`"
