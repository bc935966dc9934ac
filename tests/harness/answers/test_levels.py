"""Levels that samples fall to: counts by hand, the lowest of all, and a picture of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.answers.figure_levels import caption, draw_levels, level_edges
from harness.answers.levels import LevelSet, level_table, lowest_level, share_rows

WITHIN = 1e-3


def levels(title: str, *values: float, restless: int = 0) -> LevelSet:
    """Samples at these levels, and some that never came to rest (with values that must not count)."""
    level_n = np.array([*values, *([-99.0] * restless)])
    settled_n = np.array([True] * len(values) + [False] * restless)
    return LevelSet(title=title, level_n=level_n, settled_n=settled_n)


REFERENCE = levels("reference", -5.0, -5.0004, -3.0, -1.0)
MODEL = levels("model", -5.0, -3.0, -2.9, -2.9, restless=4)


def test_shares_count_every_sample_also_those_without_a_level() -> None:
    assert REFERENCE.share_at(-5.0, within=WITHIN).value == 0.5
    share = MODEL.share_at(-5.0, within=WITHIN)
    assert (share.value, share.n) == (1 / 8, 8)
    assert share.lo < 1 / 8 < share.hi
    assert REFERENCE.share_at(-5.0, within=1e-5).value == 0.25
    assert MODEL.share_at(-99.0, within=WITHIN).value == 0.0


def test_levels_closer_than_asked_are_one() -> None:
    assert REFERENCE.distinct(within=WITHIN) == 3
    assert REFERENCE.distinct(within=1e-5) == 4
    assert MODEL.distinct(within=WITHIN) == 3
    assert levels("none", restless=2).distinct(within=WITHIN) == 0


def test_the_lowest_level_is_the_known_one_unless_samples_went_below() -> None:
    sets = [REFERENCE, MODEL]
    assert lowest_level(sets, None, within=WITHIN) == -5.0004
    assert lowest_level(sets, -7.0, within=WITHIN) == -7.0
    assert lowest_level(sets, -5.0, within=WITHIN) == -5.0
    assert lowest_level(sets, -4.0, within=WITHIN) == -5.0004
    with pytest.raises(ValueError, match="came to rest, got none"):
        lowest_level([levels("none", restless=3)], None, within=WITHIN)
    assert lowest_level([levels("none", restless=3)], -1.0, within=WITHIN) == -1.0


def test_the_table_and_the_rows_say_who_never_came_to_rest() -> None:
    sets = [REFERENCE, MODEL, levels("none", restless=2)]
    text = level_table(sets, -5.0, within=WITHIN, unit="kT")
    for beat in ("reference", "50.00%", "12.50%", "n samples", "-5.000000 kT", "Wilson"):
        assert beat in text
    rows = share_rows(sets, -5.0, within=WITHIN)
    assert [row["set"] for row in rows] == ["reference", "model", "none"]
    assert [row["not_at_rest"] for row in rows] == [0, 4, 2]
    assert [row["share"] for row in rows] == [0.5, 0.125, 0.0]
    assert [row["share_n"] for row in rows] == [4, 8, 2]


def test_bins_hold_the_lowest_level_and_the_bulk() -> None:
    edges = level_edges([REFERENCE, MODEL], -5.0)
    assert edges[0] < -5.0 < edges[1]
    assert edges[-1] > np.quantile([-5.0, -5.0004, -3.0, -1.0], 0.999)
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    assert "1 beyond the axis" in caption([levels("far", *([0.0] * 2000), 1e6)], level_edges([REFERENCE], -5.0), WITHIN)


@pytest.mark.parametrize("sets", [[REFERENCE, MODEL, MODEL], [REFERENCE], [REFERENCE, levels("none", restless=2)]])
def test_a_picture_is_drawn(sets: list[LevelSet], tmp_path: Path) -> None:
    draw_levels(tmp_path / "levels.png", sets, -5.0, within=WITHIN, label="level")
    assert (tmp_path / "levels.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one set"):
        draw_levels(tmp_path / "levels.png", [], -5.0, within=WITHIN, label="level")
