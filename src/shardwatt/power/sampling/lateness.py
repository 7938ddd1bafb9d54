"""How late samples are after their deadlines: quantiles of any number of times, in bounded memory."""

from __future__ import annotations

import math

#: Classes a decade, so that a quantile is right to 5 %; and the ends of the scale in s.
_A_DECADE = 50
_LEAST_S, _MOST_S = 1e-6, 1e4


class Lateness:
    """A histogram of times on a logarithmic scale, from 1 us to 10,000 s; the longest is exact.

    Attributes:
        count: times that were added.
        max_s: the longest, in s; 0 before there is one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self._counts = [0] * (_class(_MOST_S) + 1)

    def add(self, late_s: float) -> None:
        """Add a time in s; one that is too early counts as none."""
        self.count += 1
        self.max_s = max(self.max_s, late_s)
        self._counts[_class(late_s)] += 1

    def quantile_s(self, share: float) -> float | None:
        """Least time in s that so large a share of the times does not exceed; None without times."""
        if not self.count:
            return None
        below = 0
        for place, count in enumerate(self._counts):
            below += count
            if below >= share * self.count:
                return min(_LEAST_S * 10 ** (place / _A_DECADE), self.max_s)
        raise AssertionError("classes hold fewer times than were counted")


def _class(late_s: float) -> int:
    """The class of a time: the first whose upper end it does not exceed."""
    within_s = min(max(late_s, _LEAST_S), _MOST_S)
    return math.ceil(_A_DECADE * math.log10(within_s / _LEAST_S))
