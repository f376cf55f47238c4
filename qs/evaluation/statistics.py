"""Means, ratios, differences and rates with 95 % intervals over independent units.

A unit is a question, a document or a row of text: tokens of one text are no independent draws.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard errors that are known
MOST_DEGREES = 10**4  # of freedom that are told apart: beyond, half-widths differ by 0.01 %


class Estimate(NamedTuple):
    """A mean and the half-width of its 95 % interval (None: its units do not tell).

    `f"{estimate:.3f}"` reads "0.917 ± 0.012"; a sign in the format is that of the mean.
    """

    mean: float
    interval: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, where there is one."""
        if self.interval is None:
            return None
        return self.mean - self.interval, self.mean + self.interval

    def __format__(self, spec: str) -> str:
        half = "" if self.interval is None else f" ± {self.interval:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


@functools.cache
def student_95(units: int) -> float:
    """Half-width of a 95 % interval in standard errors that are estimated from 2 units or more.

    It is Student's t whose absolute value 95 % lie below.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    degrees = min(units - 1, MOST_DEGREES)
    odd = degrees % 2
    k = np.arange(1, (degrees - odd) // 2, dtype=float)
    ratios = 2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k)
    terms = np.concatenate([np.ones(min(1, degrees // 2)), np.cumprod(ratios)])
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        sine, cosine = math.sin(angle), math.cos(angle)
        below = sine * float((terms * cosine ** (2.0 * np.arange(len(terms)))).sum())
        if odd:
            below = 2 / math.pi * (angle + cosine * below)
        low, high = (angle, high) if below < 0.95 else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of (N,) values, one of each unit.

    Raises:
        ValueError: they are of another rank.
    """
    _check_units(values)
    half = None
    if len(values) > 1:
        half = student_95(len(values)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(float(values.mean()), half)


def ratio_estimate(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """sum(sums) / sum(counts) of (N,) units, some of which may count nothing.

    Raises:
        ValueError: they differ in length or are of another rank.

    Source: linearised (delta method) standard error of a ratio; Cochran, Sampling Techniques
    (1977), section 2.11.
    """
    _check_units(sums, counts)
    units, total, half = len(sums), counts.sum(), None
    if units > 1:
        square = float(((sums - sums.sum() / total * counts) ** 2).sum())
        half = student_95(units) * math.sqrt(units / (units - 1) * square) / float(total)
    return Estimate(float(sums.sum() / total), half)


def paired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean of after - before on the same units, in the same order.

    Where all units differ by the same, that says nothing of how much others would differ.

    Raises:
        ValueError: they differ in length.
    """
    one, two = np.array(before, float), np.array(after, float)
    _check_units(one, two)
    difference = mean_estimate(two - one)
    return difference if difference.interval else Estimate(difference.mean)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Both ends of the interval of a rate.

    Raises:
        ValueError: not 0 <= hits <= count, or nothing was counted.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
    """
    if not 0 <= hits <= count or count == 0:
        raise ValueError(f"expected hits from 0 to a count above 0, found {hits} of {count}")
    square = NORMAL_95**2
    middle = (hits + square / 2) / (count + square)
    half = NORMAL_95 * math.sqrt(hits * (count - hits) / count + square / 4) / (count + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def rate_interval(values: np.ndarray) -> tuple[float, float] | None:
    """`wilson` of values that are all 0 or 1, such as right or wrong; None of any others."""
    return wilson(int(values.sum()), len(values)) if np.isin(values, (0, 1)).all() else None


def _check_units(*values: np.ndarray) -> None:
    shapes = [each.shape for each in values]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"expected one number for each unit, (N,), found shapes {shapes}")
