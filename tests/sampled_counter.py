"""What DCGM's job statistics count of a window's energy, by their own rule; for tests and benchmarks.

Samples of the energy counter come every interval; where the first one falls in the window is chance. The
energy is the last sample in the window less the first one. Power is constant here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def counted_s(window_s: float, interval_s: float, first_s: float) -> float | None:
    """Time in s of a window whose energy is counted.

    Args:
        window_s: length of the window.
        interval_s: between samples.
        first_s: from the window's start to the first sample after it, below `interval_s`.

    Returns:
        None where no sample falls into the window; 0 where one does.
    """
    if first_s > window_s:
        return None
    return math.floor((window_s - first_s) / interval_s) * interval_s


@dataclass(frozen=True, slots=True)
class Shares:
    """What is counted of the true energy: mean, quantiles, and how often it is nothing at all."""

    mean: float
    median: float
    low: float
    high: float
    nothing: float


def shares(window_s: float, interval_s: float, starts: int = 20_001) -> Shares:
    """The shares over windows that start anywhere between two samples; 5 % and 95 % quantiles."""
    firsts = (np.arange(starts) + 0.5) / starts * interval_s
    found = np.array([counted_s(window_s, interval_s, first) or 0.0 for first in firsts]) / window_s
    low, median, high = np.quantile(found, [0.05, 0.5, 0.95])
    return Shares(float(found.mean()), float(median), float(low), float(high), float((found == 0).mean()))
