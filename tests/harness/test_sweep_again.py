"""Points trained again, and the Pareto front, on numbers that are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from harness.answers.pareto import Priced, draw_pareto, pareto_front
from harness.contracts import Tried
from harness.sweep_again import Again, TrainedAgain, again_rows, again_text, verdict
from harness.sweep_run import JudgedRung, SweptPoint
from models.estimators import t_interval
from studies.noise_schedule import NoiseSchedule

AGAIN = Again(top=3, seeds=(7, 8, 9, 10))


def again(number: int, swept: float, validation: list[float], shift: float = 0.1) -> TrainedAgain:
    tried = Tried(number=number, values={"family": "linear", "clip": 2.0}, state="finished", reported={}, value=swept)
    rung = JudgedRung(steps=9, loss=swept, test_loss=swept, segments={0: "a"}, cost=1.0, stages="fm=3 pg=2")
    return TrainedAgain(
        point=SweptPoint(tried=tried, rungs=(rung,), device_seconds=1.0),
        validation=tuple(validation),
        test=tuple(value + shift for value in validation),
        segments=("a", "b", "c", "d"),
    )


def test_what_a_choice_flattered_is_told_with_its_interval() -> None:
    """The winner's curse by numbers: chosen at 1.0, 1.4 on average when trained again."""
    best = again(4, 1.0, [1.3, 1.5, 1.4, 1.4])
    expected = t_interval([0.3, 0.5, 0.4, 0.4])
    assert (best.shrinkage.value, best.shrinkage.lo) == pytest.approx((0.4, expected.lo))
    close, worse = again(2, 0.9, [1.45, 1.4, 1.35, 1.5]), again(5, 1.1, [2.3, 2.5, 2.45, 2.35])
    sweep = NoiseSchedule().sweep()
    text = again_text(sweep, [best, close, worse], AGAIN)
    assert "fresh seeds 7, 8, 9, 10; [ ] 95 % t interval over n = 4 seeds" in text
    assert "winner: point 4: family linear, clip 2 (--stages fm=3 pg=2); not told from it: 2" in text
    assert verdict(sweep, [best, worse]).endswith("all others are told from it")
    rows = again_rows([best, close], AGAIN)
    assert [(row["point"], row["seed"]) for row in rows] == [(n, seed) for n in (4, 2) for seed in AGAIN.seeds]
    assert rows[1]["test_loss"] == pytest.approx(1.6)


def test_a_seed_that_diverged_leaves_no_interval() -> None:
    lost = again(1, 1.0, [1.1, math.inf, 1.2, 1.3])
    text = again_text(NoiseSchedule().sweep(), [lost], AGAIN)
    assert "1 of 4 seeds are not finite" in text
    assert again_text(NoiseSchedule().sweep(), [], AGAIN) == "no point reached the last rung, so none was trained again"


def test_one_noisy_best_of_many_shrinks_to_the_mean() -> None:
    """Points that are all alike: the best of 40 looks better, and fresh seeds say by how much."""
    rng = np.random.default_rng(0)
    swept, fresh = rng.normal(size=40), rng.normal(size=(40, 4))
    best = int(swept.argmin())
    one = again(best, float(swept[best]), list(fresh[best]))
    assert one.shrinkage.value > 1.0
    assert one.shrinkage.lo < -swept[best] < one.shrinkage.hi


def test_the_front_is_what_nothing_beats(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    points = [Priced(name=str(k), cost=float(c), loss=float(v)) for k, (c, v) in enumerate(rng.integers(1, 9, (60, 2)))]
    points.append(Priced(name="lost", cost=0.5, loss=math.inf))
    front = pareto_front(points)
    for point in points:
        beaten = any(
            (o.cost <= point.cost and o.loss < point.loss) or (o.cost < point.cost and o.loss <= point.loss)
            for o in points
        )
        same = any((o.cost, o.loss) == (point.cost, point.loss) for o in front)
        assert same == (not beaten and math.isfinite(point.loss))
    assert [one.cost for one in front] == sorted({one.cost for one in front})
    assert pareto_front([]) == ()
    draw_pareto(tmp_path / "front.png", points, title="NLL", currency="s")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_that_chose_are_not_fresh() -> None:
    sweep = NoiseSchedule(seeds="3").sweep()
    Again(top=1, seeds=(5, 6)).check(sweep)
    with pytest.raises(ValueError, match="got 2 in both; write for example --again-seeds"):
        Again(top=1, seeds=(2, 5)).check(sweep)
    with pytest.raises(ValueError, match="got 0 of them; write --again 3"):
        Again(top=0, seeds=(5,)).check(sweep)
