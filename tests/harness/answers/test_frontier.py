"""The best split read off surfaces with a known answer: right shares, honest intervals, nothing dropped in silence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.answers.crossover import begins_to_help, crossover
from harness.answers.curves import curves_of
from harness.answers.frontier import best_splits, choose
from harness.answers.question import MetricChoice
from harness.answers.savings import naive_grid_cost, spent_costs
from harness.answers.scores import judged_value
from harness.answers.surface import Cell
from harness.budget import Cost
from tests.harness.answers.synthetic_surface import (
    BUDGETS,
    FORKS,
    METRIC,
    QUESTION,
    SECONDS,
    cell,
    known_law,
    noise_only,
    seconds,
    surface,
)


class TestReadingACurve:
    def test_a_model_just_below_the_budget_counts_as_measured(self) -> None:
        reading = self._tail([(92, 0.5)]).at(100.0 + 10, SECONDS, QUESTION)
        assert reading is not None
        assert not reading.interpolated
        assert reading.cost == 102.0
        assert reading.trunk_share == pytest.approx(10 / 102)

    @pytest.mark.parametrize("steps", [80, 92 + 3])
    def test_a_model_too_far_below_or_above_alone_is_no_answer(self, steps: int) -> None:
        assert self._tail([(steps, 0.5)]).at(102.0, SECONDS, QUESTION) is None

    def test_where_a_step_is_dear_the_most_that_fits_is_the_answer(self) -> None:
        dear = [replace(cell(0, 10, "pg", n, 0.5), tail_cost=Cost(steps=n, device_seconds=20.0 * n)) for n in (1, 4)]
        (curve,) = curves_of(dear, SECONDS)
        last = curve.at(108.0, SECONDS, QUESTION)
        assert last is not None
        assert (last.cost, last.interpolated) == (90.0, False)
        assert last.trunk_share == pytest.approx(10 / 90)
        assert curve.at(111.0, SECONDS, QUESTION) is None
        between = curve.at(50.0 + 5, SECONDS, QUESTION)
        assert between is not None
        assert between.interpolated

    def test_a_power_law_is_interpolated_exactly(self) -> None:
        curve = self._tail([(n, -0.7 * math.log(n + 10)) for n in (40, 990)])
        reading = curve.at(200.0, SECONDS, QUESTION)
        assert reading is not None
        assert reading.interpolated
        assert reading.test["kl"].value == pytest.approx(200.0**-0.7, rel=1e-12)
        assert reading.test["kl"].lo == pytest.approx(0.9 * 200.0**-0.7, rel=1e-12)
        assert reading.trunk_share == pytest.approx(10 / 200)
        assert len(reading.segments) == 2

    def test_a_plain_metric_is_interpolated_linearly_in_the_logarithm_of_the_cost(self) -> None:
        curve = self._tail([(90, math.log(2.0)), (9990, math.log(4.0))])
        reading = curve.at(1000.0, SECONDS, QUESTION)
        assert reading is not None
        assert reading.test["nll"].value == pytest.approx(3.0 + 3.0)

    def test_nothing_is_extrapolated(self) -> None:
        curve = self._tail([(90, 0.5), (190, 0.4)])
        assert curve.at(5.0, SECONDS, QUESTION) is None
        assert curve.at(400.0, SECONDS, QUESTION) is None

    def test_between_a_good_and_a_diverged_model_the_reading_is_diverged(self) -> None:
        cells = [cell(0, 10, "pg", 90, 0.5), cell(0, 10, "pg", 990, 0.5, diverged=True)]
        reading = curves_of(cells, SECONDS)[0].at(300.0, SECONDS, QUESTION)
        assert reading is not None
        assert reading.diverged
        assert math.isnan(judged_value(reading, METRIC))

    @staticmethod
    def _tail(points: list[tuple[int, float]]):  # noqa: ANN205 - a Curve
        return curves_of([cell(0, 10, "pg", steps, value) for steps, value in points], SECONDS)[0]


class TestBestSplit:
    def test_the_known_best_share_is_found_at_every_budget(self) -> None:
        for answer in best_splits(surface(model_noise=0.0), seconds(BUDGETS), QUESTION):
            amount = answer.budget.amount
            forks = [f for f in FORKS if f < amount]
            expected = min(forks, key=lambda f: known_law(f, "pg", amount))
            assert answer.best.fork_steps == expected
            assert answer.best.share == pytest.approx(expected / amount)
            assert answer.best.scores["kl"].value == pytest.approx(math.exp(known_law(expected, "pg", amount)))

    def test_shares_rise_from_the_second_phase_alone_to_the_first_alone(self) -> None:
        for answer in best_splits(surface(), seconds(BUDGETS), QUESTION):
            shares = [c.share for c in answer.candidates]
            assert shares == sorted(shares)
            assert (shares[0], shares[-1]) == (0.0, 1.0)

    def test_the_first_phase_alone_is_the_better_of_trunk_and_refined_trunk(self) -> None:
        (answer,) = best_splits(surface(model_noise=0.0), seconds([400.0]), QUESTION)
        assert answer.first_only is not None
        assert answer.first_only.scores["kl"].value == pytest.approx(math.exp(known_law(10, "fm_tail", 400.0)))
        assert all(r.tail == "fm_tail" for r in answer.first_only.readings.values())

    def test_it_is_chosen_on_validation_and_reported_on_test(self) -> None:
        cells = [cell(s, 100, "", 0, 0.0, 5.0) for s in range(3)]
        cells += [cell(s, 10, "fm_tail", 90, 1.0, -5.0) for s in range(3)]
        (answer,) = best_splits(cells, seconds([100.0]), QUESTION)
        assert answer.best.scores["kl"].value == pytest.approx(math.exp(5.0))

    def test_a_clear_gain_excludes_zero(self) -> None:
        (answer,) = best_splits(surface(), seconds([1600.0]), QUESTION)
        assert answer.hybrid_vs_first is not None
        assert answer.hybrid_vs_second is not None
        assert answer.hybrid_vs_first.hi < 0
        assert answer.hybrid_vs_second.hi < 0

    def test_a_larger_is_better_metric_turns_the_order(self) -> None:
        ess = replace(QUESTION, metric=MetricChoice(name="ess", direction="max"), beside=())
        (by_ess,) = best_splits(surface(model_noise=0.0), seconds([1600.0]), ess)
        (by_kl,) = best_splits(surface(model_noise=0.0), seconds([1600.0]), QUESTION)
        assert by_ess.best.share == by_kl.best.share
        assert by_ess.hybrid_vs_first is not None
        assert by_ess.hybrid_vs_first.value > 0

    def test_flop_budgets_are_read_off_the_same_cells(self) -> None:
        from harness.budget import Budget, Currency

        (answer,) = best_splits(surface(), [Budget(amount=30.0 * 400, currency=Currency.FLOP)], QUESTION)
        assert answer.second_only is not None
        assert answer.second_only.share == 0.0


class TestWithoutWinnersBias:
    def test_on_pure_noise_the_held_out_score_is_unbiased_while_the_winner_itself_is_not(self) -> None:
        noise, held_out, naive = 0.3, [], []
        forks = (0, 5, 10, 20, 40, 60, 80)
        for seed in range(80):
            cells = surface(noise_only, forks=forks, budgets=[100.0], model_noise=noise, rng_seed=seed)
            (answer,) = best_splits(cells, seconds([100.0]), QUESTION)
            assert answer.hybrid is not None
            held_out.append(math.log(answer.hybrid.scores["kl"].value))
            hybrids = [c for c in answer.candidates if c.is_hybrid]
            score = choose(hybrids, answer.seeds, METRIC).test(METRIC)
            assert score is not None
            naive.append(math.log(score.value))
        error = np.std(held_out, ddof=1) / math.sqrt(len(held_out))
        assert abs(np.mean(held_out)) < 3.5 * error
        assert np.mean(naive) < -0.4 * noise

    def test_on_pure_noise_the_set_holds_nearly_every_share(self) -> None:
        kept, all_shares = 0, 0
        for seed in range(60):
            cells = surface(noise_only, budgets=[400.0], model_noise=0.0, point_noise=0.2, rng_seed=1000 + seed)
            (answer,) = best_splits(cells, seconds([400.0]), QUESTION)
            kept += len(answer.indistinguishable)
            all_shares += len(answer.candidates)
        assert kept / all_shares > 0.93

    def test_on_pure_noise_a_gain_is_claimed_no_more_often_than_one_time_in_twenty(self) -> None:
        claims, runs = 0, 120
        for seed in range(runs):
            cells = surface(noise_only, budgets=[400.0], model_noise=0.0, point_noise=0.2, rng_seed=2000 + seed)
            (answer,) = best_splits(cells, seconds([400.0]), QUESTION)
            assert answer.hybrid_vs_first is not None
            claims += answer.hybrid_vs_first.hi < 0
        assert claims / runs < 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)

    def test_equal_shares_cannot_be_told_apart_and_a_bad_one_can(self) -> None:
        def law(fork: int, tail: str, cost: float) -> float:
            return 1.0 if fork == 160 and tail == "pg" else 0.0

        (answer,) = best_splits(surface(law, model_noise=0.0, point_noise=0.05), seconds([400.0]), QUESTION)
        assert 160 / 400 not in answer.indistinguishable
        assert {0.0, 10 / 400, 40 / 400} <= set(answer.indistinguishable)
        assert answer.best.share in answer.indistinguishable


class TestFewSeeds:
    @pytest.mark.parametrize(("seeds", "said"), [(1, "one seed"), (2, "two seeds")])
    def test_there_is_an_answer_without_interval_and_it_says_so(self, seeds: int, said: str) -> None:
        (answer,) = best_splits(surface(seeds=seeds), seconds([400.0]), QUESTION)
        score = answer.best.scores["kl"]
        assert math.isfinite(score.value)
        assert math.isfinite(score.eval_lo)
        assert math.isnan(score.seed_lo)
        assert math.isnan(score.seed_hi)
        assert "at least 3" in score.reason
        assert any(said in note for note in answer.notes)
        assert answer.indistinguishable == tuple(c.share for c in answer.candidates)


class TestDivergedModels:
    def test_one_diverged_seed_ranks_a_share_behind_all_sound_ones(self) -> None:
        (sound,) = best_splits(surface(), seconds([1600.0]), QUESTION)
        cells = self._diverged(surface(), fork=sound.best.fork_steps or 0, seeds={3})
        (answer,) = best_splits(cells, seconds([1600.0]), QUESTION)
        assert answer.best.fork_steps != sound.best.fork_steps
        lost = next(c for c in answer.candidates if c.fork_steps == sound.best.fork_steps)
        assert lost.diverged == 1
        assert lost.share not in answer.indistinguishable
        score = lost.test(METRIC)
        assert score is not None
        assert math.isnan(score.value)
        assert "1 of 5 seeds diverged" in score.reason
        assert any("diverged" in note for note in answer.notes)

    def test_where_every_second_phase_diverges_the_first_alone_is_best(self) -> None:
        cells = surface()
        for fork in FORKS:
            cells = self._diverged(cells, fork=fork, seeds=set(range(5)))
        (answer,) = best_splits(cells, seconds([1600.0]), QUESTION)
        assert answer.best.share == 1.0
        assert answer.indistinguishable == (1.0,)
        assert answer.hybrid is not None
        assert answer.hybrid.diverged == 5
        assert answer.hybrid_vs_first is not None
        assert math.isnan(answer.hybrid_vs_first.value)

    def test_a_metric_that_is_not_finite_counts_as_diverged(self) -> None:
        cells = surface(seeds=3)
        broken = cells[-1]
        nan = replace(broken.test["kl"], value=math.nan)
        cells[-1] = replace(broken, test={**broken.test, "kl": nan})
        (answer,) = best_splits(cells, seconds([1600.0]), QUESTION)
        assert sum(c.diverged for c in answer.candidates) <= 1
        unjudged = [replace(c, diverged=True, validation={}, test={}) for c in cells]
        assert best_splits(unjudged, seconds([1600.0]), QUESTION)[0].best.scores == {}

    @staticmethod
    def _diverged(cells: list[Cell], *, fork: int, seeds: set[int]) -> list[Cell]:
        def hit(c: Cell) -> bool:
            return (c.fork_steps, c.tail) == (fork, "pg") and c.seed in seeds

        return [replace(c, diverged=c.diverged or hit(c)) for c in cells]


class TestMissingModels:
    def test_a_share_that_a_seed_lacks_is_left_out_and_named(self) -> None:
        cells = [c for c in surface() if not (c.seed == 2 and c.fork_steps == 40 and c.tail == "pg")]
        (answer,) = best_splits(cells, seconds([1600.0]), QUESTION)
        assert 40 / 1600 not in [c.share for c in answer.candidates]
        assert any("seeds [2]" in note for note in answer.notes)
        assert answer.seeds == (0, 1, 2, 3, 4)

    def test_a_seed_that_has_not_reached_the_budget_is_left_out(self) -> None:
        cells = [c for c in surface() if c.seed != 4 or c.cost(SECONDS) < 500]
        first, last = best_splits(cells, seconds([400.0, 1600.0]), QUESTION)
        assert first.seeds == (0, 1, 2, 3, 4)
        assert last.seeds == (0, 1, 2, 3)

    def test_a_budget_that_no_model_reaches_has_no_answer(self) -> None:
        assert best_splits(surface(), seconds([1e6]), QUESTION) == ()
        assert best_splits([], seconds([100.0]), QUESTION) == ()

    def test_a_budget_between_evaluated_ones_is_interpolated_and_says_so(self) -> None:
        (answer,) = best_splits(surface(), seconds([800.0]), QUESTION)
        assert answer.best.interpolated == 5
        assert any("interpolated" in note for note in answer.notes)

    def test_a_metric_that_was_never_estimated_is_refused(self) -> None:
        with pytest.raises(ValueError, match="every cell must carry the metric asked for, got ess, kl, nll"):
            best_splits(surface(), seconds([400.0]), replace(QUESTION, metric=MetricChoice(name="w2")))

    def test_a_negative_metric_has_no_logarithm(self) -> None:
        with pytest.raises(ValueError, match="must be positive, got -2 for nll"):
            MetricChoice(name="nll", log=True).scaled(-2.0)


class TestCrossover:
    def test_the_second_phase_helps_from_the_first_fork_on_and_hurts_from_scratch(self) -> None:
        crossings = crossover(surface(), SECONDS, QUESTION)
        assert [c.fork_steps for c in crossings] == list(FORKS)
        assert [c.helps for c in crossings] == [False, True, True, True]
        assert all(c.cost == BUDGETS[-1] for c in crossings)
        start = begins_to_help(crossings)
        assert start is not None
        assert start.fork_steps == 10
        assert start.quality is not None
        assert start.quality.value == pytest.approx(math.exp(known_law(10, "", 10.0)), rel=0.05)

    def test_a_tie_is_neither(self) -> None:
        for crossing in crossover(surface(noise_only, model_noise=1e-3, seeds=3, rng_seed=3), SECONDS, QUESTION):
            assert crossing.difference.lo < 0.02
        assert begins_to_help(crossover(surface(noise_only, seeds=2), SECONDS, QUESTION)) is None

    def test_tails_are_compared_at_the_last_cost_that_both_reach(self) -> None:
        cells = [c for c in surface() if not (c.tail == "fm_tail" and c.cost(SECONDS) > 500)]
        assert {c.cost for c in crossover(cells, SECONDS, QUESTION)} == {400.0}


class TestSavings:
    def test_the_naive_grid_and_the_tree_are_counted_exactly(self) -> None:
        cells = surface(seeds=2, forks=(0, 50), budgets=[100.0, 200.0])
        both = naive_grid_cost(cells, seconds([100.0, 200.0]))
        assert both.cells == 2 * (2 + 2 * 2 * 2)
        assert both.naive == 2 * (5 * 100 + 5 * 200)
        assert both.tree == 2 * (200 + 2 * 200 + 2 * 150)
        second = naive_grid_cost(cells, seconds([100.0, 200.0]), tails=("pg",))
        assert second.naive == 2 * (3 * 100 + 3 * 200)
        assert second.tree == 2 * (200 + 200 + 150)
        assert second.ratio == pytest.approx(1800 / 1100)

    def test_what_each_model_added_sums_to_what_was_spent(self) -> None:
        cells = surface(seeds=1)
        ends = {(c.fork_steps if c.tail else 0, c.tail): Cost() for c in cells}
        for c in cells:
            key = (c.fork_steps if c.tail else 0, c.tail)
            part = c.tail_cost if c.tail else c.trunk_cost
            ends[key] = max(ends[key], part, key=lambda cost: cost.device_seconds)
        assert sum(spent_costs(cells, SECONDS).values()) == pytest.approx(sum(c.device_seconds for c in ends.values()))
