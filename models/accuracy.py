"""How many solver steps a trained flow needs, on which grid: errors in positions, log densities and path gradients.

Shapes: B samples, D coordinates, S solvers, P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.contracts import Batch, Divergence, Field, FlowSamples
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence, hutchinson
from models.flows.solvers import Dopri5, RungeKutta4, Solver
from models.objectives.path_gradient import DivergenceMode, check_divergence_mode, forward_kl

Direction = Literal["push", "pull"]
"""push: base to data. pull: data to base."""

EVALUATIONS_A_STEP = 4
"""Of the field, in a step of the classical Runge-Kutta method."""
FLOOR_FACTOR = 10
"""The reference is compared with itself at a tolerance this many times smaller: errors below that are not resolved."""


@dataclass(frozen=True, kw_only=True)
class SolverErrors:
    """Errors of fixed grids of the classical Runge-Kutta method against an adaptive reference, sample by sample.

    Attributes:
        solvers: the grids. position_SB: |x_n - x_ref| in R^D, in length units, where the trajectory ends.
        log_q_SB: |log q_n - log q_ref|, in nats. position_floor_B, log_q_floor_B: the same of the reference itself,
            against one at a tenth of its tolerance. reference_evaluations: of the field, by the reference.
    """

    solvers: tuple[RungeKutta4, ...]
    position_SB: Tensor
    log_q_SB: Tensor
    position_floor_B: Tensor
    log_q_floor_B: Tensor
    reference_evaluations: int

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Evaluations of the field, for each solver."""
        return tuple(EVALUATIONS_A_STEP * solver.steps for solver in self.solvers)


class CountedDivergence:
    """A divergence that counts how often the field was evaluated."""

    def __init__(self, divergence: Divergence = exact_divergence) -> None:
        self.divergence = divergence
        self.evaluations = 0

    def __call__(self, field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        return self.divergence(field, t, x_BD)


def solver_errors(
    flow: ContinuousFlow, x_BD: Tensor, *, direction: Direction, solvers: Sequence[RungeKutta4], tolerance: float = 1e-7
) -> SolverErrors:
    """Errors in float64 with the exact divergence, as in figure 2f of Klein et al. 2023.

    Args:
        x_BD: base points (push) or data points (pull).
        tolerance: of the reference, dopri5, relative and absolute.
    """
    judged, start_BD = copy.deepcopy(flow).double(), x_BD.double()

    def end(solver: Solver, divergence: Divergence = exact_divergence) -> tuple[Tensor, Tensor]:
        carry = judged.push if direction == "push" else judged.pull
        samples: FlowSamples = carry(start_BD, solver=solver, divergence=divergence)
        return (samples.x1_BD if direction == "push" else samples.x0_BD), samples.log_q_B

    counted = CountedDivergence()
    reference_BD, log_q_B = end(Dopri5(rtol=tolerance, atol=tolerance), counted)

    def errors(solver: Solver) -> tuple[Tensor, Tensor]:
        found_BD, found_B = end(solver)
        return (found_BD - reference_BD).norm(dim=1), (found_B - log_q_B).abs()

    finer = tolerance / FLOOR_FACTOR
    position_floor_B, log_q_floor_B = errors(Dopri5(rtol=finer, atol=finer))
    found = [errors(solver) for solver in solvers]
    return SolverErrors(
        solvers=tuple(solvers),
        position_SB=torch.stack([position_B for position_B, _ in found]),
        log_q_SB=torch.stack([error_B for _, error_B in found]),
        position_floor_B=position_floor_B,
        log_q_floor_B=log_q_floor_B,
        reference_evaluations=counted.evaluations,
    )


def path_gradient_errors(
    flow: ContinuousFlow,
    batch: Batch,
    *,
    solvers: Sequence[RungeKutta4],
    reference: RungeKutta4,
    divergence: DivergenceMode,
    seed: int,
) -> Tensor:
    """|g - g_ref| / |g_ref| (S,) of one batch's forward-KL path gradient, in float64 with one probe for all.

    Args:
        batch: data with forces. solvers: the grids of g, each way. reference: that of g_ref.
        divergence: "exact", or "hutchinson" with Rademacher probes from `seed`.

    Raises:
        ValueError: where the batch has no forces.
    """
    check_divergence_mode(divergence)
    if batch.force_BD is None:
        raise ValueError(
            "a forward path gradient needs forces at the data, got a batch without; write Batch(x_BD=..., force_BD=...)"
        )
    judged, x_BD, force_BD = copy.deepcopy(flow).double(), batch.x_BD.double(), batch.force_BD.double()
    signs_BD = torch.randint(0, 2, x_BD.shape, generator=torch.Generator().manual_seed(seed)).to(x_BD) * 2.0 - 1.0
    found = exact_divergence if divergence == "exact" else hutchinson(judged.space.project(signs_BD))

    def gradient_P(solver: RungeKutta4) -> Tensor:
        return forward_kl(judged, x_BD, force_BD, solver=solver, divergence=found).gradient_P

    reference_P = gradient_P(reference)
    return torch.stack([(gradient_P(solver) - reference_P).norm() for solver in solvers]) / reference_P.norm()


def accuracy_records(
    flow: ContinuousFlow,
    *,
    x0_BD: Tensor,
    x1_BD: Tensor,
    batches: Sequence[Batch],
    steps: Sequence[int],
    gradings: Sequence[float | None],
    tolerance: float,
    gradient_reference_steps: int,
    divergence: DivergenceMode,
) -> dict[str, np.ndarray]:
    """Everything about one flow, as arrays to keep: "<direction>/<quantity>" as in SolverErrors, and "gradient".

    Their first axis is that of "steps" and "grading" (0 where steps are equal); that of "gradient" the batch.

    Args:
        x0_BD: base points. x1_BD: data points. batches: data with forces, for path gradients; NaN where there are no
            fewer steps than `gradient_reference_steps`. gradings: of the grids; the last also of the reference that
            path gradients are compared with.

    Raises:
        ValueError: where `steps` do not rise from 1 on.
    """
    check_steps(steps)
    solvers = [RungeKutta4(steps=n, grading=grading) for grading in gradings for n in steps]
    starts: dict[Direction, Tensor] = {"push": x0_BD, "pull": x1_BD}
    records = {}
    for direction, x_BD in starts.items():
        found = solver_errors(flow, x_BD, direction=direction, solvers=solvers, tolerance=tolerance)
        for name in ("position_SB", "log_q_SB", "position_floor_B", "log_q_floor_B"):
            records[f"{direction}/{name.rpartition('_')[0]}"] = getattr(found, name).numpy()
        records[f"{direction}/reference_evaluations"] = np.array(found.reference_evaluations)
    reference = RungeKutta4(steps=gradient_reference_steps, grading=gradings[-1])
    fewer = [k for k, solver in enumerate(solvers) if solver.steps < reference.steps]
    gradients = np.full((len(batches), len(solvers)), np.nan)
    for number, batch in enumerate(batches):
        compared = [solvers[k] for k in fewer]
        gradients[number, fewer] = path_gradient_errors(
            flow, batch, solvers=compared, reference=reference, divergence=divergence, seed=number
        ).numpy()
    grids = {
        "steps": np.array([solver.steps for solver in solvers]),
        "grading": np.array([solver.grading or 0.0 for solver in solvers]),
    }
    return records | grids | {"gradient": gradients}


def check_steps(steps: Sequence[int]) -> None:
    """Raise ValueError unless the numbers of steps rise from 1 on."""
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(f"numbers of steps rise from 1 on, got {list(steps)}; write for example 1 2 4 8 15 30")
