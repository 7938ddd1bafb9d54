"""Guards the JSON schemas: they are the models', and they accept the project's own files and no mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from shardwatt.schemas import SCHEMA_MODELS, schema, schema_file, schema_text, write_schemas
from small_project import BLOCK, blocks, site_content, study_content

ROOT = Path(__file__).parents[2]

FILES = {
    "study": sorted((ROOT / "config" / "studies").glob("*.yaml")),
    "recipe": sorted((ROOT / "config" / "models").glob("*.yaml")),
    "datasets": [ROOT / "config" / "datasets.yaml"],
    "site": sorted((ROOT / "profiles").glob("*/site.yaml")),
    "architectures": [ROOT / "config" / "architectures.yaml"],
}


def mistakes(kind: str, content: object) -> list[str]:
    """Places that an editor would underline."""
    validator = jsonschema.Draft202012Validator(schema(kind))
    return [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(content)]


@pytest.mark.parametrize("kind", sorted(SCHEMA_MODELS))
def test_the_files_are_what_the_models_say(kind: str) -> None:
    found = schema_file(ROOT, kind).read_text(encoding="utf-8")
    assert found == schema_text(kind), "run `make schemas`"


def test_the_command_writes_every_schema(tmp_path: Path) -> None:
    (tmp_path / "workflow" / "schemas").mkdir(parents=True)
    paths = write_schemas(tmp_path)
    assert [path.name for path in paths] == [f"{kind}.schema.json" for kind in SCHEMA_MODELS]
    assert {path.name for path in paths} == {path.name for path in (ROOT / "workflow" / "schemas").iterdir()}


@pytest.mark.parametrize("kind", sorted(SCHEMA_MODELS))
def test_a_schema_is_valid_and_says_what_every_key_is(kind: str) -> None:
    content = schema(kind)
    jsonschema.Draft202012Validator.check_schema(content)
    for model in [content, *content.get("$defs", {}).values()]:
        assert model["description"]
        for key, value in model.get("properties", {}).items():
            assert value.get("description"), f"{model['title']}.{key} has no docstring"


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, paths in FILES.items() for path in paths], ids=str
)
def test_the_projects_own_files_are_valid_and_name_their_schema(kind: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert mistakes(kind, yaml.safe_load(text)) == []
    comment = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert comment, f"{path}: the first line tells editors the schema"
    assert (path.parent / comment[1]).resolve() == schema_file(ROOT, kind)


def test_each_kind_of_file_is_looked_at() -> None:
    assert set(FILES) == set(SCHEMA_MODELS)
    assert all(FILES.values())


@pytest.mark.parametrize(
    "changes",
    [
        blocks(shards=["minimum", 8], cap=["none", 175], dataset=["alpaca", "gsm8k"]),
        {"exclude": [{"batch": 512, "gpu": ["v100", "a100"]}]},
        {"cache_tokens": 512},
        {"unfit": "run", **blocks(batch=["maximum", 64], unfit="leave-out")},
    ],
)
def test_what_the_model_takes_is_not_underlined(changes: dict[str, Any]) -> None:
    content = study_content(**changes)
    SCHEMA_MODELS["study"].model_validate(content)
    assert mistakes("study", content) == []


def test_a_study_has_cells_of_its_own_or_rehearses_another_one() -> None:
    assert mistakes("study", {"title": "A rehearsal", "rehearses": "paper"}) == []
    assert mistakes("study", {"title": "Nothing to do"}) == [""]
    assert mistakes("study", {"title": "No cells", "prompts": 8}) == [""]
    assert mistakes("study", {"rehearses": "paper"}) == [""]


@pytest.mark.parametrize(
    ("kind", "content", "place"),
    [
        ("study", study_content(promts=3), ""),
        ("study", study_content(prompts=0), "prompts"),
        ("study", study_content(matrix=[]), "matrix"),
        ("study", study_content(matrix=[{**BLOCK, "modle": "x"}]), "matrix.0"),
        ("study", study_content(**blocks(model="Llama 65B")), "matrix.0.model"),
        ("study", study_content(**blocks(shards=0)), "matrix.0.shards"),
        ("study", study_content(**blocks(shards="minimun")), "matrix.0.shards"),
        ("study", study_content(**blocks(precision="fp8")), "matrix.0.precision"),
        ("study", study_content(**blocks(batch="minimum")), "matrix.0.batch"),
        ("study", study_content(unfit="skip"), "unfit"),
        ("architectures", {"architectures": {"x": {"dim": 0}}}, "architectures.x.dim"),
        ("site", site_content(Path("here"), launcher="lokal"), "launcher"),
        ("site", site_content(Path("here"), gpus={}), "gpus"),
        ("datasets", {"datasets": {"x": {"format": "gsm8k", "file": "../x"}}}, "datasets.x.file"),
    ],
)
def test_a_mistake_is_underlined_where_it_stands(kind: str, content: object, place: str) -> None:
    assert place in mistakes(kind, content)
