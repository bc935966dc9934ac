"""Rows of separate sets drawn from a molecule by trajectories and pivots; a run that was killed goes on where it was.

Shape suffixes: S cycles in order, T kept draws, C chains, D coordinates, K observables.
"""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.contracts import Work
from models.molecules.geometry import dihedrals, handedness
from models.reference import cache
from models.reference.diagnostics import autocorrelation_time
from models.reference.drawing import Drawn, describe, share_chains, split_rows, warn_unless_mixed
from models.reference.hmc import Chains
from models.reference.pivots import Molecule, Pivot, PivotSettings, cycle, pivots_of, start_at_one
from models.reference.progress import Progress
from models.reference.within import adapted

SECONDS_BETWEEN_SAVES = 20.0


@dataclass(kw_only=True)
class Run:
    """Where sampling stands: everything that a partial file holds.

    Attributes:
        cycles: done so far, burn-in included. seconds: they took.
        accepted: sums of acceptance probabilities after the burn-in, pivots in order and trajectories last.
        observed: (C, K) after each cycle that follows the burn-in. kept: positions (C, D), thinned.
    """

    chains: Chains
    generator: torch.Generator
    accepted: list[float]
    cycles: int = 0
    seconds: float = 0.0
    observed: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def save(self, path: Path) -> None:
        arrays = {
            "x_CD": self.chains.x_CD,
            "energy_C": self.chains.energy_C,
            "score_CD": self.chains.score_CD,
            "random": self.generator.get_state(),
            "observed": torch.stack(self.observed) if self.observed else torch.empty(0),
            "kept": torch.stack(self.kept) if self.kept else torch.empty(0),
        }
        record = {"accepted": self.accepted, "cycles": self.cycles, "seconds": self.seconds}
        record |= {"step_size": self.chains.step_size, "work": astuple(self.chains.work)}
        cache.save(path, {name: value.cpu().numpy() for name, value in arrays.items()}, record)

    @classmethod
    def restored(cls, path: Path, device: str) -> Run | None:
        """What a file holds, or None where there is none or a damaged one."""
        found = cache.load(path)
        if found is None:
            return None
        arrays, record = found
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        generator = torch.Generator(device=device)
        generator.set_state(tensors["random"])
        chains = Chains(
            **{name: tensors[name].to(device) for name in ("x_CD", "energy_C", "score_CD")},
            step_size=record["step_size"],
            work=Work(**dict(zip(Work.__dataclass_fields__, record["work"], strict=True))),
        )
        return cls(
            chains=chains,
            generator=generator,
            accepted=record["accepted"],
            cycles=record["cycles"],
            seconds=record["seconds"],
            observed=list(tensors["observed"].to(device)),
            kept=list(tensors["kept"].to(device)),
        )


def observables(target: Molecule, x_BD: Tensor, energy_B: Tensor) -> dict[str, Tensor]:
    """What mixing is judged by, (B,) each: the energy, and sine and cosine of every phi and psi."""
    found = {"energy": energy_B}
    for kind in ("phi", "psi"):
        atoms = getattr(target.topology, kind)
        for number, angle_B in zip(atoms, dihedrals(x_BD, atoms.values()).unbind(1), strict=True):
            found |= {f"sin_{kind}_{number}": angle_B.sin(), f"cos_{kind}_{number}": angle_B.cos()}
    return found


def draw_by_pivots(
    target: Molecule,
    sizes: tuple[int, ...],
    seed: int,
    settings: PivotSettings,
    progress: Progress,
    *,
    partial: Path | None = None,
) -> Drawn:
    """Burn in, then keep every so many cycles of every chain.

    Args:
        partial: a file in which a run saves itself every few seconds and finds itself again; deleted at the end.
    """
    draws, shares = share_chains(sizes, settings.chains)
    run = None if partial is None else Run.restored(partial, settings.device)
    if run is None:
        generator = torch.Generator(device=settings.device).manual_seed(seed)
        chains = start_at_one(target, settings, sum(shares))
        run = Run(chains=chains, generator=generator, accepted=[0.0] * (len(pivots_of(target.topology)) + 1))
    _finish(target, run, settings, draws, progress, partial)
    x_TCD = torch.stack(run.kept)
    diagnostics = _diagnostics(target, run, settings)
    sets = split_rows(x_TCD, shares, sizes, run.generator)
    if partial is not None:
        partial.unlink(missing_ok=True)
    source = (
        f"HMC with pivots on {target.name}: {sum(shares)} chains x {draws} draws, every {settings.thinning} cycles, "
        f"seed {seed}"
    )
    return Drawn(sets=sets, diagnostics=diagnostics, source=source, work=run.chains.work, device_seconds=run.seconds)


