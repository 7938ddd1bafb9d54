"""How long prompts and responses are: what a plan expects of them before any is read.

Prompts have the quantiles that config/datasets.yaml gives, straight lines between them. So have responses
where it gives theirs, whatever the prompt (an assumption: that a model answers as long as the data set itself
does). Where it gives a mean alone, they end by themselves after an exponentially distributed number of tokens
(an assumption: a constant chance of the end at each token).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

from shardwatt.datasets import TAIL_SHARES, TokenLengths

#: Prompts that stand for all where lengths are averaged over them one by one, in the middle of equal shares.
_GRID = tuple((number + 0.5) / 32 for number in range(32))

#: Likewise of the longest prompt of a batch, and the steps of the integral over its last row's end.
_LONGEST = tuple((number + 0.5) / 16 for number in range(16))
_STEPS = 48

#: Share of the batches up to whose longest response that integral goes.
_NEARLY_ALL = 0.9999

#: Bounds of shares of the prompts beside the longest one. Of many rows the few that are nearly as long
#: decide: the nearer to 1, the closer they lie. Prompts in equal distances stand for each part.
_BOUNDS = (0.0, 0.75, 0.94, 0.985, 0.996, 0.999, 1.0)
_IN_A_PART = 5

#: Where these prompts are, and how much each stands for.
_BESIDE = tuple(
    (low + (high - low) * (number + 0.5) / _IN_A_PART, (high - low) / _IN_A_PART)
    for low, high in pairwise(_BOUNDS)
    for number in range(_IN_A_PART)
)

#: More tokens than any model takes: of a response that does not end by itself.
_ENDLESS = 1e9


class Distribution(Protocol):
    """How long responses are that nothing cuts, in tokens."""

    @property
    def mean(self) -> float:
        """Of one."""

    def quantile(self, share: float) -> float:
        """The length that a share of them, 0 to less than 1, has at most."""

    def beyond(self, tokens: float) -> float:
        """Share of them that is longer."""

    def cut_mean(self, most: float) -> float:
        """Expected length of one that is cut after so many tokens."""

    def cut_mean_square(self, most: float) -> float:
        """Expected square of that."""

    def cut_longest(self, rows: int, most: float) -> float:
        """Expected length of the longest of so many, each cut so."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Lengths whose quantiles are known, with straight lines between them.

    Attributes:
        points: share of all, and the length in tokens that so many have at most, from 0 to 1.
    """

    points: tuple[tuple[float, float], ...]

    @property
    def mean(self) -> float:
        """Mean length."""
        return sum((b - a) * (low + high) / 2 for (a, low), (b, high) in pairwise(self.points))

    @property
    def mean_square(self) -> float:
        """Mean of the squared length."""
        return sum(
            (b - a) * (low * low + low * high + high * high) / 3
            for (a, low), (b, high) in pairwise(self.points)
        )

    def quantile(self, share: float) -> float:
        """The length in tokens that a share of all, 0 to 1, has at most."""
        place = min(bisect_right(self.points, share, key=lambda point: point[0]), len(self.points) - 1)
        (left, low), (right, high) = self.points[place - 1], self.points[place]
        return low + (high - low) * (share - left) / (right - left)

    def beyond(self, tokens: float) -> float:
        """Share of all that is longer."""
        place = bisect_right(self.points, tokens, key=lambda point: point[1])
        if place == len(self.points):
            return 0.0
        if place == 0:
            return 1.0
        (left, low), (right, high) = self.points[place - 1], self.points[place]
        return 1 - left - (right - left) * (tokens - low) / (high - low)

    def within(self, most: float) -> Quantiles:
        """The same lengths, cut after so many tokens."""
        if most >= self.points[-1][1]:
            return self
        points: list[tuple[float, float]] = []
        for (a, low), (b, high) in pairwise(self.points):
            points.append((a, min(low, most)))
            if low < most < high:
                points.append((a + (b - a) * (most - low) / (high - low), most))
        return Quantiles((*points, (1.0, most)))

    def longest(self, rows: int) -> float:
        """Expected longest of so many: the integral of the quantile over u to the power of rows."""
        power = rows + 1
        return self.points[-1][1] - sum(
            (high - low) / (b - a) * (b**power - a**power) / power
            for (a, low), (b, high) in pairwise(self.points)
        )

    def shortest(self, rows: int) -> float:
        """Expected shortest of so many, likewise from the other end."""
        power = rows + 1
        return self.points[0][1] + sum(
            (high - low) / (b - a) * ((1 - a) ** power - (1 - b) ** power) / power
            for (a, low), (b, high) in pairwise(self.points)
        )

    def cut_mean(self, most: float) -> float:
        """Expected length of one that is cut after so many tokens."""
        return self.within(most).mean

    def cut_mean_square(self, most: float) -> float:
        """Expected square of that."""
        return self.within(most).mean_square

    def cut_longest(self, rows: int, most: float) -> float:
        """Expected length of the longest of so many, each cut so."""
        return self.within(most).longest(rows)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Lengths with a constant chance of the end at each token.

    Attributes:
        mean: in tokens.
    """

    mean: float

    def quantile(self, share: float) -> float:
        """The length in tokens that a share of all, 0 to less than 1, has at most."""
        return -self.mean * math.log1p(-share)

    def beyond(self, tokens: float) -> float:
        """Share of all that is longer."""
        return math.exp(-tokens / self.mean)

    def cut_mean(self, most: float) -> float:
        """Expected length of one that is cut after so many tokens: m (1 - e^(-most / m))."""
        return -self.mean * math.expm1(-most / self.mean)

    def cut_mean_square(self, most: float) -> float:
        """Expected square of that."""
        ratio = most / self.mean
        return 2 * self.mean**2 * (-math.expm1(-ratio) - ratio * math.exp(-ratio))

    def cut_longest(self, rows: int, most: float) -> float:
        """Expected length of the longest of so many, each cut so.

        The integral of 1 - (1 - e^(-t / m))^rows up to `most`: m times the sum of V^k / k over k = 1 … rows,
        V = 1 - e^(-most / m).
        """
        ended = -math.expm1(-most / self.mean)
        return min(most, self.mean * sum(ended**k / k for k in range(1, rows + 1)))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Distributions of a data set's lengths in tokens.

    Attributes:
        prompts: with template and begin of sequence.
        responses: that nothing cuts, before their end of sequence.
    """

    prompts: Quantiles
    responses: Distribution

    @classmethod
    def of(cls, tokens: TokenLengths) -> Lengths:
        """From the catalogue's entry."""
        prompts = _quantiles(tuple(tokens.prompt_deciles), tuple(tokens.prompt_tail))
        if not tokens.output_deciles:
            return cls(prompts, Exponential(tokens.output_mean))
        return cls(prompts, _quantiles(tuple(tokens.output_deciles), tuple(tokens.output_tail)))

    def within(self, most: float) -> Lengths:
        """The same lengths, prompts cut after so many tokens."""
        return replace(self, prompts=self.prompts.within(most))

    def without_ends(self) -> Lengths:
        """The same prompts, whose responses are as long as they may be."""
        return replace(self, responses=Quantiles(((0.0, _ENDLESS), (1.0, _ENDLESS))))

    def output_within(self, length: float, positions: float) -> float:
        """Expected tokens of a response, cut after `length` and where it and its prompt fill `positions`."""
        if positions >= self.prompts.points[-1][1] + length:
            return self.responses.cut_mean(length)
        cut = (min(length, max(0.0, positions - self.prompts.quantile(share))) for share in _GRID)
        return sum(map(self.responses.cut_mean, cut)) / len(_GRID)

    def steps_behind_longest(self, rows: int, length: int, positions: int, *, stops: bool) -> float:
        """Expected steps that a batch's rows take together behind its longest prompt.

        So many as the longest row may take, whose last token is not fed; or, where the loop stops with its
        last row, up to where that one has ended by itself, its cut response left out of account. With the
        longest prompt l, and S(t) the share of responses longer than t, a row that has as long a one ends
        within t steps with the chance 1 - S(t), one with another prompt q with 1 - S(l + t - q): the integral
        of 1 - the product of all these, averaged over how long the longest may be.

        Args:
            rows: of the batch.
            length: new tokens.
            positions: that prompt and response may take together.
            stops: whether the loop stops with its last row.
        """
        total = 0.0
        for share in _LONGEST:
            longest = self.prompts.quantile(share ** (1 / rows))
            most = max(0.0, min(length, positions - longest) - 1)
            total += self._steps_until_ended(rows, share, most) if stops else most
        return total / len(_LONGEST)

    def _steps_until_ended(self, rows: int, share: float, most: float) -> float:
        """Of the steps behind a longest prompt, those in which a row has not ended, up to so many."""
        width, steps = _running(self, rows, share)
        whole, rest = divmod(most / width, 1)
        if whole >= len(steps) - 1:
            return steps[-1]
        low, high = steps[int(whole)], steps[int(whole) + 1]
        return low + rest * (high - low)


