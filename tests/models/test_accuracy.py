"""Errors of solvers and of path gradients on flows that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.accuracy import SolverErrors, accuracy_records, check_steps, path_gradient_errors, solver_errors
from models.contracts import Batch, Space
from models.estimators.median import median_estimate
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence
from models.flows.prior import GaussianPrior
from models.flows.solvers import RungeKutta4
from models.objectives.path_gradient import forward_kl
from tests.laws.flow_laws import LinearField

MATRIX_DD = torch.tensor([[0.8, -1.1, 0.2], [0.4, -0.5, 0.3], [0.1, 0.9, 0.6]], dtype=torch.float64)
STEPS = (4, 8, 16, 32)
GRIDS = tuple(RungeKutta4(steps=n) for n in STEPS)


class Contraction(nn.Module):
    """The marginal field of independent flow matching from a standard normal to one `width` wide: x1 = width x0."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        return self.rate(t) * x_BD

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        return self(t, x_BD), self.rate(t) * x_BD.shape[1] * torch.ones_like(x_BD[:, 0])

    def rate(self, t: Tensor) -> Tensor:
        left, variance = 1.0 - t, self.width**2
        return (t * variance - left) / (left**2 + t**2 * variance)


@pytest.fixture
def flow() -> ContinuousFlow:
    return ContinuousFlow(prior=GaussianPrior(space=Space(dim=3)), field=LinearField(MATRIX_DD.clone()))


