"""Values of a model's JSON files by key, of the kind that is expected; wrong ones are refused by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shardwatt.errors import ShardwattError

#: Above the width, the vocabulary and the context of every model there is: what says more is damaged, and
#: would only be worked on for long.
LARGEST_SIZE = 2**24

_SHOWN_CHARACTERS = 200


class Fields:
    """The keys of a JSON object; null means the same as a key that is not there.

    Args:
        file: what the object is called in messages, such as `params.json`.
        content: the parsed object.
        error: what is raised where a value is of another kind; its message names file, key and value.
    """

    def __init__(self, file: str, content: Mapping[str, Any], error: type[ShardwattError]) -> None:
        self.file = file
        self.content = content
        self.error = error

    def whole(self, key: str, default: int | None = None, *, most: int = LARGEST_SIZE) -> int:
        """A positive whole number; without a default the key is required."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive whole number")
        if value > most:
            raise self.wrong(key, f"a whole number of at most {most}")
        return value

    def positive(self, key: str, default: float | None = None, *, most: float = math.inf) -> float:
        """A positive finite number; without a default the key is required."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        try:
            number = float(value)
        except OverflowError:  # whole numbers have no limit
            raise self.wrong(key, "a positive number that a float can hold") from None
        if number > most:
            raise self.wrong(key, f"a positive number of at most {most:g}")
        return number

    def switch(self, key: str) -> bool:
        """True or false; false where the file says nothing."""
        value = self.content.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def wrong(self, key: str, expected: str) -> ShardwattError:
        """The error for a key: what was found there, and what was expected; to be raised."""
        found = f"found {shown(self.content[key])}" if key in self.content else "is missing"
        return self.error(f"{self.file}: {key}: {found}; expected {expected}")


def shown(value: object) -> str:
    """A value for a message; of a long one its beginning."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
