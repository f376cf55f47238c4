"""statistics: intervals agree with what is published, with bootstraps and with each other."""

import math

import numpy as np
import pytest

from qs.evaluation.statistics import (
    Estimate,
    mean_estimate,
    paired,
    rate_interval,
    ratio_estimate,
    student_95,
    wilson,
)


def test_an_estimate_reads_as_its_mean_and_half_of_its_interval():
    assert f"{Estimate(0.9174, 0.0116):.3f}" == "0.917 ± 0.012"
    assert f"{Estimate(0.25, 0.0116):+.2f}" == "+0.25 ± 0.01"
    assert f"{Estimate(-0.25):+.2f}" == "-0.25"  # of one unit there is no interval


def test_estimates_hold_the_mean_and_its_interval():
    values, counts = np.array([0.0, 1.0, 0.5]), np.array([2, 4, 1])
    assert mean_estimate(values) == pytest.approx((0.5, 4.302653 * 0.5 / 3**0.5))
    assert ratio_estimate(values, counts).mean == pytest.approx(1.5 / 7)
    assert mean_estimate(values[:1]) == Estimate(0.0, None)
    assert ratio_estimate(values[1:2], counts[1:2]) == Estimate(0.25, None)


def test_an_estimate_has_two_ends_unless_it_is_of_one_unit():
    assert Estimate(0.5, 0.2).ends == (0.3, 0.7)
    assert Estimate(0.5).ends is None


def test_a_paired_difference_is_the_estimate_of_the_differences():
    assert paired([1.0, 2.0], [2.0, 5.0]) == mean_estimate(np.array([1.0, 3.0]))
    assert paired([0.0, 1.0], [1.0, 1.0]) == mean_estimate(np.array([1.0, 0.0]))
    assert paired([0.5, 0.25], [0.75, 0.5]) == Estimate(0.25)
    assert paired([1 / 3, 0.0, 1.0], [1 / 3, 0.0, 1.0]) == Estimate(0.0)


def test_rates_that_differ_nowhere_have_a_difference_without_an_interval():
    assert paired([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]) == Estimate(0.0)
    assert paired([False] * 5, [True] * 5) == Estimate(1.0)


def test_values_that_are_all_right_or_wrong_have_the_interval_of_wilson():
    assert rate_interval(np.array([1.0, 0.0, 1.0])) == wilson(2, 3)
    assert rate_interval(np.zeros(5)) == wilson(0, 5)
    assert rate_interval(np.array([0.0, 0.5, 1.0])) is None


def test_rows_of_equal_length_have_the_interval_of_a_mean():
    sums = np.array([1.0, 3.0, 2.0, 6.0])
    error = sums.std(ddof=1) / math.sqrt(4) / 5  # of the mean row, over 5 tokens each
    assert ratio_estimate(sums, np.full(4, 5.0)).interval == pytest.approx(3.182446 * error)


def test_a_ratio_that_is_the_same_in_every_row_has_no_uncertainty():
    counts = np.array([1.0, 5.0, 9.0])
    assert ratio_estimate(0.3 * counts, counts).interval == pytest.approx(0, abs=1e-12)
    assert ratio_estimate(np.array([1.0]), np.array([2.0])).interval is None
    # a row without tokens adds nothing that would have to be divided by
    assert math.isfinite(
        ratio_estimate(np.array([1.0, 2.0, 0.0]), np.array([2.0, 3.0, 0.0])).interval
    )


def test_rows_weigh_by_their_tokens():
    # ratio 10 / 4; residuals 1 - 2.5 and 9 - 7.5; variance 2 (2.25 + 2.25) over 4 tokens squared
    found = ratio_estimate(np.array([1.0, 9.0]), np.array([1.0, 3.0])).interval
    assert found == pytest.approx(12.706205 * 3 / 4)


def test_the_interval_agrees_with_a_bootstrap_over_rows():
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 30, 400).astype(float)
    sums = counts * draw.normal(0.2, 0.5, 400) + draw.normal(0, 2, 400)
    rows = draw.integers(400, size=(4000, 400))
    ratios = sums[rows].sum(1) / counts[rows].sum(1)
    assert ratio_estimate(sums, counts).interval == pytest.approx(1.96 * ratios.std(), rel=0.05)


def test_rates_have_the_interval_of_wilson():
    # Newcombe 1998, table I, method 3
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_mean_has_the_standard_errors_of_students_t():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    assert mean_estimate(values).interval == pytest.approx(3.182446 * values.std(ddof=1) / 2)
    assert mean_estimate(values[:1]).interval is None


def test_students_t_is_the_published_one_and_normal_for_many_units():
    published = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 8: 2.306, 15: 2.131, 30: 2.042}
    published |= {60: 2.000, 120: 1.980, 1000: 1.962}
    for degrees, expected in published.items():
        assert round(student_95(degrees + 1), 3) == expected
    many = [student_95(units) for units in (*range(2, 300), 2000, 9999, 10**7)]
    assert many == sorted(many, reverse=True)
    assert many[-1] == pytest.approx(1.959964, rel=2e-4)


@pytest.mark.parametrize("units", [2, 3, 8, 16, 100])
def test_intervals_hold_the_truth_95_times_of_100_for_few_units_too(units):
    draw = np.random.default_rng(units)
    means, ratios = [], []
    for _ in range(4000):
        values = draw.normal(0.3, 2.0, units)
        for found, estimate in (
            (means, mean_estimate(values)),
            (ratios, ratio_estimate(5 * values, np.full(units, 5.0))),
        ):
            low, high = estimate.ends
            found.append(low <= 0.3 <= high)
    assert np.mean(means) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors
    assert np.mean(ratios) == pytest.approx(0.95, abs=0.012)


def test_units_that_do_not_match_are_refused():
    two, three, table = np.ones(2), np.ones(3), np.ones((2, 2))
    for refused in (
        lambda: ratio_estimate(two, three).interval,
        lambda: ratio_estimate(table, table).interval,
        lambda: mean_estimate(table).interval,
        lambda: paired([1.0], [1.0, 2.0]),
    ):
        with pytest.raises(ValueError, match="expected one number for each unit"):
            refused()


def test_a_rate_of_nothing_or_of_more_than_all_is_refused():
    for hits, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"found {hits} of {count}"):
            wilson(hits, count)
