"""SearchLaws: what every Search promises, whichever tool stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import Search, Suggestion


def score(values: Mapping[str, Any]) -> float:
    """A bowl with its bottom at rate 0.03 and width 24, the same number for the same point."""
    return (float(values["rate"]) - 0.03) ** 2 + ((int(values["width"]) - 24) / 64) ** 2


def run(search: Search, count: int) -> list[Suggestion]:
    """Ask and tell, one at a time."""
    proposed = []
    for _ in range(count):
        suggestion = search.ask()
        assert suggestion is not None
        search.tell(suggestion.number, score(suggestion.values))
        proposed.append(suggestion)
    return proposed


class SearchLaws:
    """Subclasses say how their search is opened, how many points it proposes, and what is in its space."""

    trials: int

    def open(self, folder: Path, seed: int = 0) -> Search:
        """The search kept in this folder: a new one, or an old one taken up again."""
        raise AssertionError("a member of the laws says how its search is opened")

    def inside(self, values: Mapping[str, Any]) -> bool:
        raise AssertionError("a member of the laws says what its space is")

    def test_points_are_inside_the_space(self, tmp_path: Path) -> None:
        assert all(self.inside(suggestion.values) for suggestion in run(self.open(tmp_path), self.trials))

    def test_numbers_are_unique(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        numbers = [suggestion.number for suggestion in (search.ask() for _ in range(self.trials)) if suggestion]
        assert len(set(numbers)) == self.trials

    def test_it_ends_after_its_trials(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        run(search, self.trials)
        assert search.ask() is None
        assert self.open(tmp_path).ask() is None

    def test_tell_is_idempotent(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        first, second = run(search, 2)
        best = search.best
        search.tell(first.number, -1.0)
        search.tell(second.number, None)
        assert search.best == best

    def test_best_is_the_smallest_told(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        assert search.best is None
        proposed = run(search, self.trials)
        assert search.best == min(proposed, key=lambda suggestion: score(suggestion.values))
        assert self.open(tmp_path).best == search.best

    @pytest.mark.parametrize("told", [None, float("nan"), float("inf"), float("-inf")])
    def test_a_failed_trial_is_never_the_best(self, tmp_path: Path, told: float | None) -> None:
        search = self.open(tmp_path)
        failed = search.ask()
        assert failed is not None
        search.tell(failed.number, told)
        assert search.best is None
        (finished,) = run(search, 1)
        assert search.best == finished
        assert self.open(tmp_path).best == finished

    def test_an_unknown_number_is_refused(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        with pytest.raises(ValueError, match="write the number that ask"):
            search.tell(self.trials + 5, 1.0)
        with pytest.raises(ValueError, match="write the number that ask"):
            search.report(self.trials + 5, 1, 1.0)

    def test_same_seed_same_points(self, tmp_path: Path) -> None:
        first, second = (run(self.open(tmp_path / name, seed=3), self.trials) for name in "ab")
        assert first == second

    def test_a_resumed_search_goes_on_as_if_uninterrupted(self, tmp_path: Path) -> None:
        whole = run(self.open(tmp_path / "whole"), self.trials)
        resumed = [point for _ in range(self.trials) for point in run(self.open(tmp_path / "parts"), 1)]
        assert resumed == whole

    def test_asked_and_untold_points_come_again(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        asked = [search.ask() for _ in range(3)]
        assert asked[1] is not None
        search.tell(asked[1].number, 0.5)
        again = self.open(tmp_path)
        assert [again.ask(), again.ask()] == [asked[0], asked[2]]
        rest = run(again, self.trials - 3)
        assert not {suggestion.number for suggestion in rest} & {0, 1, 2}
        assert again.ask() is None

    def test_a_point_told_before_it_is_asked_again_is_not_repeated(self, tmp_path: Path) -> None:
        lost = self.open(tmp_path).ask()
        assert lost is not None
        search = self.open(tmp_path)
        search.tell(lost.number, 0.5)
        following = search.ask()
        assert following is not None
        assert following.number != lost.number

    def test_a_report_may_come_twice(self, tmp_path: Path) -> None:
        search = self.open(tmp_path)
        suggestion = search.ask()
        assert suggestion is not None
        assert search.report(suggestion.number, 1, 0.5) == search.report(suggestion.number, 1, 0.5)
        search.tell(suggestion.number, 0.5)
        assert search.report(suggestion.number, 2, 0.5) is False
