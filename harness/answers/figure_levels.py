"""A picture of the levels that samples fall to: the reference beside every model, on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from harness.answers.figure_style import FIRST, INK, QUIET, finish, new_figure, styled
from harness.answers.levels import LevelSet

BINS = 60
BULK = 0.999
"""The axis ends where the reference's bulk does, or the models'; what lies above is told in the caption."""


@styled
def draw_levels(path: Path, sets: Sequence[LevelSet], lowest: float, *, within: float, label: str) -> None:
    """One panel a model with the reference, the first set, in grey behind it; alone where there is no model.

    Args:
        label: of the axis of levels.

    Raises:
        ValueError: without sets.
    """
    if not sets:
        raise ValueError("a picture of levels needs at least one set, got none; give the reference first")
    reference, *models = sets
    edges = level_edges(sets, lowest)
    figure, axes = new_figure(max(1, len(models)), 1, height=1.2 + 2.3 * max(1, len(models)), sharex=True)
    for axis, model in zip(axes, models or [reference], strict=True):
        _bars(axis, reference, edges, lowest, within, model=False)
        if models:
            _bars(axis, model, edges, lowest, within, model=True)
        axis.set_ylabel("share of samples a bin")
        axis.set_yscale("symlog", linthresh=1e-2)
        axis.set_ylim(0, 1)
        axis.axvline(lowest, color=QUIET, lw=0.8, ls=":")
        axis.legend(loc="upper right")
    axes[-1].set_xlabel(label)
    finish(figure, path, caption(sets, edges, within))


def level_edges(sets: Sequence[LevelSet], lowest: float) -> np.ndarray:
    """Bins from just below the lowest level, which stands in the middle of the first one, to the bulk's upper end."""
    tops = [float(np.quantile(levels, BULK)) for each in sets if len(levels := each.settled_levels)]
    width = max([top - lowest for top in tops] + [1e-6]) / BINS
    return lowest - width / 2 + width * np.arange(BINS + 2)


def _bars(axis: Axes, each: LevelSet, edges: np.ndarray, lowest: float, within: float, *, model: bool) -> None:
    counts, _ = np.histogram(each.settled_levels, bins=edges)
    share = each.share_at(lowest, within=within)
    title = f"{each.title}: {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}] at the lowest"
    heights = counts / max(1, len(each.level_n))
    if model:
        axis.stairs(heights, edges, color=FIRST, lw=1.6, label=title)
        return
    axis.stairs(heights, edges, color="#d9d9d9", fill=True, label=title)
    axis.stairs(heights, edges, color=INK, lw=0.8)


def caption(sets: Sequence[LevelSet], edges: np.ndarray, within: float) -> str:
    parts = []
    for each in sets:
        beyond, restless = int((each.settled_levels > edges[-1]).sum()), int((~each.settled_n).sum())
        parts.append(f"{each.title}: n = {len(each.level_n)} ({beyond} beyond the axis, {restless} not at rest)")
    return (
        f"Shares of all n samples, linear below 1 %. The lowest level (dotted) counts within {within:g}; [ ] 95 % "
        f"Wilson intervals. {', '.join(parts)}."
    )
