"""Peak memory of a training step against solver steps: path gradients stay flat, differentiating the solver grows.

Bytes of tensors made during the step, Hutchinson's divergence, float32.
"""

from __future__ import annotations

import torch

from benchmarks.timing import device
from harness.memory import peak_of
from models.contracts import Batch, Objective, whole_batch
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.objectives.flow_matching import FlowMatching
from models.objectives.maximum_likelihood import MaximumLikelihood
from models.objectives.path_gradient import PathGradient
from models.systems import field_for, system_of

SYSTEMS = {"lj13": (16, (2, 4, 8, 15, 60), 15), "lj55": (2, (1, 2, 4, 15), 4)}
"""Batch, solver steps, and the most of them that a likelihood is differentiated through."""


def peak_megabytes(objective: Objective, flow: ContinuousFlow, batch: Batch) -> float:
    prepared = objective.prepare(flow.prior, batch, whole_batch(len(batch.x_BD), 0))
    return peak_of(lambda: objective.gradient(flow, prepared), batch.x_BD.device)[1] / 2**20


def of_system(name: str) -> None:
    size, solver_steps, most_steps = SYSTEMS[name]
    system = system_of(name)
    space = system.target.space
    field = field_for(space, hidden=system.hidden, layers=system.layers).to(device())
    flow = ContinuousFlow(prior=GaussianPrior(space=space), field=field)
    x_BD = space.project(torch.randn(size, space.dim)).to(device())
    batch = Batch(x_BD=x_BD, force_BD=-x_BD)
    matching = peak_megabytes(FlowMatching(), flow, batch)
    print(f"\n{name}, batch {size}: peak memory of a step / MiB (flow matching: {matching:.1f})")
    print(f"{'solver steps':52}{'likelihood':>16}{'path gradient':>16}{'ratio':>10}")
    for steps in solver_steps:
        path = peak_megabytes(PathGradient(kl="forward", solver_steps=steps, divergence="hutchinson"), flow, batch)
        if steps > most_steps:
            print(f"{steps:<52}{'not run':>16}{path:16.1f}")
            continue
        likelihood = MaximumLikelihood(solver_steps=steps, divergence="hutchinson")
        other = peak_megabytes(likelihood, flow, batch)
        print(f"{steps:<52}{other:16.1f}{path:16.1f}{other / path:10.1f}", flush=True)


def main() -> None:
    torch.manual_seed(0)
    for name in SYSTEMS:
        of_system(name)


if __name__ == "__main__":
    main()
