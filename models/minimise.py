"""Minima of an energy: deterministic descent from many configurations at once, by the target's own closed-form score.

L-BFGS (Nocedal 1980; Liu and Nocedal 1989, algorithm 2.1) with a history for each sample and a largest displacement a
step, as is usual for clusters (Wales and Doye 1997): a sample then mostly falls into the minimum that lies under it,
although nothing but infinitesimal steepest descent promises that.

Shape suffixes: B batch, D coordinates, A samples still on their way, M steps of history.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from models.contracts import Target

HISTORY = 8
FIRST_STEP = 0.1
"""Largest displacement of a step without history, as a share of the largest one allowed."""
SUFFICIENT_DECREASE = 1e-4
ENERGY_ROUNDING = 1e-12
"""Relative differences of energies below this say nothing; the slope along the step then decides."""
SMALLEST_SHRINK = 1e-9
"""A step shrunk beyond this leads nowhere: the history is forgotten, and without history the descent ends."""


@dataclass(frozen=True, kw_only=True)
class Minima:
    """Where each sample's descent ended, in float64. Rows follow the samples.

    Attributes:
        x_BD: configurations, mean-free where the space is. energy_B: in kT.
        force_B: largest absolute coordinate of the force there, kT per length.
        converged_B: whether that force reached the tolerance. A sample that did not is no minimum.
        iterations_B: energies and forces evaluated on the way.
    """

    x_BD: Tensor
    energy_B: Tensor
    force_B: Tensor
    converged_B: Tensor
    iterations_B: Tensor


def minimise(
    target: Target,
    x_BD: Tensor,
    *,
    force_tolerance: float = 1e-6,
    max_iterations: int = 3000,
    max_step: float = 0.1,
    chunk: int = 256,
) -> Minima:
    """Follow the force of every sample downhill until it vanishes.

    Args:
        x_BD: (B, D), any floating dtype; computed in float64, centre of mass removed. Rows that are not finite, or
            where the force is not (particles that coincide), come back as not converged.
        force_tolerance: largest absolute coordinate of the force that counts as none, kT per length.
        max_iterations: for each sample. max_step: largest change of a coordinate in one step, length units.
        chunk: samples at once; memory grows with it, results do not depend on it.

    Errors: ValueError for a wrong shape, or settings that are not positive.
    """
    if x_BD.ndim != 2 or x_BD.shape[1] != target.space.dim:
        raise ValueError(
            f"samples must have shape (rows, {target.space.dim}), got {tuple(x_BD.shape)}; flatten one configuration "
            "into each row"
        )
    settings = {"force_tolerance": force_tolerance, "max_step": max_step, "max_iterations": max_iterations}
    for name, value in {**settings, "chunk": chunk}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}; leave it out for the default")
    start_BD = target.space.project(x_BD.detach().double())
    blocks = [_descend(target, block_BD, **settings) for block_BD in start_BD.split(chunk)]  # type: ignore[arg-type]
    return Minima(**{f.name: torch.cat([getattr(block, f.name) for block in blocks]) for f in fields(Minima)})


@dataclass(kw_only=True)
class _Descent:
    """Samples on their way. Every tensor has a row a sample, so that finished ones can be dropped."""

    row_A: Tensor
    x_AD: Tensor
    energy_A: Tensor
    gradient_AD: Tensor
    shrink_A: Tensor
    move_AMD: Tensor
    change_AMD: Tensor
    inverse_curvature_AM: Tensor

    @staticmethod
    def start(target: Target, x_AD: Tensor) -> _Descent:
        rows, dim = x_AD.shape
        return _Descent(
            row_A=torch.arange(rows, device=x_AD.device),
            x_AD=x_AD,
            energy_A=target.energy(x_AD).detach(),
            gradient_AD=-target.score(x_AD).detach(),
            shrink_A=x_AD.new_ones(rows),
            move_AMD=x_AD.new_zeros(rows, HISTORY, dim),
            change_AMD=x_AD.new_zeros(rows, HISTORY, dim),
            inverse_curvature_AM=x_AD.new_zeros(rows, HISTORY),
        )

    @property
    def force_A(self) -> Tensor:
        return self.gradient_AD.abs().amax(1)

    def only(self, kept_A: Tensor) -> _Descent:
        return _Descent(**{f.name: getattr(self, f.name)[kept_A] for f in fields(_Descent)})


def _descend(target: Target, x_BD: Tensor, *, force_tolerance: float, max_iterations: int, max_step: float) -> Minima:
    state = _Descent.start(target, x_BD)
    ends = Minima(
        x_BD=x_BD.clone(),
        energy_B=state.energy_A.clone(),
        force_B=state.force_A,
        converged_B=torch.zeros_like(state.row_A, dtype=torch.bool),
        iterations_B=torch.zeros_like(state.row_A),
    )
    for iteration in range(max_iterations + 1):
        converged_A = state.force_A <= force_tolerance
        # Not (a <= b), so that NaN ends a descent as well.
        lost_A = ~(torch.isfinite(state.energy_A) & (state.force_A < torch.inf)) | (state.shrink_A == 0)
        leaving_A = converged_A | lost_A if iteration < max_iterations else torch.ones_like(converged_A)
        if bool(leaving_A.any()):
            _keep_ends(ends, state, leaving_A, converged_A, iteration, target)
            state = state.only(~leaving_A)
        if len(state.row_A) == 0:
            break
        _step(target, state, max_step)
    return ends


def _keep_ends(
    ends: Minima, state: _Descent, leaving_A: Tensor, converged_A: Tensor, iteration: int, target: Target
) -> None:
    rows = state.row_A[leaving_A]
    ends.x_BD[rows] = target.space.project(state.x_AD[leaving_A])
    ends.energy_B[rows] = state.energy_A[leaving_A]
    ends.force_B[rows] = state.force_A[leaving_A]
    ends.converged_B[rows] = converged_A[leaving_A]
    ends.iterations_B[rows] = iteration


def _step(target: Target, state: _Descent, max_step: float) -> None:
    """Try one step of every sample: those that fall far enough move, the others will try a shorter step."""
    move_AD = _quasi_newton_move(state, max_step) * state.shrink_A.unsqueeze(1)
    trial_AD = state.x_AD + move_AD
    energy_A, gradient_AD = target.energy(trial_AD).detach(), -target.score(trial_AD).detach()
    slope_A, slope_there_A = _dot(state.gradient_AD, move_AD), _dot(gradient_AD, move_AD)
    falls_A = energy_A <= state.energy_A + SUFFICIENT_DECREASE * slope_A
    # Near a minimum energies agree to rounding: then the slope must shrink (Hager and Zhang 2005, equation 4.1).
    level_A = energy_A <= state.energy_A + ENERGY_ROUNDING * state.energy_A.abs().clamp_min(1.0)
    accepted_A = falls_A | (level_A & (slope_there_A <= (2.0 * SUFFICIENT_DECREASE - 1.0) * slope_A))
    _remember(state, move_AD, gradient_AD - state.gradient_AD, accepted_A)
    state.x_AD = torch.where(accepted_A.unsqueeze(1), trial_AD, state.x_AD)
    state.gradient_AD = torch.where(accepted_A.unsqueeze(1), gradient_AD, state.gradient_AD)
    state.energy_A = torch.where(accepted_A, energy_A, state.energy_A)
    _shorten(state, accepted_A)


def _quasi_newton_move(state: _Descent, max_step: float) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient, by the two loops over the history, newest first."""
    q_AD, weights = state.gradient_AD, []
    for m in range(HISTORY):
        weight_A = state.inverse_curvature_AM[:, m] * _dot(state.move_AMD[:, m], q_AD)
        q_AD = q_AD - weight_A.unsqueeze(1) * state.change_AMD[:, m]
        weights.append(weight_A)
    q_AD = q_AD * _first_scale(state, max_step).unsqueeze(1)
    for m in reversed(range(HISTORY)):
        back_A = state.inverse_curvature_AM[:, m] * _dot(state.change_AMD[:, m], q_AD)
        q_AD = q_AD + (weights[m] - back_A).unsqueeze(1) * state.move_AMD[:, m]
    downhill_A = _dot(q_AD, state.gradient_AD) > 0
    q_AD = torch.where(downhill_A.unsqueeze(1), q_AD, state.gradient_AD)
    return -q_AD * (max_step / q_AD.abs().amax(1)).clamp_max(1.0).unsqueeze(1)


