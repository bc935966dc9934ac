"""Annealed importance sampling from a flow q to g = p^2 / q, the best proposal for the alpha = 2 divergence.

Intermediate densities: log pi_b = (1 - 2 b) log q + 2 b log p for b from 0 (q) to 1 (g), with Hamiltonian moves that
leave each of them invariant (Neal 2001; Midgley et al. 2023). p is not normalised, q is.

Shapes: B batch, D coordinates, M intermediate densities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.contracts import FlowSamples, Prior, Random, Target, Work

PUSH_EVALUATIONS = 2
"""Passes of a flow that carry a base point to the data: the inverse, and its log-determinant."""
SLOPE_EVALUATIONS = 2
"""Passes of a flow for a log density with its gradient in x: forward and backward."""


class Proposal(Protocol):
    """What annealing needs of a flow: draws and a log density that is cheap and differentiable in x."""

    @property
    def prior(self) -> Prior: ...

    def push(self, x0_BD: Tensor) -> FlowSamples: ...

    def log_prob(self, x1_BD: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How rows are carried from q to g.

    Args:
        bridges: M, intermediate densities at b = m / (M + 1), m = 1..M. With none the weights are p^2 / q^2.
        moves: Hamiltonian trajectories at each. leapfrog_steps: of a trajectory.
        step_size: that adaptation starts from, length units. target_acceptance: that it aims at.
        adaptation_rate: change of the log step size per unit of acceptance. 0 keeps the step sizes.
        force_clip: largest norm of the force that moves feel, per length unit; the acceptance test sees the true
            densities, so that clipping costs acceptance and no correctness.
    """

    bridges: int = 4
    moves: int = 1
    leapfrog_steps: int = 5
    step_size: float = 0.1
    target_acceptance: float = 0.65
    adaptation_rate: float = 0.2
    force_clip: float = 1e3

    def __post_init__(self) -> None:
        if min(self.bridges, self.moves) < 0 or self.leapfrog_steps < 1:
            raise ValueError(
                "bridges and moves are not negative and a move has a step, "
                f"got bridges={self.bridges}, moves={self.moves}, leapfrog_steps={self.leapfrog_steps}; "
                "write for example 4, 1, 5"
            )
        if not (0.0 < self.step_size < math.inf and self.force_clip > 0.0 and self.adaptation_rate >= 0.0):
            raise ValueError(
                "step size and force clip are positive and the rate is not negative, got "
                f"step_size={self.step_size}, force_clip={self.force_clip}, adaptation_rate={self.adaptation_rate}; "
                "write for example 0.1, 1e3, 0.2"
            )
        if not 0.0 < self.target_acceptance < 1.0:
            raise ValueError(f"target_acceptance must lie in (0, 1), got {self.target_acceptance}; 0.65 is usual")

    def first_step_sizes(self) -> Tensor:
        """One for each intermediate density, (M,) in float64."""
        return torch.full((self.bridges,), self.step_size, dtype=torch.float64)

    def adapted(self, step_size_M: Tensor, acceptance_BM: Tensor) -> Tensor:
        """Step sizes for the next run, from how much this one accepted. Within a run they are fixed."""
        if self.moves == 0 or len(acceptance_BM) == 0:
            return step_size_M
        excess_M = acceptance_BM.double().mean(dim=0).to(step_size_M.device) - self.target_acceptance
        return step_size_M * (self.adaptation_rate * excess_M).exp()


