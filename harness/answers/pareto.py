"""What is worth its cost: points that nothing cheaper is better than, and their picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.answers.figure_style import BEST, FIRST, QUIET, finish, new_figure, styled

CLOSE = 1.3
"""Ratio of costs below which points of a front share a name in the picture."""


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A judged model: what it cost, and its loss, smaller is better. Args: name: of the point and its rung."""

    name: str
    cost: float
    loss: float


def pareto_front(points: Sequence[Priced]) -> tuple[Priced, ...]:
    """Points that no other one beats in loss at the same or a lower cost, by rising cost; of equal ones the first."""
    front: list[Priced] = []
    for point in sorted(points, key=lambda one: (one.cost, one.loss)):
        if math.isfinite(point.loss) and (not front or point.loss < front[-1].loss):
            front.append(point)
    return tuple(front)


def hypervolume(points: Sequence[Priced], *, within: Sequence[Priced]) -> float:
    """The share of a box that lies behind the front (Zitzler and Thiele 1999), in log cost and in loss.

    Args:
        within: points whose cheapest and best, dearest and median loss are the corners of the box.
    """
    finite = [point for point in within if math.isfinite(point.loss)]
    if len(finite) < 2:
        return math.nan
    costs, losses = [math.log(point.cost) for point in finite], sorted(point.loss for point in finite)
    right, top = max(costs), losses[len(losses) // 2]
    width, height = right - min(costs), top - losses[0]
    front = [point for point in pareto_front(points) if point.loss < top]
    ends = [*(math.log(point.cost) for point in front[1:]), right]
    area = sum((end - math.log(one.cost)) * (top - one.loss) for one, end in zip(front, ends, strict=bool(front)))
    return area / (width * height) if width > 0 and height > 0 else math.nan


def apart(front: Sequence[Priced]) -> list[Priced]:
    """Of neighbours on a front whose costs are nearly the same, the best: their names would lie on each other."""
    ends = [*front[1:], None]
    return [one for one, after in zip(front, ends, strict=True) if after is None or after.cost > CLOSE * one.cost]


@styled
def draw_pareto(path: Path, points: Sequence[Priced], *, title: str, currency: str) -> None:
    """Every judged model at its cost, and the front."""
    held, front = [point for point in points if math.isfinite(point.loss)], pareto_front(points)
    figure, (axis,) = new_figure(1, 1, height=4.4)
    axis.plot([p.cost for p in held], [p.loss for p in held], "o", color=FIRST, ms=4.5, alpha=0.6, label="judged")
    axis.step([p.cost for p in front], [p.loss for p in front], where="post", color=BEST, label="front")
    axis.plot([p.cost for p in front], [p.loss for p in front], "o", color=BEST, ms=6)
    for point in apart(front):
        place = (point.cost, point.loss)
        axis.annotate(point.name, place, textcoords="offset points", xytext=(0, -14), ha="center", color=QUIET)
    axis.margins(0.08, 0.12)
    if held:
        axis.set_xscale("log")
        axis.legend()
        if min(p.loss for p in held) > 0 and max(p.loss for p in held) > 8 * min(p.loss for p in held):
            axis.set_yscale("log")
    axis.set_xlabel(f"cost / {currency}")
    axis.set_ylabel(title)
    caption = (
        f"Mean over seeds on validation points of every point on every rung that it reached (n = {len(held)}); cost of "
        "one seed alone. The front holds the best of many, which fresh seeds bring down."
    )
    finish(figure, path, caption)
