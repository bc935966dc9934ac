"""A picture of samples: densities side by side in the plane, maps of angles, or energies and distances overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from harness.answers.figure_angles import draw_angles
from harness.answers.figure_histograms import bulk_edges, overlaid
from harness.answers.figure_style import density_colours, finish, new_figure, styled
from harness.answers.sample_panel import SamplePanel

BINS_PLANE = 140
SMOOTHING = 0.3
"""Of the rule h = s n^(-1/6) for two dimensions: narrower, since the modes are narrower than the whole."""


@styled
def draw_samples(path: Path, panels: Sequence[SamplePanel]) -> None:
    """The first panel is the reference: its range and its bins hold for all.

    Raises:
        ValueError: without panels.
    """
    if not panels:
        raise ValueError("a picture of samples needs at least one set, got none; give the data first, then the models")
    if all(panel.angles is not None for panel in panels):
        draw_angles(path, panels)
    elif all(panel.x is not None for panel in panels):
        _draw_plane(path, panels)
    else:
        _draw_histograms(path, panels)


def _draw_plane(path: Path, panels: Sequence[SamplePanel]) -> None:
    points = [np.asarray(panel.x, dtype=np.float64) for panel in panels]
    edges = [bulk_edges(points[0][:, axis], BINS_PLANE, margin=0.08) for axis in (0, 1)]
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
    beyond = overlaid(axes[0], titles, energies)
    axes[0].set_xlabel("energy / kT")
    axes[0].set_title("Energies")
    if with_distances:
        overlaid(axes[1], titles, [np.asarray(panel.distances, dtype=np.float64).ravel() for panel in panels])
        axes[1].set_xlabel("pair distance / length unit of the target")
        axes[1].set_title("Pair distances")
    axes[0].set_ylabel("probability density")
    axes[0].legend(loc="best")
    counts = ", ".join(
        f"{title}: n = {len(e)} ({lost:.1%} beyond the axis)"
        for title, e, lost in zip(titles, energies, beyond, strict=True)
    )
    finish(figure, path, f"Axes span the range of the first set, widened by half on either side. {counts}.")
