"""Maximum likelihood against golden numbers, finite differences and its laws.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, Objective, Space, whole_batch
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence
from models.flows.prior import GaussianPrior
from models.flows.solvers import RungeKutta4
from models.objectives.maximum_likelihood import MaximumLikelihood
from tests.laws.field_laws import perturbed
from tests.laws.objective_laws import ObjectiveLaws, flat, gradient_of

GOLDEN = Path(__file__).parents[1] / "golden"


def plane_flow(field: nn.Module) -> ContinuousFlow:
    return ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=field)


def points(n: int, space: Space) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return space.project(torch.randn(n, space.dim, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("steps", [15, 240])
def test_golden_gradient_and_loss(steps: int) -> None:
    with np.load(GOLDEN / "A_path_gradient.npz") as stored:
        golden = {key: torch.as_tensor(stored[key]) for key in stored.files}
    field = MLPField(dim=2, hidden=8, layers=2, activation="tanh").double()
    state = {f"linears.{i - 1}.{kind}": golden[f"field_l{i}.{kind}"] for i in (1, 2, 3) for kind in ("weight", "bias")}
    field.load_state_dict(state)
    whole = gradient_of(
        MaximumLikelihood(solver_steps=steps), plane_flow(field), Batch(x_BD=golden["x1"]), whole_batch(6, 0)
    )
    torch.testing.assert_close(flat(whole.gradients) / 6, golden[f"ml_n{steps}_grad_flat"], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.loss_sum / 6, golden[f"ml_n{steps}_nll"].reshape(()), rtol=0, atol=1e-12)
    assert whole.work.field_evaluations == 4 * steps * 6


def test_gradient_is_that_of_the_flows_own_density() -> None:
    torch.manual_seed(0)
    flow = plane_flow(perturbed(MLPField(dim=2, hidden=6, layers=2, activation="silu")))
    x_BD, step = points(5, flow.space), 1e-6
    gradient = gradient_of(MaximumLikelihood(solver_steps=4), flow, Batch(x_BD=x_BD), whole_batch(5, 0)).gradients[0]
    weight, solver = next(flow.parameters()), RungeKutta4(steps=4)
    losses = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight[1, 0] += sign * step
            losses.append(-flow.log_prob(x_BD, solver=solver, divergence=exact_divergence).sum())
            weight[1, 0] -= sign * step
    torch.testing.assert_close(gradient[1, 0], (losses[0] - losses[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'guess'; write"):
        MaximumLikelihood(divergence="guess")  # type: ignore[arg-type]


class TestMaximumLikelihood(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return MaximumLikelihood(solver_steps=3)

    def make_flow(self) -> nn.Module:
        return plane_flow(perturbed(MLPField(dim=2, hidden=8, layers=2), scale=0.2))

    def make_batch(self) -> Batch:
        return Batch(x_BD=points(6, Space(dim=2)))


class TestMaximumLikelihoodOfParticles(ObjectiveLaws):
    def make_objective(self) -> Objective:
        return MaximumLikelihood(solver_steps=2, divergence="hutchinson")

    def make_flow(self) -> nn.Module:
        field = perturbed(EGNN(particles=4, spatial_dim=2, hidden=4, layers=2), scale=0.1)
        return ContinuousFlow(prior=GaussianPrior(space=Space(dim=8, particles=4)), field=field)

    def make_batch(self) -> Batch:
        return Batch(x_BD=points(6, Space(dim=8, particles=4)))


class TestExactLikelihoodOfParticles(TestMaximumLikelihoodOfParticles):
    def make_objective(self) -> Objective:
        return MaximumLikelihood(solver_steps=2)
