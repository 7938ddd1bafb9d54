"""Constraints as sbatch has them: which features they name, and which nodes they mean."""

from __future__ import annotations

import re
from collections.abc import Collection

_PART = re.compile(r"[A-Za-z0-9_.-]+|[&|()\[\]]")
#: `intel*4`: Slurm counts such nodes; each of them has the feature.
_COUNT = re.compile(r"\*[0-9]+")


def feature_names(constraint: str) -> list[str]:
    """The features that a constraint names, in its order."""
    return [part for part in _parts(constraint) if part not in "&|()[]"]


def is_met(constraint: str, features: Collection[str]) -> bool:
    """Whether a node with these features can be one of those meant.

    As sbatch's manual has it, & and | are taken from left to right, parentheses first; brackets and
    counts say how the nodes of one job go together, which does not matter for a single node.

    Raises:
        ValueError: the constraint is none, e.g. a parenthesis is missing.
    """
    parts = _parts(constraint)
    found = _expression(parts, features)
    if parts:
        raise ValueError(f"found {parts[0]} where & or | was expected")
    return found


def _parts(constraint: str) -> list[str]:
    return _PART.findall(_COUNT.sub("", constraint))


def _expression(parts: list[str], features: Collection[str]) -> bool:
    found = _operand(parts, features)
    while parts and parts[0] in "&|":
        operator = parts.pop(0)
        other = _operand(parts, features)
        found = (found and other) if operator == "&" else (found or other)
    return found


def _operand(parts: list[str], features: Collection[str]) -> bool:
    if not parts:
        raise ValueError("it ends where a feature was expected")
    part = parts.pop(0)
    if part in "([":
        found = _expression(parts, features)
        if not parts or parts.pop(0) not in ")]":
            raise ValueError(f"{part} is not closed")
        return found
    if part in "&|)]":
        raise ValueError(f"found {part} where a feature was expected")
    return part in features
