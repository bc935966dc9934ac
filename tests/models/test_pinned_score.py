"""A score network that ends in the target's own score: values at both ends of the noise, trace, symmetry, cost.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Target
from models.fields.egnn import EGNN
from models.fields.known_score import KnownScore, asked_of_target
from models.fields.mlp import MLPField
from models.fields.pinned_score import PinnedScore
from models.schedules import Geometric, Schedule
from models.score_estimator import Clip
from models.targets import dw4, gmm4
from tests.laws.controlled_path_laws import normal
from tests.laws.field_laws import perturbed

LENGTH = 0.3
SCHEDULE = Geometric(sigma_min=0.01, sigma_max=30.0)
ROW = Clip(norm=4.0, of="row")


def time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pinned(target: Target, *, clip: Clip = ROW, schedule: Schedule = SCHEDULE) -> PinnedScore:
    space = target.space
    network: nn.Module = MLPField(space.dim, hidden=8, layers=1)
    if space.particles is not None:
        network = EGNN(space.particles, space.spatial_dim, hidden=4, layers=1)
    made = PinnedScore(network=network, target=target, clip=clip, schedule=schedule, length=LENGTH)
    field = perturbed(made, seed=3)
    assert isinstance(field, PinnedScore)
    return field


@pytest.fixture(params=[gmm4(), dw4()], ids=lambda target: str(target.name))
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


def points(target: Target) -> Tensor:
    return target.space.project(1.5 * normal(4, target.space.dim))


def test_without_noise_it_is_the_known_score_whatever_the_network(target: Target) -> None:
    x_BD = points(target)
    expected_BD = target.space.project(ROW(target.score(x_BD), target.space))
    torch.testing.assert_close(pinned(target)(time(0.0), x_BD), expected_BD, rtol=1e-12, atol=1e-12)


def test_in_wide_noise_it_is_the_network(target: Target) -> None:
    field, x_BD = pinned(target), points(target)
    network_BD, known_BD = field.network(time(1.0), x_BD), field.known(x_BD)
    expected_BD = network_BD + (LENGTH / 30.0) ** 2 * (known_BD - network_BD)
    torch.testing.assert_close(field(time(1.0), x_BD), expected_BD, rtol=1e-6, atol=1e-6)


def test_where_noise_is_as_wide_as_the_length_both_count_the_same(target: Target) -> None:
    field, x_BD = pinned(target), points(target)
    tau = SCHEDULE.time_of(time(LENGTH**2))
    mean_BD = 0.5 * (field.network(tau, x_BD) + field.known(x_BD))
    torch.testing.assert_close(field(tau, x_BD), mean_BD, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [0.0, 0.4, 0.9])
def test_the_trace_is_that_of_the_jacobian(target: Target, tau: float) -> None:
    field, x_BD = pinned(target, clip=Clip(norm=3.0, of="particles")), points(target)
    value_BD, trace_B = field.with_divergence(time(tau), x_BD)
    rows_BDD = torch.stack([torch.func.jacrev(lambda x: field(time(tau), x[None])[0])(x_D) for x_D in x_BD])
    torch.testing.assert_close(value_BD, field(time(tau), x_BD))
    torch.testing.assert_close(trace_B, rows_BDD.diagonal(dim1=1, dim2=2).sum(dim=1), rtol=1e-9, atol=1e-9)


def test_gradients_reach_the_points_through_both(target: Target) -> None:
    field, x_BD = pinned(target), points(target).requires_grad_()
    _, trace_B = field.with_divergence(time(0.2), x_BD)
    (gradient_BD,) = torch.autograd.grad(trace_B.sum(), x_BD)
    step_BD = 1e-5 * target.space.project(normal(*x_BD.shape, seed=5))
    with torch.no_grad():
        ahead_B, behind_B = (field.with_divergence(time(0.2), x_BD + s * step_BD)[1] for s in (1.0, -1.0))
    torch.testing.assert_close((ahead_B - behind_B) / 2, (gradient_BD * step_BD).sum(dim=1), rtol=1e-4, atol=1e-9)


def test_a_row_without_a_finite_score_leaves_the_network_its_share() -> None:
    target = dw4()
    field, tau = pinned(target), time(0.3)
    x_BD = torch.zeros(1, 8, dtype=torch.float64)
    assert torch.isfinite(field(tau, x_BD)).all()


def test_every_call_asks_the_target_once_a_row() -> None:
    target = gmm4()
    work = asked_of_target(nn.Sequential(pinned(target)), 5)
    assert (work.force_evaluations, work.energy_evaluations) == (5, 0)
    assert work.declared_flops == 5 * target.energy_flops
    assert asked_of_target(MLPField(2, hidden=4, layers=1), 5).force_evaluations == 0
    assert asked_of_target(lambda t, x: x, 5).force_evaluations == 0
    assert len(KnownScore(target=target, clip=ROW).state_dict()) == 0


@pytest.mark.parametrize("length", [0.0, -1.0, float("inf"), float("nan")])
def test_a_length_is_positive(length: float) -> None:
    network = MLPField(2, hidden=4, layers=1)
    with pytest.raises(ValueError, match=r"positive and finite, got .*; write for example 0\.1"):
        PinnedScore(network=network, target=gmm4(), clip=ROW, schedule=SCHEDULE, length=length)
