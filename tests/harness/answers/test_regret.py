"""Regret: exact where an online run is a fixed one or a known multiple of it, and paired over seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harness.answers.frontier import best_splits
from harness.answers.regret import fixed_ways, regret_of, regret_rows
from harness.answers.surface import Cell
from harness.budget import Cost
from tests.harness.answers.synthetic_surface import BUDGETS, QUESTION, cell, seconds, surface

CELLS = surface(model_noise=0.3)
ANSWERS = best_splits(CELLS, seconds(BUDGETS), QUESTION)


def online(budget: float, shift: float = 0.0) -> list[Cell]:
    """A cell for every seed whose test metric is that of the best fixed split, times a factor."""
    answer = next(a for a in ANSWERS if a.budget.amount == budget)
    fixed = fixed_ways(answer, QUESTION)["best fixed"]
    made = []
    for seed, reading in fixed.items():
        log_metric = math.log(reading.test["kl"].value) + shift
        found = cell(seed, 40, "pg", int(budget) - 40, log_metric)
        made.append(replace(found, trunk_cost=Cost(device_seconds=0.3 * budget)))
    return made


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_run_that_is_a_multiple_of_the_best_fixed_one_has_that_regret_for_sure(budget: float, factor: float) -> None:
    answer = next(a for a in ANSWERS if a.budget.amount == budget)
    regret = regret_of(online(budget, math.log(factor)), answer, QUESTION)
    assert regret is not None
    score, difference = regret.against["best fixed"]
    assert (difference.value, difference.lo, difference.hi) == pytest.approx((math.log(factor),) * 3)
    assert regret.online.value == pytest.approx(factor * score.value)


def test_every_fixed_way_is_compared_and_the_share_of_other_seeds_is_the_one_that_they_choose() -> None:
    answer = ANSWERS[-1]
    regret = regret_of(online(answer.budget.amount), answer, QUESTION)
    assert regret is not None
    assert set(regret.against) == {"best fixed", "of other seeds", "FM only", "PG only"}
    score, _ = regret.against["of other seeds"]
    assert score.by_seed == answer.best.scores["kl"].by_seed
    rows = regret_rows([regret], QUESTION)
    assert [row["seeds"] for row in rows] == [5] * 4
    by_way = {row["against"]: row for row in rows}
    assert by_way["best fixed"]["ratio"] == pytest.approx(1.0)
    assert answer.first_only is not None
    expected = regret.online.value / answer.first_only.scores["kl"].value
    assert by_way["FM only"]["ratio"] == pytest.approx(expected)


def test_a_diverged_run_has_no_regret_number() -> None:
    answer = ANSWERS[0]
    cells = online(answer.budget.amount)
    regret = regret_of([replace(cells[0], diverged=True), *cells[1:]], answer, QUESTION)
    assert regret is not None
    _, difference = regret.against["best fixed"]
    assert math.isnan(difference.value)
    assert "1 of 5 seeds diverged" in difference.reason
