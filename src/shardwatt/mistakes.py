"""What a typed model finds wrong, in a user's words: key, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from shardwatt.errors import suggestion

#: Longest text of a found value that is shown whole.
_SHOWN_CHARACTERS = 60

#: What is allowed, by the type that pydantic gives a mistake, from the mistake's own bounds.
_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "string_type": lambda _: "text; put it in quotes if it is meant so",
    "int_type": lambda _: "a whole number",
    "int_parsing": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "float_parsing": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "path_type": lambda _: "a path",
    "bool_type": lambda _: "true or false",
    "bool_parsing": lambda _: "true or false",
    "list_type": lambda _: "a list",
    "dict_type": lambda _: "keys and values",
    "model_type": lambda _: "keys and values",
    "invalid_key": lambda _: "keys that are text; put it in quotes if it is meant so",
    "too_short": lambda bounds: f"at least {_entries(bounds['min_length'])}",
    "greater_than": lambda bounds: f"more than {bounds['gt']:g}",
    "greater_than_equal": lambda bounds: f"at least {bounds['ge']:g}",
    "less_than": lambda bounds: f"less than {bounds['lt']}",
    "less_than_equal": lambda bounds: f"at most {bounds['le']}",
    "literal_error": lambda bounds: bounds["expected"],
    "enum": lambda bounds: bounds["expected"],
}


def explain(problem: ValidationError, model: type[BaseModel], content: object = None) -> str:
    """Put a pydantic error into words, one part a mistake; more than one stand on lines of their own.

    Args:
        problem: what pydantic found.
        model: the model that was asked for.
        content: what was read; keys are then named as they stand there.
    """
    by_key: dict[str, str] = {}
    for detail in problem.errors(include_url=False):
        location = detail["loc"]
        if content is not None:
            location = _written(location, content, is_missing=detail["type"] == "missing")
        # A value that fits no member of a union is found wrong once for each; the first says enough.
        by_key.setdefault(_dotted(location), _explain_one(dict(detail), location, model))
    parts = list(by_key.values())
    return parts[0] if len(parts) == 1 else "".join(f"\n  {part}" for part in parts)


def _explain_one(detail: dict[str, Any], location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    key = f"{_dotted(location)}: " if location else ""
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = sorted(_field(model, location[:-1]).get("properties", {}))
        return f"{key}unknown key{suggestion(str(location[-1]), known)}; allowed: {', '.join(known)}"
    if kind == "missing":
        about = _field(model, location).get("description", "a value").removesuffix(".")
        return f"{key}is missing; expected: {about}"
    found = _shown(detail["input"])
    if kind in _EXPECTED:
        return f"{key}found {found}{_near(detail)}; expected {_EXPECTED[kind](detail.get('ctx', {}))}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if isinstance(detail["input"], dict | list | BaseModel):
        # The message names what matters; the whole mapping would drown it.
        return f"{key}{message}"
    return f"{key}found {found}; {message[0].lower()}{message[1:]}"


def _near(detail: Mapping[str, Any]) -> str:
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str):
        return ""
    return suggestion(detail["input"], detail["ctx"]["expected"].split("'")[1::2])


def _written(location: tuple[int | str, ...], content: Any, *, is_missing: bool) -> tuple[int | str, ...]:
    """A place as it stands in the content; the place of a missing key ends in that key.

    Drops what pydantic adds: the index of a single value that stands for a list, the member of a union,
    the mark of a mapping's key.
    """
    for depth, part in enumerate(location):
        is_key = isinstance(content, dict) and part in content
        is_index = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if not (is_key or is_index):
            return location if is_missing else location[:depth]
        content = content[part]
    return location


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _entries(number: int) -> str:
    return "one entry" if number == 1 else f"{number} entries"


def _field(model: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, Any]:
    """The JSON schema at a place in a model: follows lists and mappings of models."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(node, definitions)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            by_pattern = next(iter(node.get("patternProperties", {}).values()), None)
            others = by_pattern or node.get("additionalProperties") or {}
            node = node.get("properties", {}).get(part) or others
        if not isinstance(node, dict):
            return {}
    return _resolve(node, definitions)


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A schema in place of its reference; a description beside the reference is kept."""
    for choice in node.get("anyOf", []):
        if "$ref" in choice:
            node = {**node, **choice}
    if "$ref" in node:
        resolved: dict[str, Any] = definitions[node["$ref"].rsplit("/", 1)[1]]
        return {**resolved, **{key: node[key] for key in ("description",) if key in node}}
    return node