def _first_scale(state: _Descent, max_step: float) -> Tensor:
    """Inverse curvature along the newest step; without history, what makes a first step short."""
    known_A = state.inverse_curvature_AM[:, 0]
    newest_A = 1.0 / (known_A * _dot(state.change_AMD[:, 0], state.change_AMD[:, 0]))
    return torch.where(known_A > 0, newest_A, (FIRST_STEP * max_step / state.force_A).clamp_max(1.0))


def _remember(state: _Descent, move_AD: Tensor, change_AD: Tensor, accepted_A: Tensor) -> None:
    """Put accepted steps of positive curvature in front of the history; the oldest is forgotten."""
    curvature_A = _dot(move_AD, change_AD)
    keeps_A = accepted_A & (curvature_A > 1e-12 * move_AD.norm(dim=1) * change_AD.norm(dim=1))
    inverse_A = torch.where(keeps_A, 1.0 / curvature_A, 0.0)
    rows = keeps_A.view(-1, 1, 1)
    state.move_AMD = torch.where(rows, _pushed(state.move_AMD, move_AD), state.move_AMD)
    state.change_AMD = torch.where(rows, _pushed(state.change_AMD, change_AD), state.change_AMD)
    pushed_AM = _pushed(state.inverse_curvature_AM, inverse_A)
    state.inverse_curvature_AM = torch.where(keeps_A.unsqueeze(1), pushed_AM, state.inverse_curvature_AM)


def _pushed(history: Tensor, newest: Tensor) -> Tensor:
    return torch.cat([newest.unsqueeze(1), history[:, :-1]], dim=1)


def _shorten(state: _Descent, accepted_A: Tensor) -> None:
    """Halve rejected steps. One that is too short forgets the history, or (without one) ends the descent by zero."""
    shrink_A = torch.where(accepted_A, 1.0, 0.5 * state.shrink_A)
    spent_A = shrink_A < SMALLEST_SHRINK
    has_history_A = state.inverse_curvature_AM[:, 0] > 0
    state.inverse_curvature_AM = torch.where(spent_A.unsqueeze(1), 0.0, state.inverse_curvature_AM)
    state.shrink_A = torch.where(spent_A, has_history_A.to(shrink_A.dtype), shrink_A)


def _dot(a_AD: Tensor, b_AD: Tensor) -> Tensor:
    return (a_AD * b_AD).sum(1)
