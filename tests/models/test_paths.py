"""Paths for pictures: rotations of the plane are circles."""

from __future__ import annotations

import math

import torch

from models.contracts import Space
from models.fields.egnn import EGNN
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.flows.solvers import Dopri5
from models.paths import base_points, planar_paths
from tests.laws.flow_laws import LinearField, rotation

FINE = Dopri5(rtol=1e-9, atol=1e-9)


def test_a_rotation_moves_points_on_circles() -> None:
    flow = ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=rotation(math.pi))
    x0_BD = base_points(flow, 5, seed=1)
    times_T = torch.linspace(0, 1, 5).double()
    paths_BTP2 = planar_paths(flow, x0_BD, times_T=times_T, solver=FINE)
    assert paths_BTP2.shape == (5, 5, 1, 2)
    angle_T = math.pi * times_T
    x_BT = x0_BD[:, :1] * angle_T.cos() - x0_BD[:, 1:] * angle_T.sin()
    torch.testing.assert_close(paths_BTP2[:, :, 0, 0], x_BT, rtol=0, atol=1e-7)


def test_particles_show_their_first_two_coordinates() -> None:
    torch.manual_seed(0)
    space = Space(dim=12, particles=4)
    flow = ContinuousFlow(prior=GaussianPrior(space=space), field=EGNN(particles=4, spatial_dim=3, hidden=8, layers=1))
    x0_BD = base_points(flow, 2, seed=7)
    torch.testing.assert_close(space.project(x0_BD), x0_BD)
    paths_BTP2 = planar_paths(flow, x0_BD, times_T=torch.linspace(0, 1, 3).double())
    assert paths_BTP2.shape == (2, 3, 4, 2)
    torch.testing.assert_close(paths_BTP2[:, 0], x0_BD.view(2, 4, 3)[..., :2])
    assert next(flow.parameters()).dtype == torch.float32
    assert float((paths_BTP2[:, -1] - paths_BTP2[:, 0]).abs().max()) > 0


def test_one_dimension_is_drawn_against_time() -> None:
    flow = ContinuousFlow(prior=GaussianPrior(space=Space(dim=1)), field=LinearField(torch.ones(1, 1).double()))
    times_T = torch.linspace(0, 1, 4).double()
    paths_BTP2 = planar_paths(flow, base_points(flow, 3, seed=2), times_T=times_T, solver=FINE)
    assert paths_BTP2.shape == (3, 4, 1, 2)
    torch.testing.assert_close(paths_BTP2[1, :, 0, 0], times_T)
    expected_T = paths_BTP2[1, 0, 0, 1] * times_T.exp()
    torch.testing.assert_close(paths_BTP2[1, :, 0, 1], expected_T, rtol=0, atol=1e-7)


def test_base_points_are_the_same_for_every_flow_of_a_base() -> None:
    flows = [
        ContinuousFlow(prior=GaussianPrior(space=Space(dim=2), std=2.0), field=rotation(angle)) for angle in (0.1, 2.0)
    ]
    first, second = (base_points(flow, 4, seed=3) for flow in flows)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
