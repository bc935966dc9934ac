"""Pictures are drawn, are wide enough to read, and show something, also for poor data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from harness.answers.figure_samples import draw_samples
from harness.answers.figures import draw_frontier, draw_shares, draw_surface
from harness.answers.frontier import best_splits
from harness.answers.sample_panel import SamplePanel
from tests.harness.answers.synthetic_surface import BESIDE, BUDGETS, QUESTION, seconds, surface


def assert_shows_something(path: Path) -> None:
    picture = matplotlib.image.imread(path)[..., :3]
    assert picture.shape[1] >= 1200
    ink = (picture < 0.95).any(axis=-1)
    assert 0.005 < ink.mean() < 0.9
    assert len(np.unique(picture[::7, ::7].reshape(-1, 3), axis=0)) > 20


def test_surface_and_frontier_are_drawn_where_models_diverged(tmp_path: Path) -> None:
    cells = [replace(c, diverged=c.tail == "pg" and c.seed == 1) for c in surface(seeds=3)]
    draw_surface(tmp_path / "surface.png", cells, seconds(BUDGETS), QUESTION)
    draw_frontier(tmp_path / "frontier.png", best_splits(cells, seconds(BUDGETS), QUESTION), QUESTION)
    for name in ("surface.png", "frontier.png"):
        assert_shows_something(tmp_path / name)


def test_one_seed_another_metric_and_the_shares_are_drawn(tmp_path: Path) -> None:
    cells = surface(seeds=1)
    draw_surface(tmp_path / "nll.png", cells, seconds(BUDGETS), QUESTION, BESIDE[0])
    draw_shares(tmp_path / "shares.png", best_splits(cells, seconds(BUDGETS), QUESTION), QUESTION)
    for name in ("nll.png", "shares.png"):
        assert_shows_something(tmp_path / name)


def test_models_that_all_diverged_give_pictures_without_curves(tmp_path: Path) -> None:
    cells = [replace(c, diverged=True) for c in surface(seeds=2, budgets=BUDGETS[:1])]
    answers = best_splits(cells, seconds(BUDGETS), QUESTION)
    draw_surface(tmp_path / "surface.png", cells, seconds(BUDGETS), QUESTION)
    draw_frontier(tmp_path / "frontier.png", answers, QUESTION)
    draw_shares(tmp_path / "shares.png", answers, QUESTION)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_nothing_evaluated_yet_gives_empty_axes_and_no_error(tmp_path: Path) -> None:
    draw_surface(tmp_path / "surface.png", [], seconds(BUDGETS), QUESTION)
    draw_frontier(tmp_path / "frontier.png", (), QUESTION)
    draw_shares(tmp_path / "shares.png", (), QUESTION)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_points_in_the_plane_are_drawn_as_densities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    panels = [
        SamplePanel(title=title, x=width * rng.normal(size=(2000, 2)), energy=rng.normal(size=2000))
        for title, width in (("data", 1.0), ("FM only", 1.3), ("best hybrid", 1.05))
    ]
    draw_samples(tmp_path / "samples.png", panels)
    assert_shows_something(tmp_path / "samples.png")


def test_particles_are_drawn_as_histograms_that_a_wild_sample_cannot_stretch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    energy = rng.normal(size=2000)
    distances = rng.normal(size=5000) + 3
    wild = np.append(energy, [1e12, np.inf, np.nan])
    panels = [
        SamplePanel(title="data", energy=energy, distances=distances),
        SamplePanel(title="FM only", energy=wild, distances=distances),
    ]
    draw_samples(tmp_path / "samples.png", panels)
    assert_shows_something(tmp_path / "samples.png")


@pytest.mark.parametrize("models", [1, 4])
def test_angles_are_drawn_as_maps_with_and_without_weights(tmp_path: Path, models: int) -> None:
    rng = np.random.default_rng(0)

    def panel(title: str, **options: object) -> SamplePanel:
        angles = rng.vonmises(-1.5, 3.0, size=(2000, 2))
        return SamplePanel(title=title, energy=rng.normal(size=2000), angles=angles, **options)

    lengths = {"distances": 0.1 + 0.01 * rng.random((2000, 21))}
    log_weight = np.append(rng.normal(size=1997), [np.nan, -np.inf, 5.0])
    drawn = [panel(f"model {k}", log_weight=log_weight, **lengths) for k in range(models)]
    draw_samples(tmp_path / "samples.png", [panel("data", **lengths), *drawn])
    assert_shows_something(tmp_path / "samples.png")
    draw_samples(tmp_path / "alone.png", [panel("data")])
    assert_shows_something(tmp_path / "alone.png")


def test_no_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least one set, got none"):
        draw_samples(tmp_path / "samples.png", [])


def test_the_look_of_other_figures_is_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_samples(tmp_path / "samples.png", [SamplePanel(title="data", energy=np.arange(100.0))])
    assert dict(matplotlib.rcParams) == before
