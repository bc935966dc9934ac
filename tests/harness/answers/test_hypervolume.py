"""The share of a box behind a front, against counting points of a grid, and in cases known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.answers.pareto import Priced, hypervolume


def priced(pairs: list[tuple[float, float]]) -> list[Priced]:
    return [Priced(name=str(number), cost=cost, loss=loss) for number, (cost, loss) in enumerate(pairs)]


def test_against_a_grid() -> None:
    generator = np.random.default_rng(0)
    points = priced(
        [
            (float(c), float(x))
            for c, x in zip(10 ** generator.uniform(0, 3, 9), generator.uniform(0, 2, 9), strict=True)
        ]
    )
    costs, losses = [math.log(p.cost) for p in points], [p.loss for p in points]
    x, y = (np.linspace(lo, hi, 2001) for lo, hi in ((min(costs), max(costs)), (min(losses), sorted(losses)[4])))
    x, y = 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])
    behind = np.zeros((2000, 2000), bool)
    for cost, loss in zip(costs, losses, strict=True):
        behind |= (x[:, None] >= cost) & (y[None, :] >= loss)
    assert hypervolume(points, within=points) == pytest.approx(behind.mean(), abs=2e-3)


def test_known_shares() -> None:
    corners = priced([(1.0, 1.0), (100.0, 1.0), (1.0, 0.0)])
    assert hypervolume(corners, within=corners) == 1.0
    box = priced([(1.0, 1.0), (10.0, 0.0), (100.0, 1.0)])
    assert hypervolume(box, within=box) == pytest.approx(0.5)
    assert hypervolume(box[:1], within=box) == 0.0
    assert hypervolume([], within=box) == 0.0
    more = [*box, Priced(name="failed", cost=1.0, loss=math.inf)]
    assert hypervolume(more, within=more) == pytest.approx(0.5)
    assert math.isnan(hypervolume(box, within=box[:1]))
