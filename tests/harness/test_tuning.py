"""Tuning with real searches on a known response: equal effort for all phases, and the best settings are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from harness.adapters.optuna_search import OptunaSearch
from harness.budget import Currency
from harness.contracts import Choice, FloatRange, Search, SearchSpace, Suggestion
from harness.grid_search import GridSearch, grid
from harness.plan import Branch, BranchWork, Phase, Stop
from harness.split import SplitPhases, cuts
from harness.tuning import TUNING_SEED, Judge, Tuning, rungs, tune, with_settings
from tests.harness.test_split import PHASES, PRICES, budgets
from tests.harness.tiny import FM, PG, TAIL

BEST = {"fm": 1.6e-2, "pg": 2.1e-3, "fm_tail": 3.3e-3}
"""The rate at which each phase's response is smallest."""
ASKED = budgets(Currency.DEVICE_SECONDS, top=16.0, count=4)


def response(phase: Phase) -> float:
    """(log10(rate / best))^2."""
    name = {p.price_fingerprint: p.name for p in PHASES.all}[phase.price_fingerprint]
    return math.log10(phase.optimiser.learning_rate / BEST[name]) ** 2


@dataclass
class Counted:
    """A search that remembers what was asked of it and what it was told."""

    search: Search
    asked: list[Suggestion] = field(default_factory=list)
    told: dict[int, float | None] = field(default_factory=dict)

    def ask(self) -> Suggestion | None:
        found = self.search.ask()
        self.asked += [] if found is None else [found]
        return found

    def tell(self, number: int, value: float | None) -> None:
        assert number not in self.told
        self.told[number] = value
        self.search.tell(number, value)

    def report(self, number: int, step: int, value: float) -> bool:
        return self.search.report(number, step, value)

    @property
    def best(self) -> Suggestion | None:
        return self.search.best


@dataclass
class Outcome:
    chosen: SplitPhases
    searches: dict[str, Counted]
    rounds: list[list[BranchWork]]


def evenly(space: SearchSpace, count: int) -> tuple[dict[str, Any], ...]:
    """Points that are even in the logarithm, from end to end."""
    ranges = {name: domain for name, domain in space.items() if isinstance(domain, FloatRange)}
    return grid({k: Choice(options=tuple(np.geomspace(r.low, r.high, count).tolist())) for k, r in ranges.items()})


Response = Callable[[Phase], float]


def tuned(
    folder: Path, kind: Literal["grid", "tpe"], *, trials: int = 8, respond: Response = response, pruner: Any = "none"
) -> Outcome:
    """Tune all phases; "training" is remembering which phase a segment came from."""
    trained: dict[str, Phase] = {}
    searches: dict[str, Counted] = {}
    chosen: list[SplitPhases] = []

    def make(name: str, space: SearchSpace) -> Search:
        path = folder / f"{name}.search"
        if kind == "grid":
            search: Search = GridSearch(points=evenly(space, trials), storage=path)
        else:
            search = OptunaSearch(name=name, space=space, trials=trials, seed=0, storage=path, pruner=pruner)
        searches[name] = Counted(search)
        return searches[name]

    rounds = []
    judge = Judge(value=lambda segment: respond(trained[segment]), budgets=ASKED, prices=PRICES)
    for works in tune(
        PHASES, root="root", tuning=Tuning(trials=trials), judge=judge, make_search=make, done=chosen.append
    ):
        rounds.append(list(works))
        trained |= {segment.hash: work.branch.phase for work in works for segment in work.segments}
    (phases,) = chosen
    return Outcome(chosen=phases, searches=searches, rounds=rounds)


@pytest.mark.parametrize("kind", ["grid", "tpe"])
def test_the_best_settings_are_chosen_and_all_phases_get_as_many_trials(
    tmp_path: Path, kind: Literal["grid", "tpe"]
) -> None:
    outcome = tuned(tmp_path, kind)
    assert {name: len(search.asked) for name, search in outcome.searches.items()} == {"trunk": 8, "pg": 8, "fm_tail": 8}
    for name, phase in zip(("trunk", "pg", "fm_tail"), outcome.chosen.all, strict=True):
        search = outcome.searches[name]
        assert search.told.keys() == {suggestion.number for suggestion in search.asked}
        tried = [with_settings(phase, suggestion.values) for suggestion in search.asked]
        assert response(phase) == min(response(other) for other in tried)
        assert (phase.name, phase.batch) == ({"trunk": "fm"}.get(name, name), phase.batch)


def test_a_grid_comes_close_to_the_best_rate(tmp_path: Path) -> None:
    for phase in tuned(tmp_path, "grid", trials=9).chosen.all:
        assert abs(math.log10(phase.optimiser.learning_rate / BEST[phase.name])) <= math.log10(25) / 16 + 1e-9


