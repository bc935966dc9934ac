"""Pictures of a sweep: its history, the result against every setting, and what each setting explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from harness.answers.figure_style import BEST, FIRST, HYBRID, INK, QUIET, SECOND, finish, new_figure, styled
from harness.answers.importance import Importance, verdict

COLOURS = {"finished": FIRST, "pruned": SECOND, "failed": QUIET, "open": HYBRID}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point of a sweep to draw.

    Args:
        values: its settings that act. first, last: losses at the first and at the last rung that it was judged on.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    first: float
    last: float


@styled
def draw_history(path: Path, marks: Sequence[Mark], *, title: str) -> None:
    """Losses in the order of the trials, and the best of those that went to the last rung."""
    figure, (axis,) = new_figure(1, 1, height=4.0)
    for state, colour in COLOURS.items():
        held = [mark for mark in marks if mark.state == state and math.isfinite(mark.last)]
        if held:
            axis.plot([m.number for m in held], [m.last for m in held], "o", color=colour, label=state, ms=5)
    done = [mark for mark in marks if mark.state == "finished"]
    if done:
        axis.step(
            [m.number for m in done],
            np.minimum.accumulate([m.last for m in done]),
            where="post",
            color=BEST,
            label="best",
        )
    axis.set_xlabel("trial")
    axis.set_ylabel(title)
    logarithmic(axis, [mark.last for mark in marks], vertical=True)
    if marks:
        axis.legend()
    n = len(marks)
    finish(figure, path, f"Every trial at the last rung that it reached (n = {n}); pruned ones had fewer steps.")


@styled
def draw_slices(path: Path, marks: Sequence[Mark], names: Sequence[str], *, title: str, rung: str) -> None:
    """The loss at the first rung, which all trials share, against each setting."""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = new_figure(rows, columns, height=0.6 + 2.6 * rows)
    for axis, name in zip(axes, names, strict=False):
        slice_of(axis, [mark for mark in marks if name in mark.values and math.isfinite(mark.first)], name)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(title)
    finish(figure, path, f"Loss after {rung}, on the rung that every trial reached, where the setting acts.")


def slice_of(axis: Axes, marks: Sequence[Mark], name: str) -> None:
    texts = sorted({str(m.values[name]) for m in marks if not isinstance(m.values[name], (int, float))})
    if not marks:
        axis.text(0.5, 0.5, "in no trial", transform=axis.transAxes, ha="center", color=QUIET)
    for mark in marks:
        value = mark.values[name]
        x = texts.index(str(value)) if texts else float(value)
        axis.plot([x], [mark.first], "o", color=COLOURS[mark.state], ms=4.5, alpha=0.8)
    if texts:
        axis.set_xticks(range(len(texts)), texts, rotation=25, ha="right")
    else:
        logarithmic(axis, [float(m.values[name]) for m in marks], vertical=False)
    logarithmic(axis, [m.first for m in marks], vertical=True)
    axis.set_xlabel(name)


@styled
def draw_importance(path: Path, found: Sequence[Importance]) -> None:
    """Bars with intervals, and beside each what chance alone would give."""
    figure, (axis,) = new_figure(1, 1, height=1.4 + 0.42 * len(found))
    for place, one in enumerate(reversed(found)):
        axis.barh(place, one.share, color=FIRST, height=0.55, alpha=0.85)
        axis.plot([one.lo, one.hi], [place, place], color=INK, lw=1.4)
        axis.plot([one.chance, one.chance], [place - 0.36, place + 0.36], color=SECOND, lw=1.6)
    axis.set_yticks(range(len(found)), [one.name for one in reversed(found)])
    axis.set_xlabel("share of the variance of ranks (functional ANOVA)")
    caption = "Lines: 95 % bootstrap interval over trials; red: 95 % of shuffled results stay below. "
    finish(figure, path, f"{caption}n = {found[0].n if found else 0} trials; {verdict(found)}.")


def logarithmic(axis: Axes, values: Sequence[float], *, vertical: bool) -> None:
    """A log scale where all values are positive and spread over more than a factor of eight."""
    held = [value for value in values if math.isfinite(value)]
    if held and min(held) > 0 and max(held) > 8 * min(held):
        (axis.set_yscale if vertical else axis.set_xscale)("log")
        (axis.yaxis if vertical else axis.xaxis).set_minor_formatter(NullFormatter())
