"""Pictures of what a stage changed: distributions before and after, one change against another, paths, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from harness.answers.changes import CellPair, Column, by_plan, column_title
from harness.answers.figure_style import FAINT, FIRST, HYBRID, INK, QUIET, SECOND, finish, new_figure, styled

COLOURS = (FIRST, SECOND, HYBRID, "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
BINS = (12, 60)
BULK = (0.001, 0.999)
"""Quantiles of all values that an axis spans: a single wild value must not set the range."""


@styled
def draw_distributions(path: Path, panels: Mapping[str, Mapping[str, ArrayLike]], *, label: str) -> None:
    """One panel a plan: the distribution of a quantity in each of its states, with their means; one scale for all.

    Args:
        panels: values by the name of the plan and of the state. label: of the quantity, with its unit.
    """
    figure, axes = new_figure(max(1, len(panels)), 1, height=1.0 + 2.0 * max(1, len(panels)), sharex=True)
    states = {title: {name: _finite(v) for name, v in each.items()} for title, each in panels.items()}
    edges = _edges([values for each in states.values() for values in each.values()])
    for axis, (title, each) in zip(axes, states.items(), strict=False):
        axis.set_title(title)
        for number, (name, values) in enumerate(each.items()):
            if len(values):
                density, _ = np.histogram(values, bins=edges)
                shares = density / (len(values) * np.diff(edges))
                colour = COLOURS[number % len(COLOURS)]
                axis.stairs(shares, edges, color=colour, lw=1.8, label=f"{name}, mean {values.mean():.4g}")
                axis.axvline(float(values.mean()), color=colour, lw=1.0, ls="--")
        axis.set_ylabel("density")
        axis.set_ylim(bottom=0)
        _legend_outside(axis)
    axes[-1].set_xlabel(label)
    sizes = sorted({len(values) for each in states.values() for values in each.values()})
    n = " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0"
    finish(figure, path, f"Dashed: means. n = {n} samples a curve; the axis spans the bulk of all of them.")


@styled
def draw_changes(path: Path, pairs: Sequence[CellPair], *, x: Column, y: Column) -> None:
    """One change against another: a point for every plan and seed, bars of the bootstrap over samples."""
    figure, (axis,) = new_figure(1, 1, height=4.8)
    for number, (plan, held) in enumerate(by_plan(pairs).items()):
        known = [p for p in held if all(math.isfinite(p.changes[c.name].estimate.value) for c in (x, y))]
        ends = {c.name: np.array([_ends(p, c) for p in known]).reshape(-1, 3).T for c in (x, y)}
        (across, x_lo, x_hi), (up, y_lo, y_hi) = ends[x.name], ends[y.name]
        axis.errorbar(
            across,
            up,
            xerr=[x_lo, x_hi],
            yerr=[y_lo, y_hi],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            ls="none",
            ms=6,
            elinewidth=1.0,
            capsize=2,
            label=f"{plan} (n = {len(known)} seed{'' if len(known) == 1 else 's'})",
        )
    axis.axhline(0, color=QUIET, lw=0.8, zorder=0)
    axis.axvline(0, color=QUIET, lw=0.8, zorder=0)
    axis.set_xlabel(column_title(x))
    axis.set_ylabel(column_title(y))
    axis.grid(color=FAINT, lw=0.7)
    _legend_outside(axis)
    finish(figure, path, "A point a plan and seed; bars: 95 % bootstrap interval of the paired change over samples.")


@styled
def draw_paths(path: Path, panels: Mapping[str, Mapping[str, NDArray]], *, labels: tuple[str, str]) -> None:
    """Paths in the plane, a column for every plan and a row for every state; from a ring (start) to a dot (end).

    Args:
        panels: paths (B, T, P, 2) by the name of the plan and of the state: B configurations of P points that move,
            seen at T times. Every configuration has a colour. labels: of the axes.
    """
    rows = max((len(each) for each in panels.values()), default=1)
    width = max(1, len(panels))
    size = 9.0 / max(2, width)
    figure, axes = new_figure(rows, width, height=1.2 + (size + 0.5) * rows, sharex=True, sharey=True)
    seen = np.concatenate([_finite(paths) for each in panels.values() for paths in each.values()] or [np.ones(1)])
    reach = 1.08 * float(np.abs(seen).max(initial=1e-9))
    for i, (plan, each) in enumerate(panels.items()):
        for j, (state, paths_BTP2) in enumerate(each.items()):
            axis = axes[j * width + i]
            axis.set_title(f"{plan},\n{state}", fontsize=9)
            _paths(axis, paths_BTP2)
            axis.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
            if j == rows - 1:
                axis.set_xlabel(labels[0])
            if i == 0:
                axis.set_ylabel(labels[1])
    counts = {paths.shape[0] for each in panels.values() for paths in each.values()}
    n = max(counts, default=0)
    finish(figure, path, f"{n} starts, the same in every panel, told apart by colour. Ring: start. Dot: end.")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values at rising places, with the ends of their intervals (NaN where there is none)."""

    label: str
    x: ArrayLike
    y: ArrayLike
    lo: ArrayLike
    hi: ArrayLike


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """Curves on two logarithmic axes, and a floor below which values mean nothing (None: there is none)."""

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]
    floor: float | None = None


