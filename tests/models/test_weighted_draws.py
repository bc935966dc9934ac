"""Weighted draws of every kind of model: densities, weights, seeds, and rows that are lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from models.contracts import Target
from models.estimators import importance_estimates
from models.problem import build
from models.targets import gmm4
from models.weighted_draws import WeightedDraws, weighted_draws
from studies.energy_options import EnergyOptions
from tests.studies.harmonic import Harmonic, harmonic

PLANE = EnergyOptions(hidden=8, layers=2, fab_layers=2, control_steps=4, score_hidden=8, score_layers=2)
PARTICLES = EnergyOptions(target="tests.studies.harmonic:harmonic", hidden=8, layers=2)
MODELS: dict[str, tuple[EnergyOptions, str | None, Target]] = {
    "continuous flow": (PLANE, None, gmm4()),
    "continuous flow of particles": (PARTICLES, None, harmonic()),
    "probability flow": (PLANE, "idem", gmm4()),
    "coupling flow": (PLANE, "fab", gmm4()),
    "controlled process": (PLANE, "pis", gmm4()),
}


def untrained(options: EnergyOptions, phase: str | None) -> Any:
    problem = build(options.problem_setting().problem, cache=Path())
    return problem.flow(0, None if phase is None else options.energy_phases()[phase].objective).double()


def drawn(flow: Any, target: Target, *, rows: int = 200, seed: int = 3) -> WeightedDraws:
    return weighted_draws(flow, target, rows=rows, seed=seed, tolerance=1e-4)


@pytest.mark.parametrize(("options", "phase", "target"), MODELS.values(), ids=MODELS.keys())
def test_weights_stand_for_the_target(options: EnergyOptions, phase: str | None, target: Target) -> None:
    flow = untrained(options, phase)
    draws = drawn(flow, target)
    assert draws.x_BD.dtype == torch.float64
    target.space.check(draws.x_BD)
    torch.testing.assert_close(draws.energy_B, target.energy(draws.x_BD))
    assert (draws.log_q_B is None) == (phase == "pis")
    if draws.log_q_B is not None:
        torch.testing.assert_close(draws.log_weight_B, -draws.energy_B - draws.log_q_B)
        torch.testing.assert_close(flow.log_prob(draws.x_BD), draws.log_q_B, rtol=1e-3, atol=1e-3)
    log_z = importance_estimates(draws.log_weight_B.numpy(), seed=0)["log_z"]
    assert target.log_z is not None
    assert abs(log_z.value - target.log_z) < 2 * (log_z.hi - log_z.lo)
    again, other = drawn(flow, target), drawn(flow, target, seed=4)
    assert torch.equal(again.x_BD, draws.x_BD)
    assert torch.equal(again.log_weight_B, draws.log_weight_B)
    assert not torch.equal(other.x_BD, draws.x_BD)


class HalfForbidden(Harmonic):
    """No energy on one side, an infinite one on another: overlaps, and what a broken field makes."""

    def energy(self, x_BD: torch.Tensor) -> torch.Tensor:
        energy_B = super().energy(x_BD)
        return energy_B.masked_fill(x_BD[:, 0] > 0.5, math.inf).masked_fill(x_BD[:, 0] < -0.5, math.nan)


def test_rows_without_an_energy_have_no_weight() -> None:
    draws = drawn(untrained(PARTICLES, None), HalfForbidden(), rows=60)
    lost_B = draws.x_BD[:, 0].abs() > 0.5
    assert 0 < int(lost_B.sum()) < 60
    assert torch.equal(draws.log_weight_B == -math.inf, lost_B)
