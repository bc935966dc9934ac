"""Rows of separate sets drawn from a target: exact draws, or HMC chains thinned until rows are nearly independent.

Shape suffixes: S draws in order, C chains, B rows, D coordinates.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.contracts import SampledTarget, Target, Work
from models.reference import hmc
from models.reference.diagnostics import autocorrelation_time, effective_n, split_r_hat, virial
from models.reference.progress import Progress

PILOT_TIMES, THINNING_TIMES = 10.0, 2.0
"""Length of the pilot, and distance of kept draws, in autocorrelation times of the slowest observable."""
LARGEST_R_HAT = 1.05
FEWEST_DRAWS = 8
"""Kept draws of one chain, at least: with fewer, halves of chains cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Rows of each set, in the order of the sizes asked for, with what is to be said about them."""

    sets: tuple[Tensor, ...]
    diagnostics: dict[str, float]
    source: str
    work: Work
    device_seconds: float


def draw_exactly(target: SampledTarget, sizes: tuple[int, ...], seed: int) -> Drawn:
    """Separately seeded exact draws for each set."""
    started = time.perf_counter()
    generators = [torch.Generator().manual_seed(len(sizes) * seed + k) for k in range(len(sizes))]
    sets = tuple(target.sample(n, generator).float() for n, generator in zip(sizes, generators, strict=True))
    source = f"exact draws of {target.name}, seed {seed}"
    seconds = time.perf_counter() - started
    return Drawn(sets=sets, diagnostics={}, source=source, work=Work(), device_seconds=seconds)


def _observables(target: Target, trace: hmc.Trace) -> dict[str, Tensor]:
    """Traces (S, C) that mixing is judged by: energy, squared norm, and each coordinate where no symmetry hides it."""
    traces = {"energy": trace.energy_SC, "squared_norm": trace.x_SCD.square().sum(-1)}
    if target.space.particles is None:
        traces |= {f"x{k}": trace.x_SCD[..., k] for k in range(target.space.dim)}
    return traces


def share_chains(sizes: tuple[int, ...], chains: int) -> tuple[int, tuple[int, ...]]:
    """(draws a chain, chains of each set): about `chains` in all, every set with whole chains of its own."""
    draws = max(FEWEST_DRAWS, -(-sum(sizes) // chains))
    return draws, tuple(-(-n // draws) for n in sizes)


def split_rows(
    x_SCD: Tensor, shares: tuple[int, ...], sizes: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Give each set its chains, shuffle its rows, cut to size."""
    sets = []
    for block_SCD, n in zip(x_SCD.split(shares, dim=1), sizes, strict=True):
        rows_BD = block_SCD.flatten(0, 1)
        order_B = torch.randperm(len(rows_BD), generator=generator, device=generator.device)[:n]
        sets.append(rows_BD[order_B].cpu())
    return tuple(sets)


def _pilot(
    target: Target, chains: hmc.Chains, settings: hmc.HmcSettings, generator: torch.Generator, progress: Progress
) -> tuple[hmc.Chains, dict[str, float]]:
    """Autocorrelation time of each observable, in transitions.

    A pilot that turns out shorter than ten of them is repeated at twice the length, up to the longest allowed; pilots
    are thrown away, so slow targets get a longer burn-in by themselves.
    """
    length = settings.pilot
    while True:
        chains, trace = hmc.draw(
            target, chains, settings, draws=length, thinning=1, generator=generator, stage="pilot", progress=progress
        )
        times = {name: autocorrelation_time(values) for name, values in _observables(target, trace).items()}
        if length >= PILOT_TIMES * max(times.values()) or 2 * length > settings.max_pilot:
            return chains, times
        length *= 2


def draw_by_hmc(
    target: Target, sizes: tuple[int, ...], seed: int, settings: hmc.HmcSettings, progress: Progress
) -> Drawn:
    """Start, burn in, measure the autocorrelation, then draw thinned."""
    started = time.perf_counter()
    generator = torch.Generator(device=settings.device).manual_seed(seed)
    draws, shares = share_chains(sizes, settings.chains)
    chains = hmc.start_chains(target, settings, sum(shares), generator)
    chains = hmc.burn_in(target, chains, settings, generator, progress)
    chains, times = _pilot(target, chains, settings, generator, progress)
    thinning = min(settings.max_thinning, max(1, round(THINNING_TIMES * max(times.values()))))
    chains, kept = hmc.draw(
        target, chains, settings, draws=draws, thinning=thinning, generator=generator, progress=progress
    )
    device_seconds = time.perf_counter() - started
    diagnostics = {f"transitions_per_independent_{name}": tau for name, tau in times.items()}
    diagnostics |= describe(target, kept.x_SCD.flatten(0, 1), _observables(target, kept))
    diagnostics |= {"acceptance": kept.acceptance, "thinning": float(thinning), "step_size": chains.step_size}
    advice = "raise burn_in, max_pilot or max_thinning in HmcSettings, or add hotter temperatures"
    warn_unless_mixed(target, diagnostics["split_r_hat"], chains=sum(shares), draws=draws, advice=advice)
    source = f"HMC on {target.name}: {sum(shares)} chains x {draws} draws, every {thinning} transitions, seed {seed}"
    return Drawn(
        sets=split_rows(kept.x_SCD, shares, sizes, generator),
        diagnostics=diagnostics,
        source=source,
        work=chains.work,
        device_seconds=device_seconds,
    )


def describe(target: Target, x_BD: Tensor, traces: Mapping[str, Tensor]) -> dict[str, float]:
    """What kept draws say of themselves; one trace (S, C) of them is that of the energy."""
    energy_SC = traces["energy"]
    mean_virial, virial_error = virial(target, x_BD)
    return {
        "split_r_hat": max(split_r_hat(trace) for trace in traces.values()),
        "autocorrelation_draws": max(autocorrelation_time(trace) for trace in traces.values()),
        "effective_n": min(effective_n(trace) for trace in traces.values()),
        "mean_energy": float(energy_SC.double().mean()),
        "mean_energy_error": float(energy_SC.double().std()) / effective_n(energy_SC) ** 0.5,
        "virial": mean_virial,
        "virial_error": virial_error,
    }


def warn_unless_mixed(target: Target, r_hat: float, *, chains: int, draws: int, advice: str) -> None:
    """Few short chains have a noisy R-hat even when their draws are independent: three of its spreads are allowed."""
    half_chains, half_draws = 2 * chains, draws // 2
    limit = LARGEST_R_HAT + 3.0 * (2.0 / (half_chains - 1)) ** 0.5 / (2.0 * half_draws)
    if not r_hat <= limit:
        warnings.warn(
            f"chains of {target.name} have not mixed: split R-hat is {r_hat:.3f}, above {limit:.3f}; {advice}",
            stacklevel=2,
        )
