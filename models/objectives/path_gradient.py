"""Path gradients of the forward or reverse KL divergence through a continuous flow, in constant memory.

Shapes: B batch, D coordinates, P parameters (flattened, in the order of `flow.parameters()`).

Along a trajectory any density carried by the flow has a score s with ds/dt = -J^T s - grad div v, and the difference
a of two such scores obeys da/dt = -J^T a. Pass one carries a known score to the other end of the flow, where it is
compared with the score of that end's distribution; pass two carries the difference back and collects
G = int a^T dv/dtheta dt (Vaitl and Klein 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.contracts import Batch, Divergence, Field, GradientSum, Prepared, Prior, Random, Target, Work
from models.fields.known_score import asked_of_target
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence, hutchinson
from models.flows.solvers import RungeKutta4

KL = Literal["forward", "reverse"]
DivergenceMode = Literal["exact", "hutchinson"]


@runtime_checkable
class KnowsPullback(Protocol):
    """A field with its own first-pass stage, without autograd."""

    def with_pullback(self, t: Tensor, x_BD: Tensor, s_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Pass one: positions and a score carried along the flow. `logdet_B` is the integral of div v from start to end."""

    x_BD: Tensor
    score_BD: Tensor
    logdet_B: Tensor
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Pass two: positions and adjoint at the end, and the parameter integral summed over the batch."""

    x_BD: Tensor
    adjoint_BD: Tensor
    integral_P: Tensor
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class PathGradientRecord:
    """Everything one path gradient went through; `gradient_P` is the sum over the batch of the KL's gradient.

    There and back: `carried` is pass one (to x0 for the forward KL, to x1 for the reverse), `difference_BD` the
    difference of scores there, `collected` pass two.
    """

    carried: Carried
    difference_BD: Tensor
    collected: Collected
    logdet_B: Tensor
    log_q_B: Tensor
    gradient_P: Tensor


def carry_score(
    field: Field,
    x_BD: Tensor,
    score_BD: Tensor,
    *,
    solver: RungeKutta4,
    divergence: Divergence,
    start: float,
    end: float,
) -> Carried:
    """Pass one: integrate (x, log-determinant, score) from `start` to `end`, keeping no graph between stages."""
    dim, calls = x_BD.shape[1], 0

    def rates(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        v_BD, divergence_B, pulled_BD = pullback(field, divergence, t, state[:, :dim], state[:, dim + 1 :])
        return torch.cat([v_BD, divergence_B.unsqueeze(1), -pulled_BD], dim=1)

    with torch.no_grad():
        state = torch.cat([x_BD, x_BD.new_zeros(len(x_BD), 1), score_BD], dim=1)
        state = solver.integrate(rates, state, start=start, end=end)
    return Carried(x_BD=state[:, :dim], logdet_B=state[:, dim], score_BD=state[:, dim + 1 :], evaluations=calls)


def pullback(
    field: Field, divergence: Divergence, t: Tensor, x_BD: Tensor, s_BD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity (B, D), its divergence (B,) and J^T s + grad div v (B, D), all without a graph.

    A field that knows this by hand says so with a method `with_pullback`; autograd serves every other.
    """
    if divergence is exact_divergence and isinstance(field, KnowsPullback):
        return field.with_pullback(t, x_BD, s_BD)
    with torch.enable_grad():
        y_BD = x_BD.detach().requires_grad_()
        v_BD, divergence_B = divergence(field, t, y_BD)
        # One reverse sweep serves both terms, since s counts as constant here.
        (pulled_BD,) = torch.autograd.grad((v_BD, divergence_B), y_BD, (s_BD, torch.ones_like(divergence_B)))
    return v_BD.detach(), divergence_B.detach(), pulled_BD


