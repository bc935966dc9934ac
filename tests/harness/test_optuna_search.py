"""OptunaSearch keeps the laws of a search, prunes, learns, and survives being killed."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.adapters.optuna_journal import best_before
from harness.adapters.optuna_search import OptunaSearch
from harness.contracts import Choice, FloatRange, IntRange, PrunerName, SearchSpace
from tests.laws.search_laws import SearchLaws, run, score

SPACE: SearchSpace = {
    "rate": FloatRange(low=1e-4, high=1.0, log=True),
    "width": IntRange(low=8, high=64),
    "layers": Choice(options=((64, 64), [32], None, "none")),
}


def opened(
    folder: Path, *, trials: int = 12, seed: int = 0, pruner: PrunerName = "none", space: SearchSpace = SPACE
) -> OptunaSearch:
    storage = folder / "search.journal"
    return OptunaSearch(name="bowl", space=space, trials=trials, seed=seed, storage=storage, pruner=pruner, n_startup=4)


class TestOptunaSearch(SearchLaws):
    trials = 12

    def open(self, folder: Path, seed: int = 0) -> OptunaSearch:
        return opened(folder, trials=self.trials, seed=seed)

    def inside(self, values: Mapping[str, Any]) -> bool:
        return (
            1e-4 <= values["rate"] <= 1.0
            and values["width"] in range(8, 65)
            and values["layers"] in ((64, 64), [32], None, "none")
        )


CONDITIONAL: SearchSpace = {
    "plan": Choice(options=("a", "b", "a,b")),
    "rate": FloatRange(low=1e-4, high=1.0, log=True),
    "width": IntRange(low=8, high=64),
    "split": FloatRange(low=0.1, high=0.9),
}
ACTS = {"split": ("plan", ("a,b",)), "width": ("plan", ("b", "a,b"))}


def conditional(
    folder: Path, *, trials: int = 12, seed: int = 0, first: tuple[dict[str, Any], ...] = ()
) -> OptunaSearch:
    return OptunaSearch(
        name="bowl",
        space=CONDITIONAL,
        trials=trials,
        seed=0,
        storage=folder / "search.journal",
        n_startup=4,
        acts=ACTS,
        first=first,
    )


def bowl(values: Mapping[str, Any]) -> float:
    return (math.log10(values["rate"]) + 2) ** 2 + values.get("split", 1.0) + abs(values.get("width", 90) - 24) / 64


def asked(search: OptunaSearch, count: int) -> list[dict[str, Any]]:
    found = []
    for _ in range(count):
        suggestion = search.ask()
        assert suggestion is not None
        search.tell(suggestion.number, bowl(suggestion.values))
        found.append(dict(suggestion.values))
    return found


def test_settings_are_drawn_only_where_they_act(tmp_path: Path) -> None:
    whole = asked(conditional(tmp_path / "whole"), 12)
    names = {"a": {"plan", "rate"}, "b": {"plan", "rate", "width"}, "a,b": {"plan", "rate", "width", "split"}}
    assert {values["plan"] for values in whole} == names.keys()
    assert all(values.keys() == names[values["plan"]] for values in whole)
    resumed = [values for _ in range(12) for values in asked(conditional(tmp_path / "parts"), 1)]
    assert resumed == whole
    history = conditional(tmp_path / "parts").history
    assert [dict(tried.values) for tried in history] == whole
    with pytest.raises(ValueError, match="keeps its space"):
        opened(tmp_path / "parts", space=CONDITIONAL)


def test_the_first_points_take_what_they_are_given_and_draw_the_rest(tmp_path: Path) -> None:
    first = ({"plan": "a,b", "rate": 0.01, "split": 0.25}, {"plan": "a"})
    whole = asked(conditional(tmp_path / "whole", first=first), 6)
    assert {**whole[0], **first[0]} == whole[0]
    assert whole[0].keys() == CONDITIONAL.keys()
    assert (whole[1]["plan"], whole[1].keys()) == ("a", {"plan", "rate"})
    assert [v for _ in range(6) for v in asked(conditional(tmp_path / "parts", first=first), 1)] == whole


def test_the_best_points_of_an_earlier_journal_are_found(tmp_path: Path) -> None:
    search = conditional(tmp_path, trials=9)
    points = asked(search, 8)
    lost = search.ask()
    assert lost is not None
    search.tell(lost.number, None)
    journal = tmp_path / "search.journal"
    before = journal.read_bytes()
    best = sorted(points, key=bowl)
    assert list(best_before(journal, CONDITIONAL, count=3)) == best[:3]
    assert len(best_before(journal, CONDITIONAL, count=99)) == 8
    # Values outside the new space, and names that it lacks, are left out.
    narrow: SearchSpace = {"rate": FloatRange(low=5e-3, high=5e-2), "plan": Choice(options=("a", "c"))}
    found = best_before(journal, narrow, count=99)
    assert all(len(values) > 0 and values.keys() <= {"rate", "plan"} for values in found)
    assert {values["plan"] for values in found if "plan" in values} <= {"a"}
    assert journal.read_bytes() == before
    journal.write_bytes(before + b'{"half a line')
    assert list(best_before(journal, CONDITIONAL, count=3)) == best[:3]
    with pytest.raises(ValueError, match="got none with settings of this one"):
        best_before(journal, {"other": FloatRange(low=0.0, high=1.0)}, count=3)


def test_another_seed_draws_other_points(tmp_path: Path) -> None:
    assert run(opened(tmp_path / "a", seed=1), 2) != run(opened(tmp_path / "b", seed=2), 2)


def test_it_comes_nearer_than_chance(tmp_path: Path) -> None:
    scores = [score(suggestion.values) for suggestion in run(opened(tmp_path, trials=40), 40)]
    assert sum(scores[-10:]) < 0.5 * sum(scores[:10])


def test_it_keeps_away_from_points_that_fail(tmp_path: Path) -> None:
    search = opened(tmp_path, trials=40, space={"rate": FloatRange(low=0.0, high=1.0)})
    failed = []
    for _ in range(40):
        suggestion = search.ask()
        assert suggestion is not None
        failed.append(suggestion.values["rate"] > 0.5)
        search.tell(suggestion.number, None if failed[-1] else 1.0)
    assert sum(failed[-15:]) <= 4


def test_more_trials_may_be_asked_of_an_old_search(tmp_path: Path) -> None:
    run(opened(tmp_path, trials=3), 3)
    more = opened(tmp_path, trials=5)
    assert [suggestion.number for suggestion in run(more, 2)] == [3, 4]
    assert more.ask() is None


@pytest.mark.parametrize("pruner", ["median", "successive_halving"])
def test_a_hopeless_trial_is_pruned_and_stays_so(tmp_path: Path, pruner: PrunerName) -> None:
    search = opened(tmp_path, pruner=pruner)
    for suggestion in [search.ask() for _ in range(6)]:
        assert suggestion is not None
        assert not any(search.report(suggestion.number, step, 1.0) for step in range(1, 5))
        search.tell(suggestion.number, 1.0)
    hopeless = search.ask()
    assert hopeless is not None
    assert any(search.report(hopeless.number, step, 100.0) for step in range(1, 9))
    again = opened(tmp_path, pruner=pruner)
    assert again.ask() == hopeless
    assert again.report(hopeless.number, 1, 100.0)
    again.tell(hopeless.number, -5.0)
    assert again.best is not None
    assert again.best.number != hopeless.number
    assert again.report(hopeless.number, 9, 100.0)


def test_a_diverged_report_is_pruned_at_once(tmp_path: Path) -> None:
    search = opened(tmp_path, pruner="median")
    wild = search.ask()
    assert wild is not None
    assert search.report(wild.number, 1, float("nan"))
    assert search.report(wild.number, 1, float("nan"))


def test_other_rules_in_the_same_journal_are_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(ValueError, match="keeps its space, seed, pruner and startup"):
        opened(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (FloatRange(low=0.0, high=1.0, log=True), "above 0 on a log scale"),
        (IntRange(low=3, high=1), "from low to high"),
        (Choice(options=()), "distinct options"),
        (Choice(options=(1, 1)), "distinct options"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path: Path, domain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, space={"rate": domain})


def test_a_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "search.journal").mkdir()
    with pytest.raises(ValueError, match="a file that it can write"):
        opened(tmp_path)


def test_a_journal_cut_anywhere_leads_to_the_same_points(tmp_path: Path) -> None:
    whole = run(opened(tmp_path / "whole"), 12)
    lines = (tmp_path / "whole" / "search.journal").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut" / "search.journal"
    cut.parent.mkdir()
    for kept in range(len(lines)):
        cut.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        search = opened(cut.parent)
        told = sum(trial.state.is_finished() for trial in search._all())
        assert run(search, 1) == [whole[told]]
        assert all(json.loads(line) for line in cut.read_bytes().splitlines())


def search_on(folder: Path) -> None:
    run(opened(folder, trials=400), 400)


@pytest.mark.faults
def test_a_killed_search_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    journal = tmp_path / "killed" / "search.journal"
    for lines in (40, 150, 260):
        # Forked: a new interpreter would spend seconds on imports before it could be killed.
        child = multiprocessing.get_context("fork").Process(target=search_on, args=(journal.parent,))
        child.start()
        while child.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
            time.sleep(0.005)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    after = opened(journal.parent, trials=400)
    told = [trial for trial in after._all() if trial.state.is_finished()]
    (following,) = run(after, 1)
    whole = run(opened(tmp_path / "whole", trials=400), len(told) + 1)
    assert [trial.number for trial in told] == list(range(len(told)))
    assert [trial.params["rate"] for trial in told] == [suggestion.values["rate"] for suggestion in whole[:-1]]
    assert following == whole[-1]
