"""Plain Monte Carlo within a given number of evaluations: what a learned sampler has to beat at equal cost.

Chains start where samplers do, in the base, and end wherever the evaluations run out; their last states are the
samples. Shape suffixes: C chains, D coordinates.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.contracts import Target, Work
from models.reference.hmc import Chains, HmcSettings, start_chains, transition

LONGEST_TRAJECTORY = 16
LONGEST_DESCENT = 200
FEWEST_TRAJECTORIES = 20
"""Trajectories become shorter where the evaluations would not pay so many of them."""
FEWEST_EVALUATIONS = 4
"""Of a chain: energy and force where it starts, and after one leapfrog step."""


@dataclass(frozen=True, kw_only=True)
class ChainEnds:
    """Where chains ended.

    Attributes:
        x_CD: their last states. work: all that was called. transitions: of each chain.
        acceptance: mean acceptance probability at the step size that was kept (NaN where there was none).
    """

    x_CD: Tensor
    work: Work
    transitions: int
    acceptance: float
    step_size: float
    device_seconds: float


def evaluations(work: Work) -> int:
    """Energies and forces alike."""
    return work.energy_evaluations + work.force_evaluations


def chain_ends(target: Target, *, chains: int, most_evaluations: int, start_scale: float, seed: int) -> ChainEnds:
    """The last states of Hamiltonian Monte Carlo at temperature 1, which calls no more than it may.

    The step size adapts during the first half of the evaluations and is fixed after it. Particles that overlap in the
    base first slide apart, which is counted.

    Args:
        chains: as many independent samples come out. most_evaluations: energies and forces of all chains together.
        start_scale: standard deviation of the base.

    Raises:
        ValueError: where the evaluations do not pay one transition, or chains cannot start.
    """
    each = most_evaluations // chains
    if each < FEWEST_EVALUATIONS:
        raise ValueError(
            f"{chains} chains need {FEWEST_EVALUATIONS * chains} evaluations at least, got {most_evaluations}; "
            "run fewer chains, or allow more"
        )
    began, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    descent = min(LONGEST_DESCENT, each // 10) if target.space.particles is not None else 0
    length = min(LONGEST_TRAJECTORY, max(1, each // (2 * FEWEST_TRAJECTORIES)))
    settings = HmcSettings(chains=chains, start_scale=start_scale, descent_steps=descent, leapfrog_steps=length)
    state, count, accepted = start_chains(target, settings, chains, generator), 0, []
    dearest = chains * (length + length // 2 + 1)
    while evaluations(state.work) + dearest <= most_evaluations:
        adapting = 2 * evaluations(state.work) < most_evaluations
        state, acceptance = transition(target, state, leapfrog_steps=length, temperature=1.0, generator=generator)
        if adapting:
            state = adapted(state, acceptance, settings.target_acceptance, count)
        else:
            accepted.append(acceptance)
        count += 1
    return ChainEnds(
        x_CD=state.x_CD,
        work=state.work,
        transitions=count,
        acceptance=sum(accepted) / len(accepted) if accepted else math.nan,
        step_size=state.step_size,
        device_seconds=time.perf_counter() - began,
    )


def adapted(state: Chains, acceptance: float, wanted: float, count: int) -> Chains:
    """A step of Robbins and Monro on the logarithm of the step size."""
    return replace(state, step_size=state.step_size * math.exp((acceptance - wanted) / (1.0 + 0.1 * count)))
