"""Laws over budgets: exact on exact data, refused on too little, with prediction intervals that hold what comes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.answers.fit import fit_power_law, fit_share_law, seed_resamples
from harness.answers.frontier import best_splits
from harness.answers.laws import judge, laws_of
from harness.answers.question import MetricChoice
from tests.harness.answers.synthetic_surface import METRIC, QUESTION, seconds, surface

BUDGETS = np.geomspace(10.0, 5000.0, 7)
PLAIN = MetricChoice(name="nll")


def noisy(values: np.ndarray, seeds: int, noise: float, rng_seed: int = 0) -> dict[int, list[float]]:
    rng = np.random.default_rng(rng_seed)
    return {s: list(values * np.exp(noise * (rng.normal() + rng.normal(size=len(values))))) for s in range(seeds)}


class TestPowerLaw:
    def test_an_exact_law_is_recovered(self) -> None:
        fit = fit_power_law(BUDGETS, noisy(3.0 * BUDGETS**-0.7, 3, 0.0), METRIC)
        assert fit.law is not None
        assert fit.law.kind == "power"
        assert fit.law.parameters["b"].value == pytest.approx(0.7, rel=1e-9)
        assert fit.law.predict(100.0).value == pytest.approx(3.0 * 100.0**-0.7, rel=1e-9)
        assert fit.law.scatter < 1e-9

    def test_an_offset_is_found_where_there_is_one(self) -> None:
        fit = fit_power_law(BUDGETS, noisy(3.0 * BUDGETS**-0.9 + 0.05, 4, 1e-3), METRIC)
        assert fit.law is not None
        assert fit.law.kind == "power with offset"
        assert fit.law.parameters["c"].value == pytest.approx(0.05, rel=0.05)
        assert fit.law.parameters["b"].value == pytest.approx(0.9, rel=0.05)

    def test_a_plain_metric_may_fall_to_a_negative_plateau(self) -> None:
        fit = fit_power_law(BUDGETS, {s: list(-4.0 + 2.0 * BUDGETS**-0.5) for s in range(3)}, PLAIN)
        assert fit.law is not None
        assert fit.law.parameters["c"].value == pytest.approx(-4.0, abs=0.01)
        assert fit.law.predict(1e6).value == pytest.approx(-4.0, abs=0.02)

    def test_intervals_hold_the_truth_about_as_often_as_they_say(self) -> None:
        truth, exponent_held, new_held, runs = 0.7, 0, 0, 60
        for run in range(runs):
            by_seed = noisy(3.0 * BUDGETS**-truth, 4, 0.2, rng_seed=run)
            law = fit_power_law(BUDGETS, by_seed, METRIC).law
            assert law is not None
            exponent = law.parameters["b"]
            exponent_held += exponent.lo <= truth <= exponent.hi
            rng = np.random.default_rng(10_000 + run)
            new = math.log(3.0 * 1e4**-truth) + 0.2 * float(np.mean(rng.normal(size=4) + rng.normal(size=4)))
            predicted = law.predict(1e4)
            new_held += math.log(predicted.lo) <= new <= math.log(predicted.hi)
        assert exponent_held / runs > 0.8
        assert new_held / runs > 0.8

    def test_one_seed_gives_a_law_without_interval(self) -> None:
        law = fit_power_law(BUDGETS, noisy(3.0 * BUDGETS**-0.7, 1, 0.1), METRIC).law
        assert law is not None
        assert math.isnan(law.parameters["b"].lo)
        assert math.isnan(law.predict(100.0).hi)
        assert "at least 3" in law.predict(100.0).reason


class TestRefusal:
    @pytest.mark.parametrize(
        ("budgets", "got"), [(np.geomspace(1, 1000, 5), "got 5 over 3.0"), (np.geomspace(1, 50, 8), "got 8 over 1.7")]
    )
    def test_too_few_budgets_or_too_small_a_range_give_a_note_and_no_law(self, budgets: np.ndarray, got: str) -> None:
        fit = fit_power_law(budgets, noisy(budgets**-0.5, 3, 0.0), METRIC)
        assert fit.law is None
        assert "needs at least six budgets over two decades" in fit.note
        assert got in fit.note

    def test_a_diverged_value_is_not_fitted_over(self) -> None:
        by_seed = noisy(BUDGETS**-0.5, 3, 0.0)
        by_seed[1][2] = math.nan
        fit = fit_power_law(BUDGETS, by_seed, METRIC)
        assert fit.law is None
        assert "1 of diverged models" in fit.note


class TestShareLaw:
    def test_a_straight_line_in_the_logarithm_is_recovered_and_held_to_the_unit_interval(self) -> None:
        shares = 0.5 - 0.06 * np.log(BUDGETS / BUDGETS[3])
        law = fit_share_law(BUDGETS, (0, 1, 2), lambda seeds: shares).law
        assert law is not None
        assert law.predict(BUDGETS[0]).value == pytest.approx(shares[0])
        assert law.predict(1e30).value == 0.0
        assert law.predict(1e-30).value == 1.0

    def test_seeds_that_choose_differently_widen_the_interval(self) -> None:
        def chosen(seeds: object) -> np.ndarray:
            return np.full(len(BUDGETS), 0.1 * float(np.mean(list(seeds))))  # type: ignore[call-overload]

        law = fit_share_law(BUDGETS, (1, 2, 3, 4), chosen).law
        assert law is not None
        assert law.parameters["a"].lo < 0.15
        assert law.parameters["a"].hi > 0.35


class TestResampling:
    def test_few_seeds_are_resampled_in_every_way(self) -> None:
        assert len(seed_resamples(3)) == 27
        assert seed_resamples(3).count((0, 1, 2)) == 6
        assert seed_resamples(3).count((1, 1, 1)) == 1

    def test_many_seeds_are_resampled_the_same_way_each_time(self) -> None:
        assert seed_resamples(8) == seed_resamples(8)
        assert {len(row) for row in seed_resamples(8)} == {8}


class TestVerdict:
    def test_the_largest_budget_is_held_out_and_set_against_the_plain_guess(self) -> None:
        budgets = [float(round(b)) for b in np.geomspace(100, 10_000, 6)]
        answers = best_splits(surface(budgets=budgets), seconds(budgets), QUESTION)
        laws = laws_of(answers, QUESTION)
        verdict = laws.verdict
        assert verdict is not None
        assert laws.share.law is not None
        assert laws.metrics["best"].law is not None
        assert verdict.effect > 3.0
        assert verdict.useful == (verdict.interval_width < verdict.effect)
        assert verdict.share_guessed == answers[-2].best.share
        assert verdict.predicted.lo < verdict.predicted.value < verdict.predicted.hi

    def test_too_few_budgets_give_a_note_and_no_verdict(self) -> None:
        answers = best_splits(surface(), seconds([100.0, 400.0, 1600.0]), QUESTION)
        verdict, note = judge(answers, QUESTION)
        assert verdict is None
        assert "got 3 over 1.2" in note
        assert all(fit.law is None for fit in laws_of(answers, QUESTION).metrics.values())