def test_tails_start_from_the_best_trunk(tmp_path: Path) -> None:
    outcome = tuned(tmp_path, "grid")
    works = [work for works in outcome.rounds for work in works]
    trunks = {w.branch.at(stop.steps).hash for w in works for stop in w.stops if w.branch.phase == outcome.chosen.trunk}
    tails = [work for work in works if work.branch.phase.price_fingerprint != FM.price_fingerprint]
    assert tails
    assert {work.branch.parent for work in tails} <= trunks
    assert {work.branch.seed for work in works} == {TUNING_SEED}
    (forks,) = [w for w in works if w.branch.phase == outcome.chosen.trunk and not w.stops[0].evaluate]
    assert len({work.branch.parent for work in tails}) == len(forks.stops) == 2


def test_parents_are_trained_in_an_earlier_round(tmp_path: Path) -> None:
    known = {"root"}
    for works in tuned(tmp_path, "tpe", trials=4).rounds:
        assert {work.branch.parent for work in works} <= known
        known |= {segment.hash for work in works for segment in work.segments}


def test_a_suggestion_that_fails_is_told_as_failed(tmp_path: Path) -> None:
    def respond(phase: Phase) -> float:
        return math.inf if phase.optimiser.learning_rate > 1e-2 else response(phase)

    outcome = tuned(tmp_path, "grid", respond=respond)
    for search in outcome.searches.values():
        rates = {s.number: s.values["learning_rate"] for s in search.asked}
        assert all((search.told[n] is None) == (rate > 1e-2) for n, rate in rates.items())
    assert outcome.chosen.trunk.optimiser.learning_rate <= 1e-2


def test_where_all_fail_the_recipe_stays(tmp_path: Path) -> None:
    outcome = tuned(tmp_path, "grid", respond=lambda phase: math.inf, trials=2)
    assert outcome.chosen == PHASES


def test_what_is_pruned_is_told_so_and_trained_no_further(tmp_path: Path) -> None:
    outcome = tuned(tmp_path, "tpe", trials=16, pruner="median")
    longest = max(stop.steps for works in outcome.rounds for work in works for stop in work.stops)
    pruned = 0
    for search in outcome.searches.values():
        assert search.told.keys() == {suggestion.number for suggestion in search.asked}
        pruned += sum(value is None for value in search.told.values())
        again = search.search.ask()
        assert again is None
    assert pruned > 0
    assert longest > 0


def test_a_tuning_that_was_told_everything_trains_nothing_again(tmp_path: Path) -> None:
    first = tuned(tmp_path, "tpe", trials=4, pruner="median")
    again = tuned(tmp_path, "tpe", trials=4, pruner="median")
    assert again.chosen == first.chosen
    assert [len(works) for works in again.rounds] == [1]


def test_the_score_is_the_mean_over_budgets_of_the_best_fork() -> None:
    steps = {budget.amount: cuts(PRICES.of(PG), [budget], already_spent=1.0)[0] for budget in ASKED}
    search_phase = replace(PG, batch=PG.batch)
    values: dict[str, float] = {}
    ways = []
    for number, spent in enumerate((1.0, 5.0)):
        branch = Branch(parent=f"fork{number}", phase=search_phase, seed=0)
        ends = cuts(PRICES.of(PG), ASKED, already_spent=spent)
        work = BranchWork(branch=branch, stops=tuple(Stop(steps=n) for n in ends))
        values |= {segment.hash: 10.0 * number + k for k, segment in enumerate(work.segments)}
        ways.append((spent, work))
    judge = Judge(value=values.__getitem__, budgets=ASKED, prices=PRICES)
    assert len(steps) == 4
    assert judge.score(ways, 4) == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert judge.score(ways, 2) == pytest.approx(0.5)
    assert judge.score(ways[1:], 4) == math.inf  # the second fork has spent more than the two smallest budgets


def test_settings_are_put_where_they_belong() -> None:
    changed = with_settings(FM, {"learning_rate": 0.5, "batch": 7, "sigma": 0.3})
    assert (changed.optimiser.learning_rate, changed.batch, changed.objective["sigma"]) == (0.5, 7, 0.3)
    assert FM.objective["sigma"] == 0.0
    assert with_settings(TAIL, {}) == TAIL


@pytest.mark.parametrize(("count", "expected"), [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (4, (2, 4)), (9, (4, 9))])
def test_rungs_end_with_all_budgets(count: int, expected: tuple[int, ...]) -> None:
    assert rungs(count) == expected


def test_one_trial_is_no_tuning() -> None:
    with pytest.raises(ValueError, match="at least two trials"):
        Tuning(trials=1)
