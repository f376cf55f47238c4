"""statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean and the half-width of its 95 % interval (None: of fewer than two units).

    `f"{estimate:.3f}"` reads "0.917 ± 0.012"; a sign in the format is that of the mean.
    """

    mean: float
    interval: float | None = None

    def __format__(self, spec: str) -> str:
        half = "" if self.interval is None else f" ± {self.interval:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


def spread(mean: float, interval: float | None) -> tuple[float, float]:
    """Both ends of an interval; of one unit there is none."""
    half = interval or 0.0
    return mean - half, mean + half


NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard errors


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """Half-width of the 95 % interval of sum(sums) / sum(counts) over independent units.

    Linearised (delta method) standard error of a ratio; None for fewer than two units.
    """
    units, total = len(sums), counts.sum()
    if units < 2:
        return None
    residual = sums - sums.sum() / total * counts
    return NORMAL_95 * math.sqrt(units / (units - 1) * float((residual**2).sum())) / float(total)


def mean_interval(values: np.ndarray) -> float | None:
    """Half-width of the 95 % interval of a mean over independent units; None for fewer than two."""
    if len(values) < 2:
        return None
    return NORMAL_95 * float(values.std(ddof=1)) / math.sqrt(len(values))


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of independent units."""
    return Estimate(float(values.mean()), mean_interval(values))


def ratio_estimate(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """sum(sums) / sum(counts) over independent units."""
    return Estimate(float(sums.sum() / counts.sum()), ratio_interval(sums, counts))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927)."""
    square = NORMAL_95**2
    middle = (hits + square / 2) / (count + square)
    half = NORMAL_95 * math.sqrt(hits * (count - hits) / count + square / 4) / (count + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(before: Sequence[float], after: Sequence[float]) -> dict[str, float | None]:
    """Mean of after - before on the same questions, with the half-width of its 95 % interval."""
    difference = np.array(after, float) - np.array(before, float)
    return {"mean": float(difference.mean()), "interval": mean_interval(difference)}
