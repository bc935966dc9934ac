"""A continuous normalizing flow: a prior carried along a vector field from t = 0 (base) to t = 1 (data).

Shapes: B batch, D coordinates, T saved times.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.contracts import Divergence, Field, FlowSamples, Space
from models.flows.divergence import exact_divergence
from models.flows.prior import GaussianPrior
from models.flows.solvers import RightHandSide, RungeKutta4, Solver

DEFAULT_SOLVER = RungeKutta4(steps=20)


class ContinuousFlow(nn.Module):
    """x1 = x0 + int_0^1 v(t, x_t) dt with x0 from the prior; d log q / dt = -div v (Chen et al. 2018).

    Args:
        prior: the base. field: a Field; on a mean-free space its velocity must be mean-free (as an EGNN's is).

    All methods run without gradients; objectives that need them build their own integrations.
    """

    field: Field

    def __init__(self, *, prior: GaussianPrior, field: Field) -> None:
        super().__init__()
        self.prior = prior
        self.field = field

    @property
    def space(self) -> Space:
        return self.prior.space

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        solver: Solver = DEFAULT_SOLVER,
        divergence: Divergence = exact_divergence,
    ) -> FlowSamples:
        """n draws from the flow with their normalised log densities."""
        like = next(self.field.parameters(), None)
        return self.push(self.prior.sample(n, generator, like=like), solver=solver, divergence=divergence)

    @torch.no_grad()
    def push(
        self, x0_BD: Tensor, *, solver: Solver = DEFAULT_SOLVER, divergence: Divergence = exact_divergence
    ) -> FlowSamples:
        """Carry given base points (B, D) to data space."""
        x1_BD, logdet_B, length_B = self._carry(x0_BD, solver, divergence, start=0.0, end=1.0)
        return self._samples(x0_BD, x1_BD, logdet_B, length_B)

    @torch.no_grad()
    def pull(
        self, x1_BD: Tensor, *, solver: Solver = DEFAULT_SOLVER, divergence: Divergence = exact_divergence
    ) -> FlowSamples:
        """Carry given data points (B, D) back to the base: the way to their log density."""
        x0_BD, logdet_B, length_B = self._carry(x1_BD, solver, divergence, start=1.0, end=0.0)
        return self._samples(x0_BD, x1_BD, -logdet_B, -length_B)

    def log_prob(
        self, x1_BD: Tensor, *, solver: Solver = DEFAULT_SOLVER, divergence: Divergence = exact_divergence
    ) -> Tensor:
        """Normalised log density (B,) of data points, on the mean-free subspace where there is one."""
        return self.pull(x1_BD, solver=solver, divergence=divergence).log_q_B

    @torch.no_grad()
    def trajectory(self, x0_BD: Tensor, *, times: Tensor, solver: Solver = DEFAULT_SOLVER) -> Tensor:
        """States (T, B, D) at increasing `times` in [0, 1] of the trajectories that start at x0 when t = 0."""
        self.space.check(x0_BD, name="x0")
        marks = [0.0, *times.tolist()]
        if marks != sorted(marks) or marks[-1] > 1.0:
            raise ValueError(
                f"times must increase within [0, 1], got {marks[1:]}; write for example linspace(0, 1, 11)"
            )
        state_BD, saved = x0_BD, []
        for start, end in pairwise(marks):
            if end > start:
                state_BD = solver.integrate(self.field, state_BD, start=start, end=end)
            saved.append(state_BD)
        return torch.stack(saved)

    def _carry(
        self, x_BD: Tensor, solver: Solver, divergence: Divergence, *, start: float, end: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.space.check(x_BD)
        state = torch.cat([x_BD, x_BD.new_zeros(len(x_BD), 2)], dim=1)
        state = solver.integrate(self._rates(divergence), state, start=start, end=end)
        return state[:, :-2], state[:, -2], state[:, -1]

    def _rates(self, divergence: Divergence) -> RightHandSide:
        """d/dt of (position, log-determinant, path length), one column each for the last two."""

        def rates(t: Tensor, state: Tensor) -> Tensor:
            v_BD, divergence_B = divergence(self.field, t, state[:, :-2])
            return torch.cat([v_BD, divergence_B.unsqueeze(1), v_BD.norm(dim=1, keepdim=True)], dim=1)

        return rates

    def _samples(self, x0_BD: Tensor, x1_BD: Tensor, logdet_B: Tensor, length_B: Tensor) -> FlowSamples:
        return FlowSamples(
            x0_BD=x0_BD,
            x1_BD=x1_BD,
            log_q_B=self.prior.log_prob(x0_BD) - logdet_B,
            logdet_B=logdet_B,
            length_B=length_B,
        )
