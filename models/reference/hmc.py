"""Hamiltonian Monte Carlo with many parallel chains, for any target on its own space.

Momenta live in the space's tangent directions (projected where it is mean-free), all chains share one step size, and
every trajectory has a random number of leapfrog steps so that no period of the target is resonant
(Neal 2011, sections 3.2 and 4.1). Shape suffixes: C chains, D coordinates, S draws in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.contracts import Target, Work
from models.reference.progress import Progress, silent

CACHED_ENTRIES = 2**20
"""Chains times squared coordinates of one block of chains on a CPU."""


@dataclass(frozen=True, kw_only=True)
class HmcSettings:
    """How chains are started, warmed up and moved.

    Args:
        chains: run in parallel, at most.
        leapfrog_steps: mean number L in a trajectory; each draws from L/2 to 3L/2, one number for all chains.
        start_scale: standard deviation of the random start, length units. Starts then slide downhill with bounded
            steps, so that overlapping particles come apart.
        descent_steps: of that slide.
        temperatures: of the burn-in, in order; must end at 1. Hot stages let chains leave the basin they started in.
        burn_in: transitions at each temperature; the step size adapts here and stays fixed afterwards.
        target_acceptance: mean acceptance probability that the adaptation aims at.
        pilot: transitions after the burn-in from which the autocorrelation time, hence the thinning, is measured.
        max_pilot: a pilot that is short against that time is repeated at double length up to here.
        max_thinning: transitions between kept draws, at most.
        device: where the chains run.
    """

    chains: int = 1024
    leapfrog_steps: int = 16
    start_scale: float = 2.0
    descent_steps: int = 200
    temperatures: tuple[float, ...] = (4.0, 2.0, 1.4, 1.0)
    burn_in: int = 60
    target_acceptance: float = 0.8
    pilot: int = 100
    max_pilot: int = 800
    max_thinning: int = 200
    device: str = "cpu"

    def __post_init__(self) -> None:
        counts = (self.chains, self.leapfrog_steps, self.burn_in, self.pilot, self.max_thinning)
        if min(counts) < 1 or self.descent_steps < 0:
            raise ValueError(f"chains, steps and transitions must be at least 1, got {counts}; raise the ones below 1")
        if not self.temperatures or min(self.temperatures) <= 0.0 or self.temperatures[-1] != 1.0:
            raise ValueError(f"temperatures must be positive and end at 1.0, got {self.temperatures}; write (..., 1.0)")
        if not 0.0 < self.target_acceptance < 1.0:
            raise ValueError(f"target_acceptance must lie in (0, 1), got {self.target_acceptance}; 0.8 is usual")


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Where all chains stand. Energies and scores are the target's own, at temperature 1.

    Attributes:
        x_CD: positions. energy_C, score_CD: there.
        step_size: of the leapfrog, shared. work: energy and force evaluations so far, one a chain each.
    """

    x_CD: Tensor
    energy_C: Tensor
    score_CD: Tensor
    step_size: float
    work: Work


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Draws of all chains in order: positions (S, C, D), energies (S, C), and the mean acceptance probability."""

    x_SCD: Tensor
    energy_SC: Tensor
    acceptance: float


def _evaluations(chains: int, *, energies: int, forces: int) -> Work:
    return Work(energy_evaluations=chains * energies, force_evaluations=chains * forces)


def _chains_at_once(x_CD: Tensor) -> int:
    """On a CPU so many that arrays over all their pairs stay in its cache (LJ55: several times faster); else all."""
    return max(1, CACHED_ENTRIES // x_CD.shape[1] ** 2) if x_CD.device.type == "cpu" else max(1, len(x_CD))


def _slide_downhill(target: Target, x_CD: Tensor, steps: int) -> Tensor:
    """Gradient descent whose every step moves no coordinate by more than a bound that shrinks to zero."""
    for k in range(steps):
        score_CD = torch.nan_to_num(target.score(x_CD).detach())
        bound = 0.1 * (1.0 - k / steps)
        largest_C1 = score_CD.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12)
        x_CD = x_CD + score_CD * (bound / largest_C1).clamp_max(0.01)
    return target.space.project(x_CD)


def start_chains(target: Target, settings: HmcSettings, chains: int, generator: torch.Generator) -> Chains:
    """Random normal starts, slid downhill.

    Errors: ValueError where an energy is not finite even then.
    """
    shape = (chains, target.space.dim)
    start_CD = settings.start_scale * torch.randn(shape, generator=generator, device=generator.device)
    blocks = target.space.project(start_CD).split(_chains_at_once(start_CD))
    x_CD = torch.cat([_slide_downhill(target, block_CD, settings.descent_steps) for block_CD in blocks])
    energy_C, score_CD = target.energy(x_CD).detach(), target.score(x_CD).detach()
    bad = int((~torch.isfinite(energy_C)).sum())
    if bad:
        raise ValueError(
            f"chains of {target.name} must start at finite energies, got {bad} of {chains} that do not; "
            "change HmcSettings(start_scale=...) or raise descent_steps"
        )
    work = _evaluations(chains, energies=1, forces=settings.descent_steps + 1)
    return Chains(x_CD=x_CD, energy_C=energy_C, score_CD=score_CD, step_size=0.05, work=work)


def leapfrog(
    target: Target, x_CD: Tensor, p_CD: Tensor, score_CD: Tensor, *, step_size: float, steps: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`steps` leapfrog steps for U / temperature with unit masses; returns positions, momenta, score at the end."""
    kick = step_size / temperature
    p_CD = p_CD + 0.5 * kick * score_CD
    for k in range(steps):
        x_CD = x_CD + step_size * p_CD
        score_CD = target.score(x_CD).detach()
        p_CD = p_CD + (kick if k < steps - 1 else 0.5 * kick) * score_CD
    return x_CD, p_CD, score_CD