@pytest.fixture
def x_BD() -> Tensor:
    return torch.randn((40, 3), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def slope(errors_SB: Tensor) -> float:
    return float(np.polyfit(np.log(STEPS), errors_SB.median(dim=1).values.log().numpy(), 1)[0])


def runge_kutta_map(n: int, sign: float) -> Tensor:
    """The matrix that n steps of the classical method apply to a linear field."""
    h_DD, step_DD, term_DD = sign * MATRIX_DD / n, torch.eye(3).double(), torch.eye(3).double()
    for k in range(1, 5):
        term_DD = term_DD @ h_DD / k
        step_DD = step_DD + term_DD
    return torch.linalg.matrix_power(step_DD, n)


@pytest.mark.parametrize(("direction", "sign"), [("push", 1.0), ("pull", -1.0)])
def test_positions_of_a_linear_flow_err_as_the_closed_form_says(
    flow: ContinuousFlow, x_BD: Tensor, direction: str, sign: float
) -> None:
    found = solver_errors(flow, x_BD, direction=direction, solvers=GRIDS, tolerance=1e-11)  # type: ignore[arg-type]
    exact_DD = torch.linalg.matrix_exp(sign * MATRIX_DD)
    for n, errors_B in zip(STEPS, found.position_SB, strict=True):
        expected_B = (x_BD @ (runge_kutta_map(n, sign) - exact_DD).T).norm(dim=1)
        torch.testing.assert_close(errors_B, expected_B, rtol=1e-4, atol=1e-10)
    assert slope(found.position_SB) == pytest.approx(-4, abs=0.15)
    assert found.evaluations == (16, 32, 64, 128)
    assert found.reference_evaluations > 100
    assert float(found.position_floor_B.max()) < 1e-10


def test_log_densities_are_of_fourth_order_from_the_data_and_exact_from_the_base(
    flow: ContinuousFlow, x_BD: Tensor
) -> None:
    """The divergence of a linear field is constant: only the base point that a pull ends in can err."""
    pull = solver_errors(flow, x_BD, direction="pull", solvers=GRIDS, tolerance=1e-11)
    assert slope(pull.log_q_SB) == pytest.approx(-4, abs=0.2)
    exact_BD = x_BD @ torch.linalg.matrix_exp(-MATRIX_DD).T
    for n, errors_B in zip(STEPS, pull.log_q_SB, strict=True):
        found_BD = x_BD @ runge_kutta_map(n, -1.0).T
        expected_B = (flow.prior.log_prob(found_BD) - flow.prior.log_prob(exact_BD)).abs()
        torch.testing.assert_close(errors_B, expected_B, rtol=1e-3, atol=1e-9)
    push = solver_errors(flow, x_BD, direction="push", solvers=GRIDS, tolerance=1e-11)
    assert float(push.log_q_SB.max()) < 1e-11


def test_path_gradients_are_of_fourth_order_and_need_one_probe(flow: ContinuousFlow, x_BD: Tensor) -> None:
    batch = Batch(x_BD=x_BD, force_BD=-2 * x_BD)
    exact_S = path_gradient_errors(
        flow, batch, solvers=GRIDS, reference=RungeKutta4(steps=256), divergence="exact", seed=0
    )
    assert slope(exact_S[:, None]) == pytest.approx(-4, abs=0.15)
    probed_S = path_gradient_errors(
        flow, batch, solvers=GRIDS, reference=RungeKutta4(steps=256), divergence="hutchinson", seed=0
    )
    assert slope(probed_S[:, None]) == pytest.approx(-4, abs=0.15)
    first, last = (
        forward_kl(flow, x_BD, -2 * x_BD, solver=RungeKutta4(steps=n), divergence=exact_divergence).gradient_P
        for n in (STEPS[0], 256)
    )
    assert float(exact_S[0]) == pytest.approx(float((first - last).norm() / last.norm()), rel=1e-12)


def test_a_graded_grid_errs_less_where_a_flow_contracts_onto_narrow_data() -> None:
    width, noise_BD = 0.03, torch.randn((16, 2), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    flow = ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=Contraction(width))
    solvers = [RungeKutta4(steps=8), RungeKutta4(steps=8, grading=0.1), RungeKutta4(steps=16, grading=0.1)]
    found = solver_errors(flow, noise_BD, direction="push", solvers=solvers, tolerance=1e-11)
    equal, graded, finer = found.log_q_SB.median(dim=1).values.tolist()
    assert graded < equal / 20
    assert finer < graded / 16


def test_the_judged_flow_is_left_as_it_was(flow: ContinuousFlow, x_BD: Tensor) -> None:
    single = flow.float()
    solver_errors(single, x_BD.float(), direction="push", solvers=GRIDS[:2])
    assert {p.dtype for p in single.parameters()} == {torch.float32}


def test_records_hold_both_ways_and_every_batch(flow: ContinuousFlow, x_BD: Tensor) -> None:
    batches = [Batch(x_BD=x_BD[:8], force_BD=-x_BD[:8]), Batch(x_BD=x_BD[8:16], force_BD=-x_BD[8:16])]
    records = accuracy_records(
        flow,
        x0_BD=x_BD,
        x1_BD=x_BD[:30],
        batches=batches,
        steps=(1, 2, 8),
        gradings=(None, 0.3),
        tolerance=1e-6,
        gradient_reference_steps=8,
        divergence="exact",
    )
    assert records["push/position"].shape == (6, 40)
    assert records["pull/log_q"].shape == (6, 30)
    assert records["push/position_floor"].shape == (40,)
    assert np.isnan(records["gradient"]).tolist() == [[False, False, True] * 2] * 2
    assert records["steps"].tolist() == [1, 2, 8] * 2
    assert records["grading"].tolist() == [0, 0, 0, 0.3, 0.3, 0.3]
    solvers = [RungeKutta4(steps=n, grading=grading) for grading in (None, 0.3) for n in (1, 2, 8)]
    push: SolverErrors = solver_errors(flow, x_BD, direction="push", solvers=solvers, tolerance=1e-6)
    np.testing.assert_array_equal(records["push/position"], push.position_SB.numpy())


def test_wrong_questions_are_refused(flow: ContinuousFlow, x_BD: Tensor) -> None:
    for steps in ((), (2, 1), (0, 1), (1, 1)):
        with pytest.raises(ValueError, match="write for example"):
            check_steps(steps)
    with pytest.raises(ValueError, match="got a batch without"):
        path_gradient_errors(flow, Batch(x_BD=x_BD), solvers=GRIDS[:1], reference=GRIDS[1], divergence="exact", seed=0)


def test_the_interval_of_a_median_covers_it() -> None:
    """Of 200 exponential samples of 60, about 95 % of the intervals hold log 2."""
    rng = np.random.default_rng(5)
    found = [median_estimate(rng.exponential(size=60), seed=k, replicates=300) for k in range(200)]
    covered = np.mean([e.lo <= np.log(2) <= e.hi for e in found])
    assert 0.89 <= covered <= 0.99
    assert median_estimate([3.0, 1.0, 2.0], seed=0).value == 2.0


def test_a_median_knows_infinity_and_refuses_what_is_no_number() -> None:
    assert median_estimate([1.0, 2.0, 3.0, np.inf, np.inf], seed=0).value == 3.0
    assert "not numbers" in median_estimate([1.0, np.nan], seed=0).reason
    with pytest.raises(ValueError, match="evaluate on more"):
        median_estimate([1.0], seed=0)