@dataclass(frozen=True, kw_only=True)
class AnnealedSamples:
    """Where rows ended, and what they weigh.

    Attributes:
        x_BD: last positions. log_q_B: log density of the flow there.
        log_w_B: mean exp(log w) estimates int p^2 / q, and weighted averages those over g. Minus infinity in rows that
            count for nothing: the energy or the density of the flow was not finite on the way.
        acceptance_BM: mean acceptance probability at each intermediate density, one column a density.
        work: of these rows.
    """

    x_BD: Tensor
    log_q_B: Tensor
    log_w_B: Tensor
    acceptance_BM: Tensor
    work: Work

    @property
    def usable_B(self) -> Tensor:
        """Rows with a finite weight at a finite place."""
        return torch.isfinite(self.log_w_B) & torch.isfinite(self.log_q_B) & torch.isfinite(self.x_BD).all(dim=1)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Rows with log density and slope of the flow, and energy and score of the target, there."""

    x_BD: Tensor
    log_q_B: Tensor
    energy_B: Tensor
    slope_BD: Tensor
    score_BD: Tensor

    @property
    def usable_B(self) -> Tensor:
        return torch.isfinite(self.log_q_B) & torch.isfinite(self.energy_B)

    def log_bridge(self, b: float) -> Tensor:
        """log pi_b, (B,); minus infinity where energy or density are not finite."""
        value_B = (1.0 - 2.0 * b) * self.log_q_B - 2.0 * b * self.energy_B
        return torch.where(self.usable_B, value_B, -math.inf)

    def log_ratio(self) -> Tensor:
        """log p - log q, (B,), minus infinity likewise."""
        return torch.where(self.usable_B, -self.energy_B - self.log_q_B, -math.inf)

    def force(self, b: float, clip: float) -> Tensor:
        """Gradient of log pi_b, (B, D), with a norm of at most `clip`; zero in rows where it is not finite."""
        force_BD = (1.0 - 2.0 * b) * self.slope_BD + 2.0 * b * self.score_BD
        norm_B1 = force_BD.norm(dim=1, keepdim=True)
        clipped_BD = force_BD * (clip / norm_B1).clamp_max(1.0)
        return torch.where(torch.isfinite(norm_B1) & (norm_B1 > 0.0), clipped_BD, 0.0)

    def replaced(self, accept_B: Tensor, other: Place) -> Place:
        """Rows of `other` where accepted."""
        rows_B1 = accept_B[:, None]
        return Place(
            x_BD=torch.where(rows_B1, other.x_BD, self.x_BD),
            log_q_B=torch.where(accept_B, other.log_q_B, self.log_q_B),
            energy_B=torch.where(accept_B, other.energy_B, self.energy_B),
            slope_BD=torch.where(rows_B1, other.slope_BD, self.slope_BD),
            score_BD=torch.where(rows_B1, other.score_BD, self.score_BD),
        )


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """The densities between a flow and the square of a target over it."""

    flow: Proposal
    target: Target

    def look(self, x_BD: Tensor, *, energy: bool = True) -> Place:
        """Everything at some rows; without the energy (NaN) on the way along a trajectory."""
        with torch.enable_grad():
            leaf_BD = x_BD.detach().requires_grad_()
            log_q_B = self.flow.log_prob(leaf_BD)
            (slope_BD,) = torch.autograd.grad(log_q_B.sum(), leaf_BD)
        return Place(
            x_BD=x_BD,
            log_q_B=log_q_B.detach(),
            energy_B=self.target.energy(x_BD).detach() if energy else torch.full_like(x_BD[:, 0], math.nan),
            slope_BD=self.target.space.project(slope_BD),
            score_BD=self.target.score(x_BD).detach(),
        )

    def move(
        self, place: Place, b: float, *, noise_BD: Tensor, uniform_B: Tensor, step_size: float, settings: Annealing
    ) -> tuple[Place, Tensor]:
        """One Metropolis-corrected trajectory of every row at pi_b; returns places and acceptance probabilities (B,).

        Args:
            noise_BD: standard normal, the momenta. uniform_B: uniform on [0, 1), the decisions.
        """
        space, clip = self.target.space, settings.force_clip
        p_BD = space.project(noise_BD)
        start_B = place.log_bridge(b) - 0.5 * p_BD.square().sum(dim=1)
        there = place
        for step in range(settings.leapfrog_steps):
            p_BD = p_BD + 0.5 * step_size * there.force(b, clip)
            x_BD = space.project(there.x_BD + step_size * p_BD)
            there = self.look(x_BD, energy=step == settings.leapfrog_steps - 1)
            p_BD = p_BD + 0.5 * step_size * there.force(b, clip)
        end_B = there.log_bridge(b) - 0.5 * p_BD.square().sum(dim=1)
        acceptance_B = torch.nan_to_num(end_B - start_B, nan=-math.inf).clamp_max(0.0).exp()
        return place.replaced(uniform_B < acceptance_B, there), acceptance_B


@torch.no_grad()
def anneal(
    flow: Proposal, target: Target, random: Random, *, like: Tensor, settings: Annealing, step_size_M: Tensor
) -> AnnealedSamples:
    """Carry one row for each of the randomness from q to g.

    Args:
        random: every number used here; the same rows come out however workers share them.
        like: gives dtype and device. step_size_M: of the moves at each intermediate density.

    Raises:
        ValueError: where step sizes do not fit the settings.
    """
    if step_size_M.shape != (settings.bridges,) or not bool((step_size_M > 0.0).all()):
        raise ValueError(
            f"each of the {settings.bridges} bridges has a positive step size, got {step_size_M.tolist()}; "
            "write settings.first_step_sizes()"
        )
    bridge, dim = Bridge(flow=flow, target=target), target.space.dim
    x_BD = flow.push(flow.prior.from_noise(random.normal(dim, like=like))).x1_BD
    place = bridge.look(x_BD)
    log_w_B, acceptance = torch.zeros_like(place.log_q_B), []
    share = 2.0 / (settings.bridges + 1)
    for m, step_size in enumerate(step_size_M.tolist(), start=1):
        log_w_B = log_w_B + share * place.log_ratio()
        accepted_B = torch.zeros_like(log_w_B)
        for _ in range(settings.moves):
            noise_BD, uniform_B = random.normal(dim, like=like), random.uniform(like=like)
            place, probability_B = bridge.move(
                place,
                m / (settings.bridges + 1),
                noise_BD=noise_BD,
                uniform_B=uniform_B,
                step_size=step_size,
                settings=settings,
            )
            accepted_B = accepted_B + probability_B / settings.moves
        acceptance.append(accepted_B)
    log_w_B = log_w_B + share * place.log_ratio()
    return AnnealedSamples(
        x_BD=place.x_BD,
        log_q_B=place.log_q_B,
        log_w_B=log_w_B,
        acceptance_BM=torch.stack(acceptance, dim=1) if acceptance else log_w_B.new_zeros(len(log_w_B), 0),
        work=_work(len(x_BD), settings, target),
    )


def _work(rows: int, settings: Annealing, target: Target) -> Work:
    """A look at every start, and at every step of every trajectory; energies at starts and ends only."""
    trajectories = settings.bridges * settings.moves
    looks, energies = 1 + trajectories * settings.leapfrog_steps, 1 + trajectories
    return Work(
        samples=rows,
        field_evaluations=rows * (PUSH_EVALUATIONS + SLOPE_EVALUATIONS * looks),
        energy_evaluations=rows * energies,
        force_evaluations=rows * looks,
        declared_flops=rows * (looks + energies) * target.energy_flops,
    )
