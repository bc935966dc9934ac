"""Maximum likelihood of a continuous flow, differentiated through every step of the solver.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Work, parameter_gradients
from models.fields.known_score import asked_of_target
from models.flows.continuous import ContinuousFlow
from models.flows.solvers import RungeKutta4
from models.objectives.path_gradient import DivergenceMode, check_divergence_mode, divergence_of, draw_probe


@dataclass(frozen=True, kw_only=True)
class MaximumLikelihood:
    """-log q of the data as an Objective (Chen et al. 2018).

    Exact for the discretised flow, so the reference that path gradients are compared with; its memory grows with the
    number of solver steps.

    Args:
        solver_steps: classical Runge-Kutta steps from data to base.
        solver_grading: None for equal steps, or the width that the grid is graded by (see RungeKutta4).
        divergence: "exact", or "hutchinson" with Rademacher probes.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    solver_steps: int = 15
    solver_grading: float | None = None
    divergence: DivergenceMode = "exact"

    def __post_init__(self) -> None:
        check_divergence_mode(self.divergence)
        _ = self.solver  # a wrong grid is told now, not at the first batch

    @property
    def solver(self) -> RungeKutta4:
        return RungeKutta4(steps=self.solver_steps, grading=self.solver_grading)

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """The data x, and a probe for each row where the divergence is estimated."""
        return Prepared(tensors={"x": batch.x_BD, **draw_probe(self.divergence, prior, batch.x_BD, random)})

    def gradient(self, flow: ContinuousFlow, prepared: Prepared) -> GradientSum:
        """Sum over the prepared rows of the gradient of -log q (normalised, in nats)."""
        x_BD, dim, n = prepared["x"], flow.space.dim, len(prepared)
        divergence = divergence_of(prepared)

        def rates(t: Tensor, state: Tensor) -> Tensor:
            v_BD, divergence_B = divergence(flow.field, t, state[:, :dim])
            return torch.cat([v_BD, divergence_B.unsqueeze(1)], dim=1)

        evaluations = 4 * self.solver_steps * n
        # A leaf that asks for gradients lets divergences by autograd keep one graph from data to base.
        state = torch.cat([x_BD.detach(), x_BD.new_zeros(n, 1)], dim=1).requires_grad_()
        state = self.solver.integrate(rates, state, start=1.0, end=0.0)
        loss = -(flow.prior.log_prob(state[:, :dim]) + state[:, dim]).sum()
        return GradientSum(
            gradients=parameter_gradients(loss, [p for p in flow.parameters() if p.requires_grad]),
            loss_sum=loss.detach(),
            weight=float(n),
            work=prepared.work
            + asked_of_target(flow.field, evaluations)
            + Work(samples=n, field_evaluations=evaluations),
        )
