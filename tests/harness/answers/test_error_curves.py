"""Costs at equal error: power laws have a ratio in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.answers.equal_error import cost_at, equal_errors
from harness.answers.error_curves import ErrorCurve, curve_rows, error_table, speed_rows, speed_table, speeds

COSTS = (4.0, 8.0, 16.0, 32.0, 64.0)


def power(constant: float, spread: float = 0.3, *, n: int = 64) -> np.ndarray:
    """Errors constant * cost^-4, times one factor a sample."""
    factor_B = np.exp(spread * np.random.default_rng(1).normal(size=n))
    return constant * factor_B * np.array(COSTS)[:, None] ** -4.0


def test_a_power_law_is_met_exactly_between_measured_costs() -> None:
    errors = np.array(COSTS) ** -4.0
    for cost in (4.0, 5.0, 11.3, 32.0, 63.9):
        assert cost_at(COSTS, errors, cost**-4.0) == pytest.approx(cost, rel=1e-12)


def test_nothing_is_extrapolated() -> None:
    errors = np.array(COSTS) ** -4.0
    assert math.isnan(cost_at(COSTS, errors, 3.0**-4))
    assert math.isnan(cost_at(COSTS, errors, 65.0**-4))
    assert math.isnan(cost_at(COSTS, [math.nan] * 5, 0.1))
    assert math.isnan(cost_at(COSTS, [math.inf, 1e-3, 1e-4, 1e-5, 1e-6], 1e-2))


def test_the_first_passage_counts_where_a_curve_turns() -> None:
    assert cost_at((1.0, 2.0, 4.0, 8.0), (1.0, 0.1, 0.5, 0.01), 0.3) < 2.0
    assert cost_at((1.0, 2.0), (0.5, 0.5), 0.5) == 1.0


def test_the_ratio_of_two_power_laws_is_known() -> None:
    """Sixteen times the error at fourth order is twice the cost, in every resample alike."""
    found = equal_errors(COSTS, power(16.0), power(1.0), seed=0)
    assert [e.first_cost for e in found] == [8.0, 16.0, 32.0, 64.0]
    for e in found:
        assert (e.second_cost, e.ratio.value, e.ratio.lo, e.ratio.hi) == pytest.approx((e.first_cost / 2, 2, 2, 2))
        assert not e.interpolated
        assert e.ratio.n == 64
    between = equal_errors(COSTS, power(10.0), power(1.0), seed=0)
    assert all(e.interpolated for e in between)
    assert between[0].ratio.value == pytest.approx(10**0.25)


def test_the_interval_is_that_of_paired_resamples() -> None:
    rng = np.random.default_rng(2)
    first, second = power(10.0), power(1.0) * np.exp(0.4 * rng.normal(size=64))
    (e, *_) = equal_errors(COSTS, first, second, seed=3)
    assert e.ratio.lo < e.ratio.value < e.ratio.hi
    rows = rng.integers(64, size=(4000, 64))
    brute = (np.median(first[1][rows], axis=1) / np.median(second[1][rows], axis=1)) ** 0.25
    assert (e.ratio.lo, e.ratio.hi) == pytest.approx(np.quantile(brute, [0.025, 0.975]), rel=0.03)


def test_an_error_that_few_resamples_reach_has_no_interval() -> None:
    first, second = power(1.0, 0.0), power(1.0, 1.0)
    second = second / np.median(second[-1]) * first[-1, 0] * 0.999
    last = equal_errors(COSTS, first, second, seed=0)[-1]
    assert last.first_cost == COSTS[-1]
    assert math.isnan(last.ratio.lo)
    assert "do not reach" in last.ratio.reason


def curve(plan: str, seed: int, constant: float, *, floor: float = 0.0) -> ErrorCurve:
    return ErrorCurve(
        plan=plan,
        seed=seed,
        way="there",
        quantity="place",
        steps=(1, 2, 4, 8, 16),
        costs=COSTS,
        errors_SB=power(constant),
        floor=floor,
    )


def test_rows_and_tables_of_several_seeds() -> None:
    curves = [curve(plan, seed, c) for seed in range(3) for plan, c in (("slow", 16.0), ("fast", 1.0))]
    rows = curve_rows(curves, cost="calls")
    assert len(rows) == 6 * 5
    assert rows[0]["median"] == pytest.approx(np.median(power(16.0)[0]))
    assert rows[0]["median_eval_lo"] < rows[0]["median"] < rows[0]["median_eval_hi"]
    assert rows[0]["mean"] == pytest.approx(power(16.0)[0].mean())
    found = speeds(curves)
    assert {(s.first, s.second) for s in found} == {("slow", "fast")}
    assert {s.seed for s in found} == {0, 1, 2}
    assert all(row["speed_up"] == pytest.approx(2) for row in speed_rows(found, cost="calls"))
    text = speed_table(found, "there", cost="calls")
    assert "2.00 [2.00, 2.00]" in text
    assert text.count("slow / fast") == 4
    assert "no error" in speed_table(found, "back", cost="calls")
    assert "reference" in error_table(curves, "there", cost="calls")


def test_errors_near_those_of_the_reference_are_not_compared() -> None:
    level = float(np.median(power(16.0)[2]))
    curves = [curve("slow", 0, 16.0, floor=level / 2.9), curve("fast", 0, 1.0)]
    assert [s.equal.first_cost for s in speeds(curves)] == [8.0]
