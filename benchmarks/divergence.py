"""The exact divergence of an EGNN: structured form against the ways to do it by brute force."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import edge_list
from benchmarks.timing import device, header, row
from models.contracts import Divergence, Field, Space
from models.fields.egnn import EGNN
from models.fields.egnn_trace import in_structured_form
from models.fields.sweeps import by_sweeps
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.flows.solvers import RungeKutta4

SYSTEMS = {"LJ13": (13, 3, 32, 3, 64), "DW4": (4, 2, 32, 3, 64)}
"""Particles, dimensions, hidden size, layers, batch."""
STEPS = 2


def likelihood(flow: ContinuousFlow, x_BD: Tensor, divergence: Divergence) -> Tensor:
    """Log-likelihood through a few solver steps."""
    return flow.log_prob(x_BD, solver=RungeKutta4(steps=STEPS), divergence=divergence)


def structured(field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(field, EGNN)
    return in_structured_form(field, t, x_BD)


def rows_without_graph(field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(field, EGNN)
    return field(t, x_BD), edge_list.trace_by_rows(field, t, x_BD, create_graph=False)


def rows_with_graph(field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(field, EGNN)
    return field(t, x_BD), edge_list.trace_by_rows(field, t, x_BD, create_graph=True)


def sweeps(field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(field, EGNN)
    return by_sweeps(field, t, x_BD)


def main() -> None:
    torch.manual_seed(0)
    for name, (particles, d, hidden, layers, batch) in SYSTEMS.items():
        space = Space(dim=particles * d, particles=particles)
        field = EGNN(particles, d, hidden, layers).to(device())
        flow = ContinuousFlow(prior=GaussianPrior(space=space), field=field)
        x_BD = space.project(torch.randn(batch, space.dim)).to(device())
        ours = lambda flow=flow, x_BD=x_BD: likelihood(flow, x_BD, structured)  # noqa: E731
        header(f"{name}: exact log-likelihood, {STEPS} Runge-Kutta steps, batch {batch}, float32", fast="structured")
        for label, way in (
            ("dense network, one sweep a coordinate", sweeps),
            ("edge list, one sweep a coordinate", rows_without_graph),
            ("edge list, sweeps with create_graph=True", rows_with_graph),
        ):
            torch.testing.assert_close(likelihood(flow, x_BD, way), ours(), rtol=1e-3, atol=1e-3)
            row(label, lambda way=way, f=flow, x=x_BD: likelihood(f, x, way), ours, rounds=3)  # type: ignore[misc]
        t = torch.tensor(0.3, device=device())
        evaluation = lambda f=field, t=t, x=x_BD: f(t, x)  # noqa: E731
        with torch.no_grad():
            header(f"{name}: one evaluation", slow="structured", fast="velocity")
            row("velocity and exact divergence", lambda f=field, t=t, x=x_BD: structured(f, t, x), evaluation)  # type: ignore[misc]
            header(f"{name}: one evaluation", slow="edge list", fast="dense")
            row("velocity", lambda f=field, t=t, x=x_BD: edge_list.velocity(f, t, x), evaluation)  # type: ignore[misc]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
