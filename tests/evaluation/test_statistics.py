"""statistics: an estimate is a mean with its 95 % interval, and reads like one."""

import numpy as np
import pytest

from qs.evaluation.statistics import (
    Estimate,
    mean_estimate,
    mean_interval,
    ratio_estimate,
    ratio_interval,
)


def test_an_estimate_reads_as_its_mean_and_half_of_its_interval():
    assert f"{Estimate(0.9174, 0.0116):.3f}" == "0.917 ± 0.012"
    assert f"{Estimate(0.25, 0.0116):+.2f}" == "+0.25 ± 0.01"
    assert f"{Estimate(-0.25):+.2f}" == "-0.25"  # of one unit there is no interval


def test_estimates_hold_the_mean_and_its_interval():
    values, counts = np.array([0.0, 1.0, 0.5]), np.array([2, 4, 1])
    assert mean_estimate(values) == pytest.approx((0.5, mean_interval(values)))
    assert ratio_estimate(values, counts) == pytest.approx(
        (1.5 / 7, ratio_interval(values, counts))
    )
    assert mean_estimate(values[:1]) == Estimate(0.0, None)
