"""Peak memory of a training step against solver steps: path gradients stay flat, differentiating the solver grows.

Bytes of tensors made during the step; LJ13, batch 16, Hutchinson's divergence, float32.
"""

from __future__ import annotations

import torch

from benchmarks.timing import device
from harness.memory import peak_of
from models.contracts import Batch, Objective, whole_batch
from models.fields.egnn import EGNN
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.objectives.flow_matching import FlowMatching
from models.objectives.maximum_likelihood import MaximumLikelihood
from models.objectives.path_gradient import PathGradient
from models.systems import system_of

BATCH = 16
STEPS = (2, 4, 8, 15, 60)
MOST_STEPS_OF_LIKELIHOOD = 15


def peak_megabytes(objective: Objective, flow: ContinuousFlow, batch: Batch) -> float:
    prepared = objective.prepare(flow.prior, batch, whole_batch(len(batch.x_BD), 0))
    return peak_of(lambda: objective.gradient(flow, prepared), batch.x_BD.device)[1] / 2**20


def main() -> None:
    torch.manual_seed(0)
    target = system_of("lj13").target
    flow = ContinuousFlow(prior=GaussianPrior(space=target.space), field=EGNN(13, 3).to(device()))
    x_BD = target.space.project(torch.randn(BATCH, target.space.dim)).to(device())
    batch = Batch(x_BD=x_BD, force_BD=-x_BD)
    print(f"\npeak memory of a step / MiB (flow matching: {peak_megabytes(FlowMatching(), flow, batch):.1f})")
    print(f"{'solver steps':52}{'likelihood':>16}{'path gradient':>16}{'ratio':>10}")
    for steps in STEPS:
        path = peak_megabytes(PathGradient(kl="forward", solver_steps=steps, divergence="hutchinson"), flow, batch)
        if steps > MOST_STEPS_OF_LIKELIHOOD:
            print(f"{steps:<52}{'not run':>16}{path:16.1f}")
            continue
        likelihood = MaximumLikelihood(solver_steps=steps, divergence="hutchinson")
        other = peak_megabytes(likelihood, flow, batch)
        print(f"{steps:<52}{other:16.1f}{path:16.1f}{other / path:10.1f}", flush=True)


if __name__ == "__main__":
    main()
