"""Laws that every continuous flow obeys, and two fields whose flows are known in closed form.

Shapes: B batch, D coordinates, T saved times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.contracts import FlowSamples
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import hutchinson
from models.flows.solvers import Dopri5, RungeKutta4, Solver


class LinearField(nn.Module):
    """v = A x: the flow is the matrix exponential, the divergence tr A."""

    def __init__(self, matrix_DD: Tensor) -> None:
        super().__init__()
        self.matrix_DD = nn.Parameter(matrix_DD)

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        return x_BD @ self.matrix_DD.t()

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        # The zero keeps the trace on the graph of x, as every field's divergence is.
        return self(t, x_BD), self.matrix_DD.trace() + 0.0 * x_BD.sum(dim=1)


def rotation(angle: float) -> LinearField:
    """Turns the plane by `angle` between t = 0 and t = 1."""
    return LinearField(torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64))


class FlowLaws(ABC):
    """Subclass and give a flow in float64, smooth enough for RK4 with 40 steps."""

    solver: Solver = RungeKutta4(steps=40)
    tolerance = 1e-6

    @abstractmethod
    def make(self) -> ContinuousFlow: ...

    @pytest.fixture
    def flow(self) -> ContinuousFlow:
        torch.manual_seed(2)
        return self.make().double()

    @pytest.fixture
    def pushed(self, flow: ContinuousFlow) -> FlowSamples:
        return flow.push(self.base_points(flow), solver=self.solver)

    def base_points(self, flow: ContinuousFlow) -> Tensor:
        like = torch.empty(0, dtype=torch.float64)
        return flow.prior.sample(5, torch.Generator().manual_seed(1), like=like)

    def test_pull_undoes_push(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        pulled = flow.pull(pushed.x1_BD, solver=self.solver)
        for name in ("x0_BD", "x1_BD", "log_q_B", "logdet_B", "length_B"):
            there, back = getattr(pushed, name), getattr(pulled, name)
            torch.testing.assert_close(back, there, rtol=0, atol=self.tolerance, msg=name)

    def test_log_prob_is_what_pull_says(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        pulled = flow.pull(pushed.x1_BD, solver=self.solver)
        assert torch.equal(flow.log_prob(pushed.x1_BD, solver=self.solver), pulled.log_q_B)

    def test_density_follows_from_the_base_and_the_log_determinant(
        self, flow: ContinuousFlow, pushed: FlowSamples
    ) -> None:
        expected_B = flow.prior.log_prob(pushed.x0_BD) - pushed.logdet_B
        torch.testing.assert_close(pushed.log_q_B, expected_B, rtol=0, atol=1e-13)

    def test_log_determinant_is_that_of_the_map(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        basis_DK = self._subspace_basis(flow)

        def carry(coordinates_K: Tensor) -> Tensor:
            return self.solver.integrate(flow.field, (basis_DK @ coordinates_K)[None], start=0.0, end=1.0)[0]

        for x0_D, logdet in zip(pushed.x0_BD[:2], pushed.logdet_B[:2], strict=True):
            jacobian_DK = torch.autograd.functional.jacobian(carry, basis_DK.t() @ x0_D)
            actual = torch.linalg.slogdet(basis_DK.t() @ jacobian_DK)[1]
            torch.testing.assert_close(actual, logdet, rtol=0, atol=10 * self.tolerance)

    def test_the_same_generator_gives_the_same_samples(self, flow: ContinuousFlow) -> None:
        one, two = (flow.sample(3, generator=torch.Generator().manual_seed(9), solver=self.solver) for _ in range(2))
        assert torch.equal(one.x1_BD, two.x1_BD)
        assert torch.equal(one.log_q_B, two.log_q_B)
        other = flow.sample(3, generator=torch.Generator().manual_seed(10), solver=self.solver)
        assert not torch.equal(one.x1_BD, other.x1_BD)

    def test_trajectory_ends_where_push_does(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        times_T = torch.linspace(0.0, 1.0, 5)
        trajectory_TBD = flow.trajectory(pushed.x0_BD, times=times_T, solver=self.solver)
        assert trajectory_TBD.shape == (5, *pushed.x0_BD.shape)
        assert torch.equal(trajectory_TBD[0], pushed.x0_BD)
        torch.testing.assert_close(trajectory_TBD[-1], pushed.x1_BD, rtol=0, atol=self.tolerance)

    def test_a_path_is_no_shorter_than_the_straight_line(self, pushed: FlowSamples) -> None:
        straight_B = (pushed.x1_BD - pushed.x0_BD).norm(dim=1)
        assert bool((pushed.length_B >= straight_B - self.tolerance).all())

    def test_the_adaptive_solver_agrees_in_both_directions(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        adaptive = Dopri5(rtol=1e-8, atol=1e-8)
        there = flow.push(pushed.x0_BD, solver=adaptive)
        back = flow.pull(pushed.x1_BD, solver=adaptive)
        for actual in (there, back):
            torch.testing.assert_close(actual.log_q_B, pushed.log_q_B, rtol=0, atol=self.tolerance)
            torch.testing.assert_close(actual.x1_BD, pushed.x1_BD, rtol=0, atol=self.tolerance)

    def test_one_probe_gives_one_log_determinant_in_both_directions(
        self, flow: ContinuousFlow, pushed: FlowSamples
    ) -> None:
        divergence = hutchinson(flow.space.project(torch.sign(pushed.x0_BD)))
        there = flow.push(pushed.x0_BD, solver=self.solver, divergence=divergence)
        back = flow.pull(there.x1_BD, solver=self.solver, divergence=divergence)
        torch.testing.assert_close(back.logdet_B, there.logdet_B, rtol=0, atol=self.tolerance)

    def test_nothing_keeps_a_graph(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        assert not pushed.log_q_B.requires_grad
        assert not flow.trajectory(pushed.x0_BD, times=torch.tensor([1.0]), solver=self.solver).requires_grad

    def test_float32_is_close_to_float64(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        single = flow.float().push(pushed.x0_BD.float(), solver=self.solver)
        assert single.x1_BD.dtype == single.log_q_B.dtype == torch.float32
        torch.testing.assert_close(single.log_q_B.double(), pushed.log_q_B, rtol=1e-4, atol=1e-4)

    def test_points_off_the_space_are_refused(self, flow: ContinuousFlow, pushed: FlowSamples) -> None:
        with pytest.raises(ValueError, match="must have shape"):
            flow.push(pushed.x0_BD[:, :-1], solver=self.solver)
        bad = replace(pushed, x1_BD=pushed.x1_BD.clone())
        bad.x1_BD[0, 0] = torch.nan
        with pytest.raises(ValueError, match="must be finite"):
            flow.pull(bad.x1_BD, solver=self.solver)

    @staticmethod
    def _subspace_basis(flow: ContinuousFlow) -> Tensor:
        """Orthonormal columns that span the space inside R^D."""
        projector_DD = flow.space.project(torch.eye(flow.space.dim, dtype=torch.float64))
        return torch.linalg.svd(projector_DD)[0][:, : flow.space.degrees_of_freedom]
