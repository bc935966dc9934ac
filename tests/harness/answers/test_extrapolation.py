"""A law put to the test: inside where the law goes on, outside where it ends, and a share that is better or worse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from harness.answers.extrapolation import Prediction, Trial, judge_prediction, predict
from harness.answers.extrapolation_report import prediction_text, trial_rows, trial_text
from harness.answers.frontier import best_splits
from harness.identity import plain
from tests.harness.answers.synthetic_surface import METRIC, QUESTION, Law, seconds, surface

FITTED = [float(round(b)) for b in np.geomspace(100, 10_000, 6)]
(BEYOND,) = seconds([40_000.0])
BOTH = replace(QUESTION, quality="nll")


def straight(fork: int, tail: str, cost: float) -> float:
    """Power laws all the way: the second phase gains a factor from any fork, and loses one from scratch."""
    gain = {"": 0.0, "fm_tail": 0.05, "pg": 1.0 if fork else -1.0}[tail]
    return math.log(2.0) - 0.5 * math.log(max(cost, 1.0)) - gain


@cache
def told(seeds: int = 3) -> Prediction:
    answers = best_splits(surface(straight, budgets=FITTED, seeds=seeds), seconds(FITTED), BOTH)
    return predict(answers, BEYOND, BOTH)


@cache
def tried(law: Law = straight, *, predicted: int | None = 40, same: int | None = 160, seeds: int = 3) -> Trial:
    cells = surface(law, budgets=[BEYOND.amount], rng_seed=1, seeds=seeds)
    (answer,) = best_splits(cells, [BEYOND], BOTH)
    return judge_prediction(told(seeds), answer, BOTH, predicted=predicted, same=same)


def test_a_prediction_is_of_the_laws_alone_and_outlives_its_file() -> None:
    prediction = told()
    assert prediction.fitted == seconds(FITTED)
    assert prediction.seeds == (0, 1, 2)
    assert set(prediction.metrics) == {"kl", "nll"}
    assert prediction.metrics["kl"]["first_only"].value == pytest.approx(math.exp(straight(0, "fm_tail", 4e4)), rel=0.1)
    assert Prediction.from_plain(json.loads(json.dumps(plain(prediction)))) == prediction


def test_a_law_that_goes_on_holds_and_one_that_ends_does_not() -> None:
    def inside(trial: Trial) -> dict[tuple[str, str], bool | None]:
        return {(c.metric.name, c.way): c.inside for c in trial.comparisons}

    assert inside(tried())["kl", "best"] is True

    def stuck(fork: int, tail: str, cost: float) -> float:
        return straight(fork, tail, cost) + (math.log(20.0) if tail == "pg" else 0.0)

    broken = inside(tried(stuck))
    assert broken["kl", "best"] is False
    assert broken["kl", "first_only"] is True


def test_the_interval_is_set_against_the_gap_on_the_comparison_scale() -> None:
    trial = tried()
    best = next(c for c in trial.comparisons if (c.metric.name, c.way) == ("kl", "best"))
    assert best.width == pytest.approx(math.log(best.predicted.hi / best.predicted.lo))
    assert trial.answer.hybrid_vs_first is not None
    assert best.gap == pytest.approx(abs(trial.answer.hybrid_vs_first.value))
    assert best.useful is True
    assert best.found == trial.predicted.test(METRIC)


@pytest.mark.parametrize(("predicted", "same", "better"), [(40, 0, True), (0, 40, False), (40, 160, None)])
def test_the_chosen_split_is_told_better_or_worse_only_where_that_shows(
    predicted: int, same: int, better: bool | None
) -> None:
    trial = tried(predicted=predicted, same=same)
    assert trial.gains is not None
    assert trial.beats_guess(METRIC) is better


def test_one_split_for_both_is_no_gain() -> None:
    trial = tried(predicted=40, same=40)
    assert trial.gains is None
    assert trial.beats_guess(METRIC) is None
    assert "the same split as the guess" in trial_text(trial, BOTH)


def test_first_phase_alone_is_a_split_as_well() -> None:
    trial = tried(predicted=None)
    assert trial.predicted.share == 1.0


def test_a_split_that_was_not_run_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"judged by its own split, got forks after .* none after 41; run the same"):
        tried(predicted=41)


def test_too_few_budgets_tell_nothing() -> None:
    few = [100.0, 400.0, 1600.0]
    with pytest.raises(ValueError, match="at least six budgets over two decades, got 3"):
        predict(best_splits(surface(budgets=few), seconds(few), BOTH), BEYOND, BOTH)


def test_two_seeds_give_values_and_no_verdict() -> None:
    trial = tried(seeds=2)
    assert all(c.inside is None and c.useful is None for c in trial.comparisons)
    assert "they cannot be told apart" in trial_text(trial, BOTH)


def test_text_and_rows_tell_what_was_told_and_found() -> None:
    trial = tried(predicted=40, same=0)
    before = prediction_text(trial.prediction, BOTH)
    assert before.startswith(
        "told before any model of 4e+04s was read, from 6 budgets between 100s and 1e+04s (3 seeds)"
    )
    text = trial_text(trial, BOTH)
    assert "predicted" in text
    assert "the law is better" in text
    rows = trial_rows(trial)
    assert [(row["metric"], row["way"]) for row in rows] == [(c.metric.name, c.way) for c in trial.comparisons]
    assert rows[0]["seeds"] == 3
