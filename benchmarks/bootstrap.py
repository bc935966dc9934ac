"""What flow annealed bootstrap reaches in some minutes of a core: `python -m benchmarks.bootstrap gmm40 --minutes 3`.

No table of timings and no part of `python -m benchmarks`: one training from energies alone, judged as it goes on.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.annealed import Annealing
from models.contracts import SampledTarget, Target, Work, whole_batch
from models.estimators import LogWeights
from models.flows.coupling import CouplingFlow
from models.flows.prior import GaussianPrior
from models.objectives.flow_annealed_bootstrap import BootstrapState, BufferedBootstrap, adjusted, generate
from models.prioritised import PrioritisedBuffer
from models.reference.samples import reference_samples
from models.targets import GaussianMixture, dw4, gmm40

JUDGED = 10_000
"""Draws of the flow that its weights are judged on."""
JUDGEMENTS = 6
"""In one training, besides the untrained flow."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A target with settings that suit it; `std` is the known width of the target, in length units."""

    target: Target
    std: float
    layers: int
    bins: int
    annealing: Annealing
    batch: int
    steps_per_generation: int
    learning_rate: float
    generation: int = 512
    capacity: int = 16_384
    minimum: int = 4096
    gradient_clip: float = 100.0


CASES = {
    "gmm40": Case(
        target=gmm40(),
        std=23.0,
        layers=8,
        bins=16,
        annealing=Annealing(bridges=2, leapfrog_steps=3, step_size=1.0),
        batch=256,
        steps_per_generation=8,
        learning_rate=1e-3,
    ),
    "dw4": Case(
        target=dw4(),
        std=2.0,
        layers=12,
        bins=8,
        annealing=Annealing(bridges=8, leapfrog_steps=5, step_size=0.17),
        batch=512,
        steps_per_generation=32,
        learning_rate=3e-3,
        minimum=2048,
    ),
}


class Training:
    """One flow, its optimiser and the state of the bootstrap; `step` takes one gradient step."""

    def __init__(self, case: Case, seed: int) -> None:
        torch.manual_seed(seed)
        prior = GaussianPrior(space=case.target.space, std=case.std)
        self.case, self.seed, self.work, self.steps, self.generations = case, seed, Work(), 0, 0
        self.flow = CouplingFlow(prior=prior, layers=case.layers, bins=case.bins)
        self.optimiser = torch.optim.Adam(self.flow.parameters(), lr=case.learning_rate)
        self.like = torch.zeros(0)
        buffer = PrioritisedBuffer.empty(
            self.like, dim=case.target.space.dim, capacity=case.capacity, minimum=case.minimum, seed=seed
        )
        self.state = BootstrapState(step_size_M=case.annealing.first_step_sizes(), buffer=buffer)

    def step(self, share_done: float) -> None:
        """`share_done` of the training: the learning rate falls along a quarter of a cosine to a hundredth."""
        if self.steps % self.case.steps_per_generation == 0:
            self._generate()
        while not self._buffer.ready:
            self._generate()
        batch, objective = self._buffer.sample(self.case.batch, draw=self.steps), BufferedBootstrap()
        random = whole_batch(self.case.batch, self.steps)
        found, log_q_B = objective.gradient_and_density(self.flow, objective.prepare(self.flow.prior, batch, random))
        for parameter, gradient in zip(self.flow.parameters(), found.gradients, strict=True):
            parameter.grad = gradient / found.weight
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.case.gradient_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.case.learning_rate * max(0.01, math.cos(0.5 * math.pi * min(1.0, share_done)))
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        self.state = adjusted(self.state, batch, log_q_B)
        self.work += found.work
        self.steps += 1

    @property
    def _buffer(self) -> PrioritisedBuffer:
        assert self.state.buffer is not None
        return self.state.buffer

    def _generate(self) -> None:
        self.state, samples = generate(
            self.flow,
            self.case.target,
            self.state,
            annealing=self.case.annealing,
            random=whole_batch(self.case.generation, 1_000_000 * self.seed + self.generations),
            like=self.like,
        )
        self.work += samples.work
        self.generations += 1


def judged(flow: CouplingFlow, target: Target, test_BD: Tensor) -> str:
    """NLL on samples of the target; effective sample size, log Z and modes on draws of the flow, in float64."""
    flow = copy.deepcopy(flow).double()
    with torch.no_grad():
        nll_B = -flow.log_prob(test_BD)
    drawn = flow.sample(JUDGED, generator=torch.Generator().manual_seed(5))
    weights = LogWeights.from_samples((-target.energy(drawn.x1_BD) - drawn.log_q_B).numpy())
    error = float(nll_B.std()) / math.sqrt(len(nll_B))
    text = f"NLL {float(nll_B.mean()):7.3f} +- {error:.3f}  ESS {weights.ess_q:.3f}  log Z {weights.log_z:7.3f}"
    text += f"  bound {weights.log_z_bound:8.3f}"
    return text + (f"  modes {modes_found(drawn.x1_BD, target)}" if isinstance(target, GaussianMixture) else "")


def modes_found(x_BD: Tensor, target: GaussianMixture) -> int:
    """Components that hold at least a tenth of their share of the draws, within four standard deviations."""
    nearest = torch.cdist(x_BD, target.means_KD).min(dim=1)
    inside_B = nearest.values < 4.0 * math.sqrt(target.variance)
    counts_K = torch.bincount(nearest.indices[inside_B], minlength=len(target.means_KD))
    return int((counts_K >= 0.1 * len(x_BD) / len(target.means_KD)).sum())


def test_points(target: Target, n: int, cache: Path) -> Tensor:
    """Exact draws, or own HMC samples where there are none."""
    if isinstance(target, SampledTarget):
        return target.sample(n, torch.Generator().manual_seed(99)).double()
    made = reference_samples(target, n_train=2, n_validation=10, n_test=n, cache_dir=cache)
    return target.space.project(made.test_BD.double())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", choices=CASES)
    parser.add_argument("--minutes", type=float, default=3.0, help="process time of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-points", type=int, default=4000)
    parser.add_argument("--cache", type=Path, default=Path("results/reference"), help="of HMC samples")
    given = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[given.target]
    test_BD = test_points(case.target, given.test_points, given.cache)
    training, spent, judgements = Training(case, given.seed), 0.0, 0
    print(f"{given.target}, seed {given.seed}; NLL on {len(test_BD)} samples of the target, the rest on {JUDGED} draws")
    while True:
        if spent >= judgements * 60.0 * given.minutes / JUDGEMENTS:
            work = training.work
            print(
                f"{spent:6.0f} s {training.steps:6d} steps  {judged(training.flow, case.target, test_BD)}  "
                f"forces {work.force_evaluations:,}  energies {work.energy_evaluations:,}",
                flush=True,
            )
            judgements += 1
        if spent >= 60.0 * given.minutes:
            return
        start = time.process_time()
        training.step(spent / (60.0 * given.minutes))
        spent += time.process_time() - start


if __name__ == "__main__":
    main()
