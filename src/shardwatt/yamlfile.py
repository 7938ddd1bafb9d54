"""Reading a YAML file into a typed model, with one clear message for each mistake."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from shardwatt.errors import ShardwattError
from shardwatt.mistakes import explain


class StrictModel(BaseModel):
    """Base of everything that a user writes: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        # Importing a model costs little until one is read: a dry run imports dozens that it never reads.
        defer_build=True,
    )


Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Form:
    """What a text must look like: a pattern for machines and editors, words for people.

    Attributes:
        pattern: regular expression that the whole text matches.
        words: what is allowed, as said to the user.
    """

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise ValueError(f"expected {self.words}{self._near(text)}")
        return text

    def _near(self, text: str) -> str:
        """What is meant by a text in the wrong case, or by a path whose last part is the name."""
        others = (text.lower(), text.rpartition("/")[2].lower(), text.upper())
        near = next((other for other in others if re.fullmatch(self.pattern, other)), None)
        return f"; did you mean '{near}'?" if near else ""


#: libyaml's, where PyYAML was built with it: ten times as fast, which a dry run feels.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_SafeLoader):  # type: ignore[misc, valid-type]  # chosen while running
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
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


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
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is no UTF-8 text: byte {problem.start} is not; save it as UTF-8") from None
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else "?"
        raise error(f"{path}, line {line}: no valid YAML: {problem.problem}") from None
    except (yaml.YAMLError, ValueError) as problem:
        # A forbidden character, or a date that no calendar has.
        raise error(f"{path}: no valid YAML: {' '.join(str(problem).split())}") from None
    if content is None:
        raise error(f"{path}: is empty; expected keys and values")
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
        raise error(f"{source}: {explain(problem, model, content)}") from None
