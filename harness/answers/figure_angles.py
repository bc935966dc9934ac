"""A picture of samples with a pair of angles: maps of both, and what the first, energies and lengths say alone.

Maps show free energies -log p in kT against each set's own lowest, with and without weights where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from harness.answers.figure_histograms import COLOURS, Array, overlaid
from harness.answers.figure_style import finish, new_figure, styled
from harness.answers.sample_panel import SamplePanel

CELLS = 60
BINS = 72
HIGHEST = 8.0
"""kT of the maps' colours and of the profiles' axis."""
TICKS = (-math.pi, 0.0, math.pi)
TICK_LABELS = ("$-\\pi$", "0", "$\\pi$")


@styled
def draw_angles(path: Path, panels: Sequence[SamplePanel]) -> None:
    """The first panel is the reference. A panel with weights is drawn twice: as it is, and reweighted."""
    shown = [version for panel in panels for version in _versions(panel)]
    columns = max(3, len(shown))
    figure, axes = new_figure(2, columns, width=max(9.0, 2.7 * columns), height=6.4)
    for axis, (title, panel, weight) in zip(axes, shown, strict=False):
        _draw_map(axis, title, np.asarray(panel.angles, dtype=np.float64), weight)
    profile, energies, lengths, *rest = axes[columns:]
    for axis in [*axes[len(shown) : columns], *rest]:
        axis.set_axis_off()
    for number, (title, panel, weight) in enumerate(shown):
        _draw_profile(profile, np.asarray(panel.angles, dtype=np.float64)[:, 0], weight, number, title)
    profile.set_title("Along the first angle")
    profile.set_xticks(TICKS, TICK_LABELS)
    profile.set_ylim(0, HIGHEST)
    profile.set_ylabel("free energy / kT")
    titles, weights = [title for title, _, _ in shown], [weight for _, _, weight in shown]
    overlaid(energies, titles, [np.asarray(panel.energy, dtype=np.float64).ravel() for _, panel, _ in shown], weights)
    energies.set_title("Energies")
    energies.set_xlabel("energy / kT")
    _draw_lengths(lengths, shown)
    energies.legend(loc="best", fontsize=8)
    counts = ", ".join(f"{panel.title}: n = {len(np.asarray(panel.energy))}" for panel in panels)
    finish(figure, path, f"Maps: -log p of both angles, white where there are no samples. {counts}.")


def _versions(panel: SamplePanel) -> list[tuple[str, SamplePanel, Array | None]]:
    if panel.log_weight is None:
        return [(panel.title, panel, None)]
    log_weight = np.nan_to_num(np.asarray(panel.log_weight, dtype=np.float64), nan=-np.inf)
    weight = np.exp(log_weight - max(log_weight.max(), np.finfo(np.float64).min))
    return [(panel.title, panel, None), (f"{panel.title}, reweighted", panel, weight)]


def _draw_map(axis: Axes, title: str, angles: Array, weight: Array | None) -> None:
    edges = np.linspace(-math.pi, math.pi, CELLS + 1)
    mass = np.histogram2d(angles[:, 0], angles[:, 1], bins=[edges, edges], weights=weight)[0]
    axis.pcolormesh(edges, edges, _free_energy(mass).T, cmap="viridis", vmin=0, vmax=HIGHEST, rasterized=True)
    axis.set_title(title)
    axis.set_aspect("equal")
    axis.set_xticks(TICKS, TICK_LABELS)
    axis.set_yticks(TICKS, TICK_LABELS)


def _draw_profile(axis: Axes, angle: Array, weight: Array | None, number: int, title: str) -> None:
    mass, edges = np.histogram(angle, bins=BINS, range=(-math.pi, math.pi), weights=weight)
    colour = COLOURS[number % len(COLOURS)]
    axis.stairs(_free_energy(mass), edges, color=colour, lw=2.4 if number == 0 else 1.4, label=title, baseline=None)


def _draw_lengths(axis: Axes, shown: Sequence[tuple[str, SamplePanel, Array | None]]) -> None:
    """One weight a sample holds for all its lengths."""
    if any(panel.distances is None for _, panel, _ in shown):
        axis.set_axis_off()
        return
    values = [np.asarray(panel.distances, dtype=np.float64) for _, panel, _ in shown]
    weights = [
        None if weight is None else np.repeat(weight, value.size // len(weight))
        for value, (_, _, weight) in zip(values, shown, strict=True)
    ]
    overlaid(axis, [title for title, _, _ in shown], [value.ravel() for value in values], weights)
    axis.set_title("Lengths of bonds")
    axis.set_xlabel("length unit of the target")


def _free_energy(mass: Array) -> Array:
    """-log of mass over the largest, NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = -np.log(mass / mass.max())
    return np.where(mass > 0, value, np.nan)
