"""A picture of samples: densities side by side in the plane, or energies and distances overlaid for particles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from harness.answers.figure_style import FIRST, HYBRID, INK, SECOND, density_colours, finish, new_figure, styled

BINS_PLANE = 140
BINS = 90
SMOOTHING = 0.3
"""Of the rule h = s n^(-1/6) for two dimensions: narrower, since the modes are narrower than the whole."""
COLOURS = (INK, FIRST, HYBRID, SECOND, "#cc79a7")


@dataclass(frozen=True, kw_only=True)
class SamplePanel:
    """Samples of one model, or the data.

    Args:
        title: what they are of. x: (n, 2) points where the space is a plane, else None.
        energy: (n,) in kT. distances: any number of pair distances where there are particles, else None.
    """

    title: str
    energy: ArrayLike
    x: ArrayLike | None = None
    distances: ArrayLike | None = None


@styled
def draw_samples(path: Path, panels: Sequence[SamplePanel]) -> None:
    """The first panel is the reference: its range and its bins hold for all.

    Raises:
        ValueError: without panels.
    """
    if not panels:
        raise ValueError("a picture of samples needs at least one set, got none; give the data first, then the models")
    if all(panel.x is not None for panel in panels):
        _draw_plane(path, panels)
    else:
        _draw_histograms(path, panels)


def _draw_plane(path: Path, panels: Sequence[SamplePanel]) -> None:
    points = [np.asarray(panel.x, dtype=np.float64) for panel in panels]
    edges = [_edges(points[0][:, axis], BINS_PLANE, margin=0.08) for axis in (0, 1)]
    width = SMOOTHING * float(points[0].std()) * min(map(len, points)) ** (-1 / 6)
    densities = [_density(x, edges, width) for x in points]
    top = float(densities[0].max())
    figure, axes = new_figure(
        1, len(panels), width=9.0, height=1.25 + 8.2 / max(2, len(panels)), sharex=True, sharey=True
    )
    for axis, panel, density in zip(axes, panels, densities, strict=True):
        axis.set_title(panel.title)
        axis.pcolormesh(edges[0], edges[1], density.T, cmap=density_colours(), vmin=0, vmax=top, rasterized=True)
        axis.set_aspect("equal")
        axis.set_xlabel("$x_1$")
    axes[0].set_ylabel("$x_2$")
    counts = ", ".join(f"{panel.title}: n = {len(x)}" for panel, x in zip(panels, points, strict=True))
    finish(figure, path, f"Densities, smoothed by a Gaussian of width {width:.2f}, on one colour scale. {counts}.")


def _density(x: NDArray[np.float64], edges: Sequence[NDArray[np.float64]], width: float) -> NDArray[np.float64]:
    """Share of the samples by bin, spread over neighbours as a kernel of that width in the plane would."""
    counts = np.histogram2d(x[:, 0], x[:, 1], bins=[edges[0], edges[1]])[0]
    return gaussian_filter(counts / len(x), [width / (e[1] - e[0]) for e in edges], mode="constant")


def _draw_histograms(path: Path, panels: Sequence[SamplePanel]) -> None:
    with_distances = all(panel.distances is not None for panel in panels)
    figure, axes = new_figure(1, 2 if with_distances else 1, height=4.3)
    energies = [np.asarray(panel.energy, dtype=np.float64).ravel() for panel in panels]
    titles = [panel.title for panel in panels]
    beyond = _overlaid(axes[0], titles, energies)
    axes[0].set_xlabel("energy / kT")
    axes[0].set_title("Energies")
    if with_distances:
        _overlaid(axes[1], titles, [np.asarray(panel.distances, dtype=np.float64).ravel() for panel in panels])
        axes[1].set_xlabel("pair distance / length unit of the target")
        axes[1].set_title("Pair distances")
    axes[0].set_ylabel("probability density")
    axes[0].legend(loc="best")
    counts = ", ".join(
        f"{title}: n = {len(e)} ({lost:.1%} beyond the axis)"
        for title, e, lost in zip(titles, energies, beyond, strict=True)
    )
    finish(figure, path, f"Axes span the range of the first set, widened by half on either side. {counts}.")


def _overlaid(axis: Axes, titles: Sequence[str], values: Sequence[NDArray[np.float64]]) -> list[float]:
    """Densities over all samples of each set, so that what lies beyond the axis is missing mass; its share."""
    edges = _edges(values[0], BINS, margin=0.5)
    beyond = []
    for number, (title, value) in enumerate(zip(titles, values, strict=True)):
        counts, _ = np.histogram(value, bins=edges)
        density = counts / (max(1, len(value)) * np.diff(edges))
        colour = COLOURS[number % len(COLOURS)]
        if number == 0:
            axis.stairs(density, edges, color="#d9d9d9", fill=True, label=title)
        axis.stairs(density, edges, color=colour, lw=1.0 if number == 0 else 1.8, label=None if number == 0 else title)
        beyond.append(1 - counts.sum() / max(1, len(value)))
    axis.set_ylim(bottom=0)
    return beyond


def _edges(values: NDArray[np.float64], count: int, *, margin: float) -> NDArray[np.float64]:
    """Bins over the bulk of the values, widened on both sides; a single wild value must not set the range."""
    lo, hi = np.quantile(values[np.isfinite(values)], [0.0005, 0.9995])
    wider = margin * max(hi - lo, 1e-9)
    return np.linspace(lo - wider, hi + wider, count + 1)