@styled
def draw_curves(path: Path, panels: Sequence[CurvePanel], *, caption: str) -> None:
    """Panels side by side, each with all of its curves; equal labels have equal colours."""
    figure, axes = new_figure(1, max(1, len(panels)), width=4.2 * max(2, len(panels)), height=4.6)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title)
        for curve in panel.curves:
            number = labels.index(curve.label) % len(COLOURS)
            x, y, lo, hi = (np.asarray(v, dtype=np.float64) for v in (curve.x, curve.y, curve.lo, curve.hi))
            seen = np.isfinite(y) & (y > 0)
            axis.plot(x[seen], y[seen], color=COLOURS[number], marker=MARKERS[number], ms=4.5, label=curve.label)
            barred = seen & np.isfinite(lo) & np.isfinite(hi) & (lo > 0)
            axis.fill_between(x[barred], lo[barred], hi[barred], color=COLOURS[number], alpha=0.2, lw=0)
        if panel.floor is not None:
            axis.axhline(panel.floor, color=INK, lw=0.8, ls=":")
        if bool(np.isfinite(axis.dataLim.intervaly).all()):
            axis.set_xscale("log")
            axis.set_yscale("log")
        axis.set_xlabel(panel.xlabel)
        axis.set_ylabel(panel.ylabel)
        axis.grid(color=FAINT, lw=0.7)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="best")
    finish(figure, path, caption)


def _legend_outside(axis: Axes) -> None:
    """To the right of the panel, where it covers nothing; none where there is nothing to tell apart."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _paths(axis: Axes, paths_BTP2: NDArray) -> None:
    for number, path_TP2 in enumerate(paths_BTP2):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(path_TP2[..., 0], path_TP2[..., 1], color=colour, lw=1.0)
        axis.plot(path_TP2[0, :, 0], path_TP2[0, :, 1], "o", color=colour, mfc="white", ms=4, mew=0.9)
        axis.plot(path_TP2[-1, :, 0], path_TP2[-1, :, 1], "o", color=colour, ms=4)


def _ends(pair: CellPair, column: Column) -> tuple[float, float, float]:
    """The change, and how far its interval reaches below and above it."""
    e = pair.changes[column.name].estimate
    return e.value, max(0.0, e.value - e.lo), max(0.0, e.hi - e.value)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def _edges(sets: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Common bins over the bulk of all values, the more of them the more values a set has."""
    everything = np.concatenate([*sets, np.empty(0)])
    if not len(everything):
        return np.linspace(0.0, 1.0, BINS[0] + 1)
    bins = int(np.clip(2 * max(map(len, sets)) ** 0.5, *BINS))
    lo, hi = np.quantile(everything, BULK)
    margin = 0.05 * max(hi - lo, 1e-9)
    return np.linspace(lo - margin, hi + margin, bins + 1)
