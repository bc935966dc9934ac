"""Two ODE solvers as frozen values: classical Runge-Kutta on a fixed grid, and adaptive Dormand-Prince, by torchdyn.

A state is one tensor of any shape; a right-hand side takes (t: scalar tensor, state) and returns d state / dt.
Both keep no trajectory, so memory does not grow with the number of steps unless autograd records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torchdyn.numerics as numerics
from torch import Tensor

RightHandSide = Callable[[Tensor, Tensor], Tensor]

CLASSICAL_TABLEAU = (
    (0.5, 0.5, 1.0),
    (0.5, (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0),
    None,
)
"""Stage times, stage weights, solution weights, error weights (none) of the classical method (Kutta 1901), in the
layout that torchdyn's stepper reads: the first row of stage weights is a bare factor."""

MAX_EVALUATIONS = 20_000
"""After so many evaluations an adaptive integration counts as diverged."""


class Solver(Protocol):
    """Integrates a state from one time to another, in either direction."""

    def integrate(self, rhs: RightHandSide, state: Tensor, *, start: float, end: float) -> Tensor: ...


def classical_stepper() -> numerics.RungeKutta4:
    """torchdyn's Runge-Kutta stepper with the classical tableau.

    torchdyn 1.0.6 ships stage times (0, 1/2, 1/2, 1) but reads them from its second stage on, which evaluates the
    stages at t, t, t + h/2, t + h/2: of first order only where the field depends on time. Plain numbers in the
    tableau also follow the state's dtype by themselves.
    """
    stepper = numerics.RungeKutta4()
    stepper.tableau = CLASSICAL_TABLEAU
    return stepper


def adaptive_stepper(dtype: torch.dtype) -> numerics.DormandPrince45:
    """torchdyn's Dormand-Prince stepper with its step-size factors in the state's dtype.

    torchdyn 1.0.6 keeps them in float32, which turns every step size, and stage weights times step size, into float32:
    a floor of 1e-8 under any tolerance in float64.
    """
    stepper = numerics.DormandPrince45(dtype=dtype)
    for name in ("safety", "min_factor", "max_factor"):
        setattr(stepper, name, getattr(stepper, name).to(dtype))
    return stepper


@dataclass(frozen=True, kw_only=True)
class RungeKutta4:
    """Classical fourth-order Runge-Kutta on a grid fixed beforehand; differentiable through the steps.

    Args:
        steps: number of steps from t = 0 to 1 (a shorter span gets its share, at least one).
        grading: None for equal steps. A number d > 0 for steps that shrink towards the data, in proportion to
            1 - t + d: the rate at which a flow contracts onto data of width d grows like 1 / (1 - t) up to 1 / d.
    """

    steps: int
    grading: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"RungeKutta4 needs at least one step, got steps={self.steps}; write steps=15 or so")
        if self.grading is not None and not (math.isfinite(self.grading) and self.grading > 0.0):
            raise ValueError(
                f"a grid is graded by a positive width, got grading={self.grading}; write 0.1 or so, or None for equal "
                "steps"
            )

    def integrate(self, rhs: RightHandSide, state: Tensor, *, start: float, end: float) -> Tensor:
        """State at `end`, from `state` at `start` (times in [0, 1] where graded), after 4 evaluations of rhs a step."""
        stepper = classical_stepper()
        times = self.times(start=start, end=end)
        for i in range(len(times) - 1):
            t = torch.as_tensor(times[i], dtype=state.dtype, device=state.device)
            _, state, _ = stepper.step(rhs, state, t, times[i + 1] - times[i])
        return state

    def times(self, *, start: float, end: float) -> list[float]:
        """Where the steps begin and end; the same from data to base as from base to data."""
        if self.grading is None:
            count = max(1, round(self.steps * abs(end - start)))
            return [start + i * (end - start) / count for i in range(count)] + [end]
        first, last = self._share(start), self._share(end)
        count = max(1, round(self.steps * abs(last - first)))
        between = (self._time(first + i * (last - first) / count) for i in range(1, count))
        return [start, *between, end]

    def _share(self, t: float) -> float:
        """The share of the steps that lie before time t."""
        assert self.grading is not None
        return math.log((1.0 + self.grading) / (1.0 - t + self.grading)) / math.log1p(1.0 / self.grading)

    def _time(self, share: float) -> float:
        assert self.grading is not None
        return (1.0 + self.grading) * (1.0 - (self.grading / (1.0 + self.grading)) ** share)


@dataclass(frozen=True, kw_only=True)
class Dopri5:
    """Adaptive Dormand-Prince 5(4); one step size for the whole state, chosen by its root-mean-square error.

    Args:
        rtol, atol: relative and absolute tolerance per step.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0):
            raise ValueError(f"tolerances must be positive, got rtol={self.rtol}, atol={self.atol}; write 1e-5 or so")

    def integrate(self, rhs: RightHandSide, state: Tensor, *, start: float, end: float) -> Tensor:
        """State at `end`; all NaN where the integration diverged, as a fixed-step solver would give."""
        clock = _Clock(rhs, start=start, end=end)
        span = torch.tensor([0.0, 1.0], dtype=state.dtype, device=state.device)
        try:
            _, states = numerics.odeint(
                clock, state, span, solver=adaptive_stepper(state.dtype), atol=self.atol, rtol=self.rtol
            )
        except _DivergedError:
            return torch.full_like(state, float("nan"))
        return states[-1]


class _DivergedError(Exception):
    """Leaves torchdyn's step loop, which would otherwise shrink its step for ever on a non-finite error."""


class _Clock:
    """The right-hand side on the clock s in [0, 1], t = start + s (end - start).

    torchdyn would reverse time itself, but then takes its first step size from the field at negative times, and meets
    an arbitrary end time only up to rounding; an end at s = 1 is met exactly.
    """

    def __init__(self, rhs: RightHandSide, *, start: float, end: float) -> None:
        self.rhs, self.start, self.span = rhs, start, end - start
        self.evaluations = 0

    def __call__(self, s: Tensor, state: Tensor) -> Tensor:
        rate = self.span * self.rhs((self.start + self.span * s).reshape(()), state)
        self.evaluations += 1
        if self.evaluations > MAX_EVALUATIONS or not bool(torch.isfinite(rate).all()):
            raise _DivergedError
        return rate
