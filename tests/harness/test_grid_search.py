"""GridSearch keeps the laws of a search, in the order of its points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import Choice, FloatRange
from harness.grid_search import GridSearch, grid
from tests.laws.search_laws import SearchLaws, run

SPACE = {"rate": Choice(options=(0.1, 0.03)), "width": Choice(options=(8, 16, 24))}


class TestGridSearch(SearchLaws):
    trials = 6

    def open(self, folder: Path, seed: int = 0) -> GridSearch:
        return GridSearch(points=grid(SPACE), storage=folder / "grid.json")

    def inside(self, values: Mapping[str, Any]) -> bool:
        return all(values[name] in domain.options for name, domain in SPACE.items())


def test_a_grid_is_every_combination_in_order() -> None:
    points = grid(SPACE)
    assert points[:2] == ({"rate": 0.1, "width": 8}, {"rate": 0.1, "width": 16})
    assert len(points) == 6


def test_a_grid_of_ranges_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ranges for rate; write Choice"):
        grid({"rate": FloatRange(low=0.0, high=1.0)})


def test_the_order_of_the_points_is_kept(tmp_path: Path) -> None:
    points = [{"rate": 0.3, "width": 1}, {"rate": 0.1, "width": 2}]
    search = GridSearch(points=points, storage=tmp_path / "grid.json")
    assert [dict(suggestion.values) for suggestion in run(search, 2)] == points


def test_other_points_in_the_same_file_are_refused(tmp_path: Path) -> None:
    run(GridSearch(points=grid(SPACE), storage=tmp_path / "grid.json"), 1)
    with pytest.raises(ValueError, match="begun with others; write another output folder"):
        GridSearch(points=grid(SPACE)[:2], storage=tmp_path / "grid.json")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"points": ""})])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ValueError, match="JSON file of its own"):
        GridSearch(points=grid(SPACE), storage=tmp_path / "grid.json")
