"""What path gradients cost beside flow matching, and what the hand-written sweeps of the plane's field save."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.timing import Call, device, header, row
from models.contracts import Batch, Objective, whole_batch
from models.couplings import Coupling, Independent, OptimalTransport
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.divergence import exact_divergence
from models.flows.prior import GaussianPrior
from models.objectives.flow_matching import FlowMatching
from models.objectives.maximum_likelihood import MaximumLikelihood
from models.objectives.path_gradient import DivergenceMode, PathGradient, pullback
from models.systems import field_for, system_of

SYSTEMS: dict[str, tuple[int, Coupling, tuple[int, ...]]] = {
    "gmm4": (250, Independent(), (15,)),
    "dw4": (64, OptimalTransport(), (15, 6)),
    "lj13": (64, OptimalTransport(), (15, 6)),
}
"""Batch, coupling of flow matching, solver steps of the path gradient."""
MODES: tuple[DivergenceMode, ...] = ("hutchinson", "exact")


def step(objective: Objective, flow: ContinuousFlow, batch: Batch) -> Call:
    """A whole step but for the optimiser: what is prepared, and the gradient."""
    random = lambda: whole_batch(len(batch.x_BD), 0)  # noqa: E731
    return lambda: objective.gradient(flow, objective.prepare(flow.prior, batch, random()))


def flow_and_batch(name: str, batch: int) -> tuple[ContinuousFlow, Batch]:
    """An untrained flow of a system, and normal points with a force each."""
    system = system_of(name)
    space = system.target.space
    field = field_for(space, hidden=system.hidden, layers=system.layers).to(device())
    x_BD = space.project(torch.randn(batch, space.dim)).to(device())
    return ContinuousFlow(prior=GaussianPrior(space=space), field=field), Batch(x_BD=x_BD, force_BD=-x_BD)


def against_flow_matching() -> None:
    for name, (size, coupling, solver_steps) in SYSTEMS.items():
        header(f"{name}, batch {size}, float32", slow="path gradient", fast="flow matching")
        flow, batch = flow_and_batch(name, size)
        matching = step(FlowMatching(coupling=coupling), flow, batch)
        for steps in solver_steps:
            for mode in MODES:
                path = step(PathGradient(kl="forward", divergence=mode, solver_steps=steps), flow, batch)
                row(f"a step, {mode}, {steps} solver steps", path, matching, rounds=3, repeats=10)


def through_the_solver() -> None:
    """What it would cost to differentiate through the solver: the likelihood's gradient, which keeps every stage."""
    size, _, solver_steps = SYSTEMS["lj13"]
    flow, batch = flow_and_batch("lj13", size)
    header(f"lj13, batch {size}, Hutchinson", slow="likelihood", fast="path gradient")
    for steps in solver_steps[1:]:
        likelihood = step(MaximumLikelihood(divergence="hutchinson", solver_steps=steps), flow, batch)
        path = step(PathGradient(kl="forward", divergence="hutchinson", solver_steps=steps), flow, batch)
        row(f"a step, {steps} solver steps", likelihood, path, rounds=3)


def divergence_by_rows(field: MLPField, t: Tensor, x_BD: Tensor) -> Tensor:
    """The plain way to the trace: one vector-Jacobian product a coordinate, differentiable again."""
    v_BD = field(t, x_BD)
    rows = [torch.autograd.grad(v_BD[:, k].sum(), x_BD, create_graph=True)[0][:, k] for k in range(x_BD.shape[1])]
    return torch.stack(rows).sum(dim=0)


def stage_by_autograd(field: MLPField, x_BD: Tensor, *, by_rows: bool) -> Call:
    """The gradient of the divergence by one reverse sweep."""
    t = torch.tensor(0.3, device=x_BD.device)

    def stage() -> None:
        y_BD = x_BD.clone().requires_grad_()
        divergence_B = divergence_by_rows(field, t, y_BD) if by_rows else field.with_divergence(t, y_BD)[1]
        torch.autograd.grad(divergence_B.sum(), y_BD)

    return stage


def in_the_plane() -> None:
    flow, batch = flow_and_batch("gmm4", 250)
    field, x_BD = flow.field, batch.x_BD
    assert isinstance(field, MLPField)
    header("one stage of the path gradient's first pass, gmm4, batch 250", slow="before", fast="after")
    by_rows, by_layers = (stage_by_autograd(field, x_BD, by_rows=rows) for rows in (True, False))
    row("grad div v: row by row, tangents by hand", by_rows, by_layers, rounds=30)
    t = torch.tensor(0.3, device=x_BD.device)
    by_hand = lambda: pullback(field, exact_divergence, t, x_BD, x_BD)  # noqa: E731
    row("grad div v: tangents by hand, both sweeps by hand", by_layers, by_hand, rounds=30)


def main() -> None:
    torch.manual_seed(0)
    against_flow_matching()
    through_the_solver()
    in_the_plane()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
