"""How many solver steps a trained flow needs: errors in positions, log densities and path gradients.

Shapes: B samples, D coordinates, S numbers of steps, P parameters.
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
    """Errors of the classical Runge-Kutta method with a fixed step against an adaptive reference, sample by sample.

    Attributes:
        steps: numbers of steps, rising. position_SB: |x_n - x_ref| in R^D, in length units, where the trajectory ends.
        log_q_SB: |log q_n - log q_ref|, in nats. position_floor_B, log_q_floor_B: the same of the reference itself,
            against one at a tenth of its tolerance. reference_evaluations: of the field, by the reference.
    """

    steps: tuple[int, ...]
    position_SB: Tensor
    log_q_SB: Tensor
    position_floor_B: Tensor
    log_q_floor_B: Tensor
    reference_evaluations: int

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Evaluations of the field, for each number of steps."""
        return tuple(EVALUATIONS_A_STEP * n for n in self.steps)


class CountedDivergence:
    """A divergence that counts how often the field was evaluated."""

    def __init__(self, divergence: Divergence = exact_divergence) -> None:
        self.divergence = divergence
        self.evaluations = 0

    def __call__(self, field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        return self.divergence(field, t, x_BD)


def solver_errors(
    flow: ContinuousFlow, x_BD: Tensor, *, direction: Direction, steps: Sequence[int], tolerance: float = 1e-7
) -> SolverErrors:
    """Errors in float64 with the exact divergence, as in figure 2f of Klein et al. 2023.

    Args:
        x_BD: base points (push) or data points (pull). steps: of the fixed-step method.
        tolerance: of the reference, dopri5, relative and absolute.

    Raises:
        ValueError: where `steps` do not rise from 1 on.
    """
    check_steps(steps)
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
    found = [errors(RungeKutta4(steps=n)) for n in steps]
    return SolverErrors(
        steps=tuple(steps),
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
    steps: Sequence[int],
    reference_steps: int,
    divergence: DivergenceMode,
    seed: int,
) -> Tensor:
    """|g_n - g_ref| / |g_ref| (S,) of one batch's forward-KL path gradient, in float64 with one probe for all.

    Args:
        batch: data with forces. steps: of the Runge-Kutta method, each way. reference_steps: those of g_ref.
        divergence: "exact", or "hutchinson" with Rademacher probes from `seed`.

    Raises:
        ValueError: where the batch has no forces, or `steps` do not rise from 1 on.
    """
    check_steps(steps)
    check_divergence_mode(divergence)
    if batch.force_BD is None:
        raise ValueError(
            "a forward path gradient needs forces at the data, got a batch without; write Batch(x_BD=..., force_BD=...)"
        )
    judged, x_BD, force_BD = copy.deepcopy(flow).double(), batch.x_BD.double(), batch.force_BD.double()
    signs_BD = torch.randint(0, 2, x_BD.shape, generator=torch.Generator().manual_seed(seed)).to(x_BD) * 2.0 - 1.0
    found = exact_divergence if divergence == "exact" else hutchinson(judged.space.project(signs_BD))

    def gradient_P(n: int) -> Tensor:
        return forward_kl(judged, x_BD, force_BD, solver=RungeKutta4(steps=n), divergence=found).gradient_P

    reference_P = gradient_P(reference_steps)
    return torch.stack([(gradient_P(n) - reference_P).norm() for n in steps]) / reference_P.norm()


def accuracy_records(
    flow: ContinuousFlow,
    *,
    x0_BD: Tensor,
    x1_BD: Tensor,
    batches: Sequence[Batch],
    steps: Sequence[int],
    tolerance: float,
    gradient_reference_steps: int,
    divergence: DivergenceMode,
) -> dict[str, np.ndarray]:
    """Everything about one flow, as arrays to keep: "<direction>/<quantity>" as in SolverErrors, and "gradient".

    Args:
        x0_BD: base points. x1_BD: data points. batches: data with forces, for path gradients; these are compared at
            the numbers of steps that lie below `gradient_reference_steps`.
    """
    starts: dict[Direction, Tensor] = {"push": x0_BD, "pull": x1_BD}
    records = {}
    for direction, x_BD in starts.items():
        found = solver_errors(flow, x_BD, direction=direction, steps=steps, tolerance=tolerance)
        for name in ("position_SB", "log_q_SB", "position_floor_B", "log_q_floor_B"):
            records[f"{direction}/{name.rpartition('_')[0]}"] = getattr(found, name).numpy()
        records[f"{direction}/reference_evaluations"] = np.array(found.reference_evaluations)
    fewer = [n for n in steps if n < gradient_reference_steps]
    gradients = [
        path_gradient_errors(
            flow, batch, steps=fewer, reference_steps=gradient_reference_steps, divergence=divergence, seed=number
        ).numpy()
        for number, batch in enumerate(batches)
        if fewer
    ]
    return records | {"steps": np.array(steps), "gradient": np.array(gradients), "gradient_steps": np.array(fewer)}


def check_steps(steps: Sequence[int]) -> None:
    """Raise ValueError unless the numbers of steps rise from 1 on."""
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(f"numbers of steps rise from 1 on, got {list(steps)}; write for example 1 2 4 8 15 30")