def collect_gradient(
    field: Field,
    parameters: list[torch.nn.Parameter],
    x_BD: Tensor,
    adjoint_BD: Tensor,
    *,
    solver: RungeKutta4,
    start: float,
    end: float,
) -> Collected:
    """Pass two: integrate (x, adjoint, parameter integral) from `start` to `end`, one forward and one sweep a stage."""
    size, calls = x_BD.numel(), 0
    zeros = [torch.zeros_like(p).flatten() for p in parameters]

    def rates(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            y_BD = state[:size].view_as(x_BD).detach().requires_grad_()
            v_BD = field(t, y_BD)
            adjoint = state[size : 2 * size].view_as(x_BD)
            pulled_BD, *pieces = torch.autograd.grad(v_BD, (y_BD, *parameters), adjoint, allow_unused=True)
        # Parameters that never reach the velocity (an EGNN has some) get no piece.
        flat = [zero if piece is None else piece.flatten() for piece, zero in zip(pieces, zeros, strict=True)]
        return torch.cat([v_BD.detach().flatten(), pulled_BD.neg().flatten(), *flat])

    with torch.no_grad():
        state = torch.cat([x_BD.flatten(), adjoint_BD.flatten(), *zeros])
        state = solver.integrate(rates, state, start=start, end=end)
    return Collected(
        x_BD=state[:size].view_as(x_BD),
        adjoint_BD=state[size : 2 * size].view_as(x_BD),
        integral_P=state[2 * size :],
        evaluations=calls,
    )


def forward_kl(
    flow: ContinuousFlow, x1_BD: Tensor, force_BD: Tensor, *, solver: RungeKutta4, divergence: Divergence
) -> PathGradientRecord:
    """Path gradient of KL(p || q) from data x1 ~ p and the forces there (Vaitl and Klein 2025)."""
    carried = carry_score(flow.field, x1_BD, force_BD, solver=solver, divergence=divergence, start=1.0, end=0.0)
    difference_BD = carried.score_BD - flow.prior.score(carried.x_BD)
    parameters = _trainable(flow)
    collected = collect_gradient(flow.field, parameters, carried.x_BD, difference_BD, solver=solver, start=0.0, end=1.0)
    logdet_B = -carried.logdet_B
    return PathGradientRecord(
        carried=carried,
        difference_BD=difference_BD,
        collected=collected,
        logdet_B=logdet_B,
        log_q_B=flow.prior.log_prob(carried.x_BD) - logdet_B,
        # x0 = x1 - int v dt: the path depends on the parameters with a minus sign.
        gradient_P=-collected.integral_P,
    )


def reverse_kl(
    flow: ContinuousFlow,
    x0_BD: Tensor,
    force: Callable[[Tensor], Tensor],
    *,
    solver: RungeKutta4,
    divergence: Divergence,
) -> PathGradientRecord:
    """Path gradient of KL(q || p) from base points x0 and the target's force as a function."""
    score_BD = flow.prior.score(x0_BD)
    carried = carry_score(flow.field, x0_BD, score_BD, solver=solver, divergence=divergence, start=0.0, end=1.0)
    difference_BD = carried.score_BD - force(carried.x_BD)
    parameters = _trainable(flow)
    collected = collect_gradient(flow.field, parameters, carried.x_BD, difference_BD, solver=solver, start=1.0, end=0.0)
    return PathGradientRecord(
        carried=carried,
        difference_BD=difference_BD,
        collected=collected,
        logdet_B=carried.logdet_B,
        log_q_B=flow.prior.log_prob(x0_BD) - carried.logdet_B,
        # Integrated from 1 to 0, so the integral over [0, 1] is its negative.
        gradient_P=-collected.integral_P,
    )


@dataclass(frozen=True, kw_only=True)
class PathGradient:
    """The path gradient as an Objective.

    Args:
        kl: "forward" (data and forces from the target) or "reverse" (energy only, draws from the base).
        target: needed by the reverse KL, and by the forward KL where batches carry no forces.
        solver_steps: classical Runge-Kutta steps each way; 15 is Vaitl and Klein's choice. The gradient differs
            from autograd through the same solver by the solver's own error, fourth order in the step.
        solver_grading: None for equal steps, or the width that the grid is graded by (see RungeKutta4).
        divergence: "exact", or "hutchinson" with Rademacher probes: unbiased and cheaper in high dimension, but its
            variance does not vanish at q = p.

    The monitored loss is -log q (forward) or log q + energy (reverse), in nats.
    The forward KL assumes x ~ p exactly: weight or resample other data first.
    """

    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    kl: KL
    target: Target | None = None
    solver_steps: int = 15
    solver_grading: float | None = None
    divergence: DivergenceMode = "exact"

    def __post_init__(self) -> None:
        if self.kl not in ("forward", "reverse"):
            raise ValueError(f"kl is 'forward' or 'reverse', got {self.kl!r}; write kl='forward' where there is data")
        if self.kl == "reverse" and self.target is None:
            raise ValueError("the reverse KL evaluates the target's force, got target=None; write target=...")
        check_divergence_mode(self.divergence)
        _ = self.solver  # a wrong grid is told now, not at the first batch

    @property
    def solver(self) -> RungeKutta4:
        return RungeKutta4(steps=self.solver_steps, grading=self.solver_grading)

    @property
    def needs_force(self) -> bool:
        return self.kl == "forward"

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """Forward: data x and their forces. Reverse: base points x0. A probe for each row where one is needed."""
        if self.kl == "forward":
            force_BD, work = self._force(batch)
            start = {"x": batch.x_BD, "force": force_BD}
        else:
            work = Work()
            start = {"x0": prior.from_noise(random.normal(prior.space.dim, like=batch.x_BD))}
        return Prepared(tensors={**start, **draw_probe(self.divergence, prior, batch.x_BD, random)}, work=work)

    def gradient(self, flow: ContinuousFlow, prepared: Prepared) -> GradientSum:
        """Sum over the prepared rows of the path gradient, by `flow.parameters()`."""
        return self._forward(flow, prepared) if self.kl == "forward" else self._reverse(flow, prepared)

    def _forward(self, flow: ContinuousFlow, prepared: Prepared) -> GradientSum:
        divergence = divergence_of(prepared)
        record = forward_kl(flow, prepared["x"], prepared["force"], solver=self.solver, divergence=divergence)
        return _gradient_sum(flow, record, loss_B=-record.log_q_B, work=prepared.work)

    def _reverse(self, flow: ContinuousFlow, prepared: Prepared) -> GradientSum:
        target, divergence = self._known_target(), divergence_of(prepared)
        record = reverse_kl(flow, prepared["x0"], target.score, solver=self.solver, divergence=divergence)
        n = len(prepared)
        work = Work(energy_evaluations=n, force_evaluations=n, declared_flops=2 * n * target.energy_flops)
        with torch.no_grad():
            loss_B = record.log_q_B + target.energy(record.carried.x_BD)
        return _gradient_sum(flow, record, loss_B=loss_B, work=prepared.work + work)

    def _force(self, batch: Batch) -> tuple[Tensor, Work]:
        if batch.force_BD is not None:
            return batch.force_BD, Work()
        target, n = self._known_target(), len(batch.x_BD)
        return target.score(batch.x_BD), Work(force_evaluations=n, declared_flops=n * target.energy_flops)

    def _known_target(self) -> Target:
        if self.target is None:
            raise ValueError(
                "a forward path gradient needs forces at the data, got a batch without forces and target=None; "
                "write Batch(x_BD=..., force_BD=...) or PathGradient(target=...)"
            )
        return self.target


def check_divergence_mode(mode: str) -> None:
    """Raise ValueError unless the mode is one that `divergence_of` knows."""
    if mode not in ("exact", "hutchinson"):
        raise ValueError(
            f"divergence is 'exact' or 'hutchinson', got {mode!r}; write divergence='exact' in low dimension"
        )


def draw_probe(mode: DivergenceMode, prior: Prior, x_BD: Tensor, random: Random) -> dict[str, Tensor]:
    """Nothing where the divergence is exact, else fresh Rademacher probes (projected where the space is mean-free)."""
    if mode == "exact":
        return {}
    return {"probe": prior.space.project(random.rademacher(prior.space.dim, like=x_BD))}


def divergence_of(prepared: Prepared) -> Divergence:
    """Hutchinson's estimate where probes were drawn, else the exact divergence."""
    return hutchinson(prepared["probe"]) if "probe" in prepared else exact_divergence


def _trainable(flow: ContinuousFlow) -> list[torch.nn.Parameter]:
    return [p for p in flow.parameters() if p.requires_grad]


def _gradient_sum(flow: ContinuousFlow, record: PathGradientRecord, *, loss_B: Tensor, work: Work) -> GradientSum:
    parameters, n = _trainable(flow), len(loss_B)
    pieces = record.gradient_P.split([p.numel() for p in parameters])
    evaluations = n * (record.carried.evaluations + record.collected.evaluations)
    return GradientSum(
        gradients=tuple(piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)),
        loss_sum=loss_B.sum(),
        weight=float(n),
        work=work + asked_of_target(flow.field, evaluations) + Work(samples=n, field_evaluations=evaluations),
    )
