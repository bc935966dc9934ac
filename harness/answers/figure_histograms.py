"""Histograms of several sets on one axis: the first is the reference, filled, and its range holds for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from harness.answers.figure_style import FIRST, HYBRID, INK, SECOND

BINS = 90
COLOURS = (INK, FIRST, HYBRID, SECOND, "#cc79a7")

Array = NDArray[np.float64]


def overlaid(
    axis: Axes, titles: Sequence[str], values: Sequence[Array], weights: Sequence[Array | None] | None = None
) -> list[float]:
    """Densities over all samples of each set, so that what lies beyond the axis is missing mass; its share.

    Args:
        weights: one for each value, or None where all of a set count alike.
    """
    edges = bulk_edges(values[0], BINS, margin=0.5)
    beyond = []
    for number, (title, value) in enumerate(zip(titles, values, strict=True)):
        weight = None if weights is None else weights[number]
        total = max(1, len(value)) if weight is None else weight.sum()
        counts, _ = np.histogram(value, bins=edges, weights=weight)
        density = counts / (total * np.diff(edges))
        colour = COLOURS[number % len(COLOURS)]
        if number == 0:
            axis.stairs(density, edges, color="#d9d9d9", fill=True, label=title)
        axis.stairs(density, edges, color=colour, lw=1.0 if number == 0 else 1.8, label=None if number == 0 else title)
        beyond.append(1 - counts.sum() / total)
    axis.set_ylim(bottom=0)
    return beyond


def bulk_edges(values: Array, count: int, *, margin: float) -> Array:
    """Bins over the bulk of the values, widened on both sides; a single wild value must not set the range."""
    lo, hi = np.quantile(values[np.isfinite(values)], [0.0005, 0.9995])
    wider = margin * max(hi - lo, 1e-9)
    return np.linspace(lo - wider, hi + wider, count + 1)