def transition(
    target: Target, chains: Chains, *, leapfrog_steps: int, temperature: float, generator: torch.Generator
) -> tuple[Chains, float]:
    """One Metropolis-corrected trajectory of every chain; returns the chains and their mean acceptance probability.

    A trajectory that ends at a non-finite energy is rejected.
    """
    device = chains.x_CD.device
    low, high = (leapfrog_steps + 1) // 2, leapfrog_steps + leapfrog_steps // 2
    steps = int(torch.randint(low, high + 1, (1,), generator=generator, device=device))
    noise_CD = torch.randn(chains.x_CD.shape, generator=generator, device=device, dtype=chains.x_CD.dtype)
    p_CD = target.space.project(noise_CD)
    blocks = zip(*(v_CD.split(_chains_at_once(v_CD)) for v_CD in (chains.x_CD, p_CD, chains.score_CD)), strict=True)
    ends = [
        leapfrog(target, x, p, score, step_size=chains.step_size, steps=steps, temperature=temperature)
        for x, p, score in blocks
    ]
    x_CD, q_CD, score_CD = (torch.cat(parts) for parts in zip(*ends, strict=True))
    x_CD = target.space.project(x_CD)
    energy_C = target.energy(x_CD).detach()
    kinetic_C = 0.5 * (p_CD.square().sum(-1) - q_CD.square().sum(-1))
    log_ratio_C = torch.nan_to_num((chains.energy_C - energy_C) / temperature + kinetic_C, nan=-math.inf)
    probability_C = log_ratio_C.clamp_max(0.0).exp()
    accept_C = torch.rand(len(x_CD), generator=generator, device=device, dtype=x_CD.dtype) < probability_C
    moved = Chains(
        x_CD=torch.where(accept_C[:, None], x_CD, chains.x_CD),
        energy_C=torch.where(accept_C, energy_C, chains.energy_C),
        score_CD=torch.where(accept_C[:, None], score_CD, chains.score_CD),
        step_size=chains.step_size,
        work=chains.work + _evaluations(len(x_CD), energies=1, forces=steps),
    )
    return moved, float(probability_C.mean())


def burn_in(
    target: Target, chains: Chains, settings: HmcSettings, generator: torch.Generator, progress: Progress = silent
) -> Chains:
    """Cool through the temperatures; Robbins-Monro on the log step size, restarted at each temperature."""
    total, done = settings.burn_in * len(settings.temperatures), 0
    for temperature in settings.temperatures:
        for k in range(settings.burn_in):
            chains, acceptance = transition(
                target, chains, leapfrog_steps=settings.leapfrog_steps, temperature=temperature, generator=generator
            )
            gain = 1.0 / (1.0 + 0.1 * k)
            factor = math.exp(gain * (acceptance - settings.target_acceptance))
            chains = replace(chains, step_size=chains.step_size * factor)
            done += 1
            progress("burn-in", done, total)
    return chains


def draw(
    target: Target,
    chains: Chains,
    settings: HmcSettings,
    *,
    draws: int,
    thinning: int,
    generator: torch.Generator,
    stage: str = "drawing",
    progress: Progress = silent,
) -> tuple[Chains, Trace]:
    """Keep every `thinning`-th state of every chain, `draws` times, at a fixed step size and temperature 1."""
    positions, energies, accepted = [], [], 0.0
    for done in range(1, draws * thinning + 1):
        chains, acceptance = transition(
            target, chains, leapfrog_steps=settings.leapfrog_steps, temperature=1.0, generator=generator
        )
        accepted += acceptance
        if done % thinning == 0:
            positions.append(chains.x_CD)
            energies.append(chains.energy_C)
        progress(stage, done, draws * thinning)
    trace = Trace(
        x_SCD=torch.stack(positions), energy_SC=torch.stack(energies), acceptance=accepted / (draws * thinning)
    )
    return chains, trace