def _finish(
    target: Molecule, run: Run, settings: PivotSettings, draws: int, progress: Progress, partial: Path | None
) -> None:
    """All cycles that are left."""
    pivots, to_draw, last_save = pivots_of(target.topology), draws * settings.thinning, time.perf_counter()
    while run.cycles < settings.burn_in + to_draw:
        began = time.perf_counter()
        _advance(target, run, pivots, settings)
        run.seconds += time.perf_counter() - began
        if run.cycles <= settings.burn_in:
            progress("burn-in", run.cycles, settings.burn_in)
        else:
            progress("drawing", run.cycles - settings.burn_in, to_draw)
        if partial is not None and time.perf_counter() - last_save >= SECONDS_BETWEEN_SAVES:
            run.save(partial)
            last_save = time.perf_counter()


def _advance(target: Molecule, run: Run, pivots: tuple[Pivot, ...], settings: PivotSettings) -> None:
    """One cycle: the step size adapts during the burn-in, what is seen is noted after it."""
    run.chains, accepted = cycle(
        target, run.chains, pivots, leapfrog_steps=settings.leapfrog_steps, generator=run.generator
    )
    if run.cycles < settings.burn_in:
        run.chains = adapted(run.chains, accepted[-1], settings.target_acceptance, run.cycles)
    run.cycles += 1
    done = run.cycles - settings.burn_in
    if done > 0:
        run.accepted = [total + new for total, new in zip(run.accepted, accepted, strict=True)]
        seen = observables(target, run.chains.x_CD, run.chains.energy_C)
        run.observed.append(torch.stack(list(seen.values()), dim=1))
        if done % settings.thinning == 0:
            run.kept.append(run.chains.x_CD)


def _diagnostics(target: Molecule, run: Run, settings: PivotSettings) -> dict[str, float]:
    """Autocorrelation times from every cycle, all else from the draws that were kept."""
    names = list(observables(target, run.chains.x_CD, run.chains.energy_C))
    traces = dict(zip(names, torch.stack(run.observed).unbind(2), strict=True))
    kept = {name: trace_SC[settings.thinning - 1 :: settings.thinning] for name, trace_SC in traces.items()}
    x_BD = torch.stack(run.kept).flatten(0, 1)
    found = {f"cycles_per_independent_{name}": autocorrelation_time(trace_SC) for name, trace_SC in traces.items()}
    found |= describe(target, x_BD, kept) | _acceptances(target, run, len(traces["energy"]))
    found |= {"thinning": float(settings.thinning), "step_size": run.chains.step_size}
    found["share_naturally_handed"] = handedness(x_BD, target.topology).natural / len(x_BD)
    advice = "raise burn_in or thinning in PivotSettings"
    chains, draws = run.chains.x_CD.shape[0], len(run.kept)
    warn_unless_mixed(target, found["split_r_hat"], chains=chains, draws=draws, advice=advice)
    return found


def _acceptances(target: Molecule, run: Run, cycles: int) -> dict[str, float]:
    """Mean acceptance probability of trajectories, and of the pivots of each kind."""
    *turns, trajectory = (total / cycles for total in run.accepted)
    kinds: dict[str, list[float]] = {}
    for pivot, value in zip(pivots_of(target.topology), turns, strict=True):
        kinds.setdefault(f"acceptance_{pivot.kind}", []).append(value)
    return {"acceptance": trajectory} | {kind: sum(values) / len(values) for kind, values in kinds.items()}