@lru_cache(maxsize=8192)
def _running(lengths: Lengths, rows: int, share: float) -> tuple[float, tuple[float, ...]]:
    """Expected steps behind the longest prompt in which a row has not ended by itself.

    Args:
        lengths: of prompts and responses.
        rows: of the batch.
        share: of batches whose longest prompt is no longer.

    Returns:
        a number of steps, and how many of the first 0, 1, 2 … times so many have a row that goes on.
    """
    beyond, quantile = lengths.responses.beyond, lengths.prompts.quantile
    place = share ** (1 / rows)
    longest = quantile(place)
    gaps = [(longest - quantile(place * grid), weight) for grid, weight in _BESIDE]
    width = lengths.responses.quantile(_NEARLY_ALL ** (1 / rows)) / _STEPS
    found = [0.0]
    for step in range(_STEPS):
        behind = (step + 0.5) * width
        beside = sum(weight * beyond(behind + gap) for gap, weight in gaps)
        found.append(found[-1] + width * (1 - (1 - beyond(behind)) * (1 - beside) ** (rows - 1)))
    return width, tuple(found)


@lru_cache(maxsize=256)
def _quantiles(deciles: tuple[int, ...], tail: tuple[int, ...]) -> Quantiles:
    """From counts of tokens; the cells of a study share a few of them."""
    shares = [*(number / 10 for number in range(10)), *(TAIL_SHARES if tail else ()), 1.0]
    counts = [*deciles[:-1], *tail, deciles[-1]]
    return Quantiles(tuple(zip(shares, map(float, counts), strict=True)))
