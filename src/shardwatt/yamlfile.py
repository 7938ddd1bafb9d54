"""Reading a YAML file into a typed model, with one clear message for each mistake."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shardwatt.errors import ShardwattError, suggestion


class StrictModel(BaseModel):
    """Base of everything that a user writes: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, error: type[ShardwattError]) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        error: the file is missing, unreadable, no YAML, or no mapping.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: is no UTF-8 text") from None
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else "?"
        raise error(f"{path}, line {line}: no valid YAML: {problem.problem}") from None
    except yaml.YAMLError as problem:
        raise error(f"{path}: no valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise error(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def parse_model(
    model: type[Model], content: Mapping[str, Any], source: object, error: type[ShardwattError]
) -> Model:
    """Check a mapping against a typed model.

    Raises:
        error: one message that names the source, each wrong key, what was found and what is allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as problem:
        raise error(f"{source}: {explain(problem, model)}") from None


def explain(problem: ValidationError, model: type[BaseModel]) -> str:
    """Put a pydantic error into words: key, what was found, what is allowed."""
    return "; ".join(_explain_one(dict(detail), model) for detail in problem.errors())


def _explain_one(detail: dict[str, Any], model: type[BaseModel]) -> str:
    location = detail["loc"]
    key = ".".join(str(part) for part in location) or "the file"
    kind = detail["type"]
    found = _shown(detail.get("input"))
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"{key}: unknown key{suggestion(str(location[-1]), known)}; allowed: {', '.join(known)}"
    if kind == "missing":
        return f"{key}: is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{key}: found {found}: {message[0].lower()}{message[1:]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Keys allowed at a place in a model: follows lists and mappings of models."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(node, definitions)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return sorted(_resolve(node, definitions).get("properties", {}))


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for choice in node.get("anyOf", []):
        if "$ref" in choice:
            node = choice
    if "$ref" in node:
        resolved: dict[str, Any] = definitions[node["$ref"].rsplit("/", 1)[1]]
        return resolved
    return node
