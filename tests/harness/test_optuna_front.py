"""A search of two objectives: its front is the brute-force one, it resumes, and it gets better than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.adapters.optuna_journal import best_before
from harness.adapters.optuna_search import OptunaSearch
from harness.answers.pareto import Priced, hypervolume, pareto_front
from harness.contracts import Choice, FloatRange, Suggestion

SPACE = {
    "spend": FloatRange(low=1.0, high=100.0, log=True),
    "rate": FloatRange(low=1e-4, high=1.0, log=True),
    "kind": Choice(options=("plain", "bent")),
}


def both(values: Mapping[str, Any]) -> tuple[float, float]:
    """A loss that falls with the budget, and with a good rate; "plain" never does better than twice as much."""
    off = math.log10(values["rate"] / 1e-2) ** 2
    return (1.0 + off) * (2.0 if values["kind"] == "plain" else 1.0) / math.sqrt(values["spend"]), values["spend"]


def opened(folder: Path, *, trials: int = 30, objectives: int = 2, **further: Any) -> OptunaSearch:
    return OptunaSearch(
        name="s",
        space=SPACE,
        trials=trials,
        seed=3,
        storage=folder / "search.journal",
        objectives=objectives,
        **further,
    )


def run(search: OptunaSearch, most: int = 99) -> list[Suggestion]:
    done: list[Suggestion] = []
    while len(done) < most and (suggestion := search.ask()) is not None:
        search.tell(suggestion.number, both(suggestion.values))
        done.append(suggestion)
    return done


def beaten(one: tuple[float, ...], others: list[tuple[float, ...]]) -> bool:
    return any(
        all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in others if other != one
    )


def test_the_front_is_that_of_all_pairs(tmp_path: Path) -> None:
    search = opened(tmp_path)
    told = {suggestion.number: both(suggestion.values) for suggestion in run(search)}
    brute = {number for number, pair in told.items() if not beaten(pair, list(told.values()))}
    assert len(told) == 30
    assert 3 <= len(brute) < 30
    assert set(search.front) == brute
    priced = [Priced(name=str(number), cost=cost, loss=loss) for number, (loss, cost) in told.items()]
    assert {int(one.name) for one in pareto_front(priced)} == brute
    assert search.best is not None
    assert told[search.best.number][0] == min(loss for loss, _ in told.values())


def test_it_resumes_where_it_was(tmp_path: Path) -> None:
    whole = run(opened(tmp_path / "whole", trials=16))
    first = opened(tmp_path / "parts", trials=16)
    run(first, 11)
    left_open = first.ask()
    again = opened(tmp_path / "parts", trials=16)
    rest = run(again)
    assert left_open == rest[0]
    assert [*run(opened(tmp_path / "other", trials=16), 11), *rest] == whole
    assert again.ask() is None
    assert {tried.number: tried.value for tried in again.history} == {s.number: both(s.values)[0] for s in whole}


def test_what_failed_is_on_no_front(tmp_path: Path) -> None:
    search = opened(tmp_path, trials=4)
    asked = [search.ask() for _ in range(3)]
    assert all(asked)
    for number, told in enumerate([None, (math.nan, 1.0), (1.0, math.inf)]):
        search.tell(number, told)
    assert search.front == ()
    assert search.best is None
    assert {tried.state for tried in search.history} == {"failed"}
    search.tell(run(search)[0].number, (0.0, 0.0))
    assert search.front == (3,)


def test_the_estimator_does_better_than_chance(tmp_path: Path) -> None:
    points = run(opened(tmp_path, trials=48, n_startup=16))
    priced = [Priced(name=str(s.number), cost=cost, loss=loss) for s in points for loss, cost in [both(s.values)]]
    by_chance, first = priced[:16], priced[16:32]
    assert hypervolume(first, within=priced) > hypervolume(by_chance, within=priced)
    kinds = [s.values["kind"] for s in points[16:]]
    assert kinds.count("bent") > 2 * kinds.count("plain")


def test_a_later_search_starts_from_its_points(tmp_path: Path) -> None:
    search = opened(tmp_path, trials=6)
    told = {s.number: both(s.values)[0] for s in run(search)}
    (best,) = best_before(tmp_path / "search.journal", SPACE, count=1)
    known = next(tried for tried in search.history if tried.number == min(told, key=told.__getitem__))
    assert best == known.values


def test_wrong_rules_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several objectives prunes nothing, got 2 and the pruner 'median'"):
        opened(tmp_path, pruner="median")
    run(opened(tmp_path, trials=2))
    with pytest.raises(ValueError, match=r"one objective|keeps its space|objectives"):
        opened(tmp_path, objectives=1)
