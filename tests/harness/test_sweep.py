"""A sweep's source with a real search on a known response: what is judged when, what is pruned, what is resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.adapters.optuna_importance import fanova
from harness.adapters.optuna_search import OptunaSearch
from harness.answers.importance import importances, mid_ranks, verdict
from harness.contracts import Choice, FloatRange, Ladder, SearchSpace, Suggestion
from harness.plan import Branch, BranchWork, Stop
from harness.sweep import SweepSource
from harness.trial import TrialResult, TrialSpec
from tests.harness.tiny import FM, root, trial

SPACE: SearchSpace = {"rate": FloatRange(low=1e-3, high=1.0, log=True)}
LADDER = Ladder(first=2, factor=3, rungs=3)


@dataclass
class Bench:
    """A sweep whose "training" is remembering; the loss is the rate's distance from 0.03, less with every rung."""

    folder: Path
    trials: int = 8
    kept: set[str] = field(default_factory=set)
    trained: list[int] = field(default_factory=list)
    respond: Callable[[float, int], float] = lambda rate, rung: abs(math.log10(rate / 0.03)) + 1 / rung

    def search(self) -> OptunaSearch:
        path = self.folder / "search.journal"
        return OptunaSearch(
            name="s", space=SPACE, trials=self.trials, seed=0, storage=path, pruner="successive_halving", ladder=LADDER
        )

    def works(self, suggestion: Suggestion, rung: int) -> tuple[BranchWork, ...]:
        phase = replace(FM, optimiser=replace(FM.optimiser, learning_rate=suggestion.values["rate"]))
        stops = tuple(Stop(steps=steps) for steps in LADDER.steps[:rung])
        return (BranchWork(branch=Branch(parent=root(), phase=phase, seed=0), stops=stops),)

    def is_missing(self, work: BranchWork) -> bool:
        return any(segment.hash not in self.kept for segment in work.segments)

    def source(self, search: OptunaSearch) -> SweepSource:
        return SweepSource(
            search,
            steps=LADDER.steps,
            works=self.works,
            is_missing=self.is_missing,
            spec=lambda suggestion, rung, works: trial(self.folder, works, seed=suggestion.number),
            loss=lambda suggestion, rung: self.respond(suggestion.values["rate"], rung),
            on_change=lambda suggestion: None,
            on_result=lambda result: None,
        )

    def train(self, spec: TrialSpec) -> TrialResult:
        self.trained.append(spec.works[0].stops[-1].steps)
        self.kept |= {segment.hash for work in spec.works for segment in work.segments}
        return TrialResult(spec=spec, status="finished")

    def run(self, *, at_most: int = 1000) -> OptunaSearch:
        search = self.search()
        source = self.source(search)
        for _ in range(at_most):
            spec = source.ask()
            if spec is None:
                break
            source.tell(self.train(spec))
        else:
            return search
        assert source.finished
        return search


def test_those_that_lag_are_pruned_and_trained_no_further(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    history = bench.run().history
    states = [tried.state for tried in history]
    assert set(states) == {"finished", "pruned"}
    for tried in history:
        rungs = len(tried.reported) + (tried.state == "finished")
        work = bench.works(Suggestion(number=tried.number, values=tried.values), 3)[0]
        assert [segment.hash in bench.kept for segment in work.segments] == [k < rungs for k in range(3)]
        expected = {LADDER.steps[k]: bench.respond(tried.values["rate"], k + 1) for k in range(len(tried.reported))}
        assert dict(tried.reported) == expected
        assert tried.value == (bench.respond(tried.values["rate"], 3) if tried.state == "finished" else None)


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_killed_sweep_goes_on_as_if_it_had_not_been(tmp_path: Path, after: int) -> None:
    whole, killed = Bench(tmp_path / "whole"), Bench(tmp_path / "killed")
    expected = whole.run().history
    killed.run(at_most=after)
    assert len(killed.trained) == after
    assert killed.run().history == expected
    assert killed.trained == whole.trained
    killed.run()
    assert killed.trained == whole.trained


def test_what_diverges_or_fails_is_told_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, respond=lambda rate, rung: math.inf if rate > 0.03 else rate)
    history = bench.run().history
    assert {tried.state for tried in history if tried.values["rate"] > 0.03} == {"failed"}
    assert all(tried.state != "failed" for tried in history if tried.values["rate"] < 0.03)
    lost = Bench(tmp_path / "lost")
    source = lost.source(search := lost.search())
    spec = source.ask()
    assert spec is not None
    source.tell(TrialResult(spec=spec, status="failed", error="lost"))
    assert search.history[0].state == "failed"


