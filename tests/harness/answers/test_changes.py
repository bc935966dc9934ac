"""Paired changes against closed forms and brute force; rows and tables of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.answers.changes import CellPair, Change, Column, change_rows, change_table, paired_change, pooled_change
from harness.answers.export import write_csv
from harness.answers.figure_changes import Curve, CurvePanel, draw_changes, draw_curves, draw_distributions, draw_paths
from harness.answers.question import MetricChoice
from harness.answers.surface import Cell
from harness.budget import Cost
from models.estimators import Estimate

SCORE = Column(name="score", key="test/a", label="score", sign=-1.0)
SIZE = Column(name="size", key="test/b", label="size", relative=True)
METRIC = MetricChoice(name="score", label="score")


def records(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {"test/sample_id": np.arange(len(a)), "test/a": a, "test/b": b}


@pytest.fixture
def both() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=400) * 10, rng.gamma(4.0, size=400)
    return records(a, b), records(a + 0.1 + 0.05 * rng.normal(size=400), b * (1.2 + 0.1 * rng.normal(size=400)))


def test_a_paired_change_is_the_mean_of_differences(both: tuple[dict, dict]) -> None:
    before, after = both
    change = paired_change(before, after, SCORE)
    difference = before["test/a"] - after["test/a"]
    assert change.estimate.value == pytest.approx(difference.mean(), rel=1e-12)
    assert change.standard_error == pytest.approx(difference.std(ddof=1) / 20, rel=1e-12)
    assert change.standard_errors == pytest.approx(change.estimate.value / change.standard_error)
    assert change.standard_errors < -30  # either mean alone has a standard error of 0.5
    half = (change.estimate.hi - change.estimate.lo) / 2
    assert half == pytest.approx(1.96 * change.standard_error, rel=0.1)
    assert change.estimate.n == 400


def test_a_relative_change_errs_as_resampling_says(both: tuple[dict, dict]) -> None:
    before, after = both
    change = paired_change(before, after, SIZE)
    x, y = before["test/b"], after["test/b"]
    assert change.estimate.value == pytest.approx(100 * (y.mean() / x.mean() - 1), rel=1e-12)
    rows = np.random.default_rng(9).integers(400, size=(4000, 400))
    brute = 100 * (y[rows].mean(axis=1) / x[rows].mean(axis=1) - 1)
    assert change.standard_error == pytest.approx(brute.std(), rel=0.06)
    assert (change.estimate.lo, change.estimate.hi) == pytest.approx(np.quantile(brute, [0.025, 0.975]), abs=0.2)


def test_no_change_is_none(both: tuple[dict, dict]) -> None:
    same = paired_change(both[0], both[0], SCORE)
    assert same.estimate.value == 0
    assert np.isnan(same.standard_errors)


def test_different_samples_are_no_pair(both: tuple[dict, dict]) -> None:
    before, after = both
    shuffled = {**after, "test/sample_id": after["test/sample_id"][::-1]}
    fewer = {name: column[:-1] for name, column in after.items()}
    for other in (shuffled, fewer):
        with pytest.raises(ValueError, match="judge both with the same settings"):
            paired_change(before, other, SCORE)


def test_a_sample_that_is_not_finite_is_told(both: tuple[dict, dict]) -> None:
    before, after = both
    wild = {**after, "test/a": np.where(np.arange(400) == 3, np.inf, after["test/a"])}
    change = paired_change(before, wild, SCORE)
    assert np.isnan(change.estimate.value)
    assert "not finite" in change.estimate.reason


def pair(plan: str, seed: int, value: float) -> CellPair:
    estimate = Estimate(value=5.0, lo=4.0, hi=6.0, n=400)
    cell = Cell(
        seed=seed,
        fork_steps=0,
        tail="first",
        tail_steps=3,
        trunk_cost=Cost(),
        tail_cost=Cost(),
        validation={},
        test={"score": estimate},
        diverged=False,
        segment="s",
    )
    changed = Change(estimate=Estimate(value=value, lo=value - 1, hi=value + 1, n=400), standard_error=0.5)
    after = replace(cell, tail="second", test={"score": replace(estimate, value=5.0 + value)})
    return CellPair(plan=plan, before=cell, after=after, changes={"score": changed, "size": changed})


PAIRS = [pair(plan, seed, value) for plan in ("a", "b") for seed, value in enumerate((1.0, 2.0, 4.5))]


def test_seeds_are_pooled_with_a_t_interval() -> None:
    pooled = pooled_change(PAIRS[:3], SCORE)
    half = 4.302653 * np.std([1.0, 2.0, 4.5], ddof=1) / np.sqrt(3)
    assert (pooled.value, pooled.lo, pooled.hi, pooled.n) == pytest.approx((2.5, 2.5 - half, 2.5 + half, 3), rel=1e-5)
    assert np.isnan(pooled_change(PAIRS[:2], SCORE).lo)


def test_rows_share_their_columns_and_keep_intervals_apart(tmp_path: Path) -> None:
    rows = change_rows(PAIRS, (METRIC,), (SCORE, SIZE))
    assert [(row["plan"], row["seed"]) for row in rows] == [(p, s) for p in "ab" for s in ("0", "1", "2", "all")]
    assert len({tuple(row) for row in rows}) == 1
    one, pooled = rows[0], rows[3]
    assert (one["score_change"], one["score_change_eval_lo"], one["score_change_seed_lo"]) == (1.0, 0.0, None)
    assert (pooled["score_change"], pooled["score_change_eval_lo"], pooled["score_change_n"]) == (2.5, None, 3)
    assert pooled["score_change_seed_lo"] < 2.5 < pooled["score_change_seed_hi"]
    assert (one["score_before"], one["score_after"], pooled["score_after"]) == (5.0, 6.0, 7.5)
    assert one["score_change_in_standard_errors"] == 2.0
    assert "size_change_percent" in one
    write_csv(tmp_path / "changes.csv", rows)
    text = change_table(PAIRS, (METRIC,), (SCORE, SIZE))
    assert "5 -> 7.5" in text
    assert "+1 [+0, +2] (+2.0 se)" in text


def test_pictures_are_drawn_also_of_nothing_and_of_wild_values(tmp_path: Path) -> None:
    wild = np.array([1.0, 2.0, 3.0, np.nan, np.inf])
    draw_distributions(tmp_path / "a.png", {"a": {"before": wild, "after": wild + 1}, "b": {"before": []}}, label="x")
    draw_distributions(tmp_path / "b.png", {}, label="x")
    draw_changes(tmp_path / "c.png", PAIRS, x=SIZE, y=SCORE)
    draw_changes(tmp_path / "d.png", [], x=SIZE, y=SCORE)
    paths = np.random.default_rng(0).normal(size=(7, 5, 2, 2))
    draw_paths(tmp_path / "e.png", {"a": {"before": paths, "after": paths}, "b": {"before": paths}}, labels=("x", "y"))
    draw_paths(tmp_path / "f.png", {"a": {"before": np.full((1, 2, 1, 2), np.nan)}}, labels=("x", "y"))
    curve = Curve(label="a", x=[1, 2, 3], y=[1.0, np.inf, 0.0], lo=[0.5, np.nan, 0.0], hi=[2.0, np.nan, 0.0])
    panel = CurvePanel(title="t", xlabel="x", ylabel="y", curves=[curve], floor=0.1)
    draw_curves(tmp_path / "g.png", [panel, replace(panel, curves=[], floor=None)], caption="c")
    for name in "abcdefg":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
