"""What the host knows of each row: how far it is, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shardwatt.engine.protocol import BatchRequest, Finish


@dataclass(slots=True, eq=False)
class Row:
    """A prompt that is being answered.

    Attributes:
        prompt: its place in the request.
        prompt_tokens: how long it is.
        limit: new tokens that it may have: the request's length, or what the cache has room for.
        drawn: new tokens so far, those on their way to the host and those past its end included.
        new: those that the host has seen, before the end of sequence.
        ended: whether the host has seen the end of sequence.
    """

    prompt: int
    prompt_tokens: int
    limit: int
    drawn: int = 0
    new: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def runs(self) -> bool:
        """Whether another step is of use to it, as far as the host knows."""
        return not self.ended and self.drawn < self.limit

    def attends(self, positions: int) -> int:
        """Positions that its next step attends to, of those in the cache; after the prefill if it is new."""
        return min(self.prompt_tokens + max(self.drawn, 1), positions)

    def held(self, positions: int) -> int:
        """Positions that the cache holds of it."""
        return min(self.prompt_tokens + self.drawn - 1, positions) if self.drawn else 0

    def see(self, token: int, eos_ids: frozenset[int]) -> None:
        """Take note of a new token; those after its end are none of its own."""
        if self.ended or len(self.new) == self.limit:
            return
        if token in eos_ids:
            self.ended = True
        else:
            self.new.append(token)


def opened(request: BatchRequest) -> list[Row]:
    """A row for each prompt, the longest first: rows of like length lie side by side."""
    rows = [
        Row(place, len(prompt), min(request.length, request.positions - len(prompt)))
        for place, prompt in enumerate(request.prompts)
    ]
    return sorted(rows, key=lambda row: -row.prompt_tokens)


def answers(rows: Sequence[Row], length: int) -> tuple[list[list[int]], list[Finish]]:
    """New tokens and why they ended, in the order of the request's prompts."""
    ordered = sorted(rows, key=lambda row: row.prompt)
    finish: list[Finish] = [
        "eos" if row.ended else "length" if len(row.new) == length else "context" for row in ordered
    ]
    return [row.new for row in ordered], finish
