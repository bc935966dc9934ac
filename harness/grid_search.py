"""GridSearch: every point of a list, in order, once; kept in a small JSON file, without any tool."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.contracts import Choice, SearchSpace, Suggestion
from harness.identity import content_hash


def grid(space: SearchSpace) -> tuple[dict[str, Any], ...]:
    """Every combination of the options, the last name varying fastest.

    Raises:
        ValueError: if something other than a Choice is in the space.
    """
    ranges = [name for name, domain in space.items() if not isinstance(domain, Choice)]
    if ranges:
        raise ValueError(f"a grid is made of choices, got ranges for {', '.join(ranges)}; write Choice(options=(...))")
    options = [domain.options for domain in space.values() if isinstance(domain, Choice)]
    return tuple(dict(zip(space, values, strict=True)) for values in itertools.product(*options))


class GridSearch:
    """Proposes the points in their order; the number of a point is its place in the list.

    What was told is in the storage before `tell` returns. Resumed, the search proposes every point that was not told.
    Points are never pruned: a grid is there to be filled.

    Args:
        points: what to try, such as `grid(space)`. storage: a JSON file, made at the first `tell`.

    Raises:
        ValueError: if the storage belongs to another list of points, or cannot be read.
    """

    def __init__(self, *, points: Sequence[Mapping[str, Any]], storage: Path) -> None:
        self._points = [dict(point) for point in points]
        self._storage = storage
        self._told = self._read()
        self._ahead = [number for number in range(len(self._points)) if number not in self._told]

    def ask(self) -> Suggestion | None:
        return self._suggestion(self._ahead.pop(0)) if self._ahead else None

    def tell(self, number: int, value: float | None) -> None:
        self._check(number)
        if number in self._told:
            return
        # Not finite means diverged, which is told like a failure; JSON has no word for it either.
        self._told[number] = value if value is not None and math.isfinite(value) else None
        self._ahead = [other for other in self._ahead if other != number]
        self._write()

    def report(self, number: int, step: int, value: float) -> bool:
        self._check(number)
        return False

    @property
    def best(self) -> Suggestion | None:
        finite = [(value, number) for number, value in self._told.items() if value is not None]
        return self._suggestion(min(finite)[1]) if finite else None

    def _suggestion(self, number: int) -> Suggestion:
        return Suggestion(number=number, values=dict(self._points[number]))

    def _check(self, number: int) -> None:
        if not 0 <= number < len(self._points):
            raise ValueError(
                f"a grid of {len(self._points)} points has no number {number}; write the number that ask() gave"
            )

    def _read(self) -> dict[int, float | None]:
        if not self._storage.exists():
            return {}
        try:
            kept = json.loads(self._storage.read_text())
            points, told = kept["points"], {int(number): value for number, value in kept["told"].items()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"a grid search keeps its results in a JSON file of its own, got {self._storage} ({error}); "
                "write another file or move this one away"
            ) from error
        if points != content_hash(self._points):
            raise ValueError(
                f"a grid keeps its points to the end, but {self._storage} was begun with others; "
                "write another output folder"
            )
        return told

    def _write(self) -> None:
        """Replace the file in one move, so that a kill leaves the old results or the new ones, never half."""
        self._storage.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"points": content_hash(self._points), "told": self._told}, indent=1)
        draft = self._storage.with_name(self._storage.name + ".new")
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self._storage)