def test_several_points_are_open_at_once_and_the_same_branch_is_not_trained_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path, trials=3)
    source = bench.source(bench.search())
    specs = [spec for spec in (source.ask() for _ in range(4)) if spec is not None]
    assert [len(specs), source.finished] == [3, False]
    for spec in specs:
        source.tell(bench.train(spec))
    assert source.ask() is not None
    same = Bench(tmp_path / "same", trials=2)
    phase = same.works(Suggestion(number=0, values={"rate": 0.1}), 3)[0].branch
    same.works = (
        lambda suggestion, rung: (  # type: ignore[method-assign]
            BranchWork(branch=phase, stops=tuple(Stop(steps=n) for n in LADDER.steps[:rung])),
        )
    )
    source = same.source(same.search())
    first, waiting = source.ask(), source.ask()
    assert first is not None
    assert waiting is None
    source.tell(same.train(first))
    while (spec := source.ask()) is not None:
        source.tell(same.train(spec))
    assert source.finished
    assert len(same.trained) == len(set(same.trained))


def test_a_ladder_rises_by_its_factor() -> None:
    assert LADDER.steps == (2, 6, 18)
    for wrong in ({"first": 0}, {"factor": 1}, {"rungs": 0}):
        with pytest.raises(ValueError, match="--first-rung 200 --factor 3"):
            Ladder(**{"first": 2, "factor": 3, "rungs": 3, **wrong})


def test_functional_anova_finds_what_decides() -> None:
    rng = np.random.default_rng(0)
    space: SearchSpace = {
        "rate": FloatRange(low=0.0, high=1.0),
        "idle": FloatRange(low=0.0, high=1.0),
        "kind": Choice(options=((1, 2), None)),
    }
    points = [{"rate": rng.random(), "idle": rng.random(), "kind": ((1, 2), None)[k % 2]} for k in range(40)]
    found = fanova(space, points, [point["rate"] + 0.5 * (point["kind"] is None) for point in points], seed=0)
    assert 0.85 < sum(found.values()) <= 1.0 + 1e-9
    # rate has variance 1/12, kind 1/16: shares 4/7 and 3/7 of a sum without interaction.
    assert found["rate"] == pytest.approx(4 / 7, abs=0.12)
    assert found["kind"] == pytest.approx(3 / 7, abs=0.12)
    assert fanova(space, points, [1.0] * 40, seed=0) == {"rate": 0.0, "idle": 0.0, "kind": 0.0}
    with pytest.raises(ValueError, match="at least two points"):
        fanova(space, points[:1], [1.0], seed=0)


def correlation(points: Sequence[Mapping[str, Any]], results: Sequence[float], seed: int) -> dict[str, float]:
    """A cheap share: squared correlations."""
    return {name: float(np.corrcoef([p[name] for p in points], results)[0, 1] ** 2) for name in points[0]}


def test_importance_has_an_interval_and_is_told_from_chance() -> None:
    rng = np.random.default_rng(1)
    points = [{"a": rng.random(), "b": rng.random()} for _ in range(60)]
    results = [math.inf if p["a"] > 0.95 else math.exp(20 * p["a"]) for p in points]
    a, b = importances(points, results, shares=correlation, resamples=60, seed=0)
    assert (a.name, b.name, a.n) == ("a", "b", 60)
    assert 0.95 < a.lo <= a.share <= a.hi
    assert a.is_told_from_chance
    assert not b.is_told_from_chance
    assert 0.02 < a.chance < 0.2
    assert verdict([a, b]) == "told from chance: a"
    few = importances(points[:5], results[:5], shares=correlation, resamples=5, seed=0)
    assert verdict(few) == "too few trials to say which settings matter: 5 for 2 settings, where 10 are asked"
    assert importances(points[:1], results[:1], shares=correlation, resamples=5, seed=0) == ()


def test_equal_results_share_a_rank() -> None:
    assert mid_ranks([3.0, math.inf, 3.0, -1.0]).tolist() == [2.5, 4.0, 2.5, 1.0]
