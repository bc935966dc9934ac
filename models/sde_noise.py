"""Rows of a reverse process whose noise is drawn for all workers at once, so that it does not depend on their number.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Random, Work
from models.fields.known_score import asked_of_target
from models.flows.diffusion import ReverseSDE, noise_prior
from models.schedules import Score


def sde_rows(sde: ReverseSDE, score: Score, random: Random, *, like: Tensor) -> tuple[Tensor, Work]:
    """This worker's share (B, D) of `random`'s rows, with the scores (and the final climb's forces) that they took."""
    dim = sde.space.dim
    start_BD = noise_prior(sde.space, sde.schedule).from_noise(random.normal(dim, like=like))
    noise = (random.normal(dim, like=like) for _ in range(sde.steps))
    with torch.no_grad():
        x_BD = sde.carry(score, start_BD, noise)
    climbs = 0 if sde.final is None else sde.final.steps * len(x_BD)
    flops = 0 if sde.final is None else climbs * sde.final.target.energy_flops
    calls, climbed = sde.steps * len(x_BD), Work(force_evaluations=climbs, declared_flops=flops)
    return x_BD, Work(field_evaluations=calls) + asked_of_target(score, calls) + climbed
