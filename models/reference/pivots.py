"""Hamiltonian Monte Carlo with pivot moves, for molecules: half of the molecule turned about a bond by any angle.

Trajectories move everything a little and hardly cross from one basin of the backbone to another; pivots about phi and
psi jump there. Both are exact Metropolis moves. A pivot keeps volume, as every atom that turns is only rotated about
atoms that stay, and it is its own reverse with the opposite angle, so that an energy difference decides alone.

Starts are one configuration, and neither move turns a peptide bond from trans to cis or mirrors a stereocentre in any
affordable time: samples are those of the isomer that the chains started in.

Shape suffixes: C chains, D = 3 N flat coordinates, N atoms, M atoms that turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from models.contracts import Target, Work
from models.molecules.building import built
from models.molecules.topology import MolecularTopology
from models.reference.hmc import Chains, transition

Axis = tuple[int, int]


@runtime_checkable
class Molecule(Target, Protocol):
    """A target that knows which atoms it is made of."""

    @property
    def topology(self) -> MolecularTopology: ...


@runtime_checkable
class StartsSomewhere(Protocol):
    """What a Molecule is besides, that brings its own configuration to start from."""

    @property
    def start_D(self) -> Tensor:
        """(D,), mean-free, near a minimum, of the isomer that is wanted."""


def start_of(target: Molecule) -> Tensor:
    """(D,) in float64: the target's own start, or one built from the topology alone, in nm."""
    if isinstance(target, StartsSomewhere):
        return target.start_D.double()
    return torch.from_numpy(built(target.topology)).flatten()


@dataclass(frozen=True, kw_only=True)
class PivotSettings:
    """How the chains of a molecule are moved. A cycle is one trajectory and one pivot about every phi and every psi.

    Args:
        chains: run in parallel, at most.
        leapfrog_steps: mean number L in a trajectory; each draws from L/2 to 3L/2, one number for all chains.
        step_size: of the leapfrog at the start, in length units; adapts during the burn-in and is fixed afterwards.
        target_acceptance: mean acceptance probability of trajectories that the adaptation aims at.
        burn_in: cycles. thinning: cycles between kept draws.
        device: where the chains run.
    """

    chains: int = 512
    leapfrog_steps: int = 24
    step_size: float = 1e-3
    target_acceptance: float = 0.9
    burn_in: int = 150
    thinning: int = 8
    device: str = "cpu"

    def __post_init__(self) -> None:
        counts = (self.chains, self.leapfrog_steps, self.burn_in, self.thinning)
        if min(counts) < 1 or not self.step_size > 0.0:
            raise ValueError(
                f"chains, steps and cycles must be at least 1 and the step size positive, got {counts} and "
                f"{self.step_size}; raise the ones below"
            )
        if not 0.0 < self.target_acceptance < 1.0:
            raise ValueError(f"target_acceptance must lie in (0, 1), got {self.target_acceptance}; 0.9 is usual")


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """Atoms that turn together about the axis from one atom to another. Kind: "phi" or "psi"."""

    kind: str
    axis: Axis
    turning: tuple[int, ...]


def pivots_of(topology: MolecularTopology) -> tuple[Pivot, ...]:
    """One for every phi and psi outside rings, residue by residue; the lighter side turns."""
    angles = [(number, kind, atoms) for kind in ("phi", "psi") for number, atoms in getattr(topology, kind).items()]
    found = []
    for _, kind, (_, i, j, _) in sorted(angles):
        if topology.in_ring(i, j):
            continue
        sides = [(topology.beyond(*axis), axis) for axis in ((i, j), (j, i))]
        turning, axis = min(sides, key=lambda side: len(side[0]))
        found.append(Pivot(kind=kind, axis=axis, turning=turning))
    return tuple(found)


def turned(x_CD: Tensor, pivot: Pivot, angle_C: Tensor) -> Tensor:
    """The pivot's atoms rotated about its axis, clockwise seen along it (Rodrigues); the others stay."""
    x_CN3 = x_CD.unflatten(-1, (-1, 3))
    i, j = pivot.axis
    along_C13 = torch.nn.functional.normalize(x_CN3[:, j] - x_CN3[:, i], dim=-1).unsqueeze(1)
    turning_M = torch.tensor(pivot.turning, device=x_CD.device)
    centre_C13 = x_CN3[:, j : j + 1]
    arm_CM3 = x_CN3.index_select(1, turning_M) - centre_C13
    sine_C11, cosine_C11 = angle_C.sin()[:, None, None], angle_C.cos()[:, None, None]
    parallel_CM1 = (arm_CM3 * along_C13).sum(-1, keepdim=True)
    across_CM3 = torch.linalg.cross(along_C13.expand_as(arm_CM3), arm_CM3)
    rotated_CM3 = cosine_C11 * arm_CM3 + sine_C11 * across_CM3 + (1 - cosine_C11) * parallel_CM1 * along_C13
    return x_CN3.index_copy(1, turning_M, centre_C13 + rotated_CM3).flatten(1)


def start_at_one(target: Molecule, settings: PivotSettings, chains: int) -> Chains:
    """All chains in one configuration.

    Errors: ValueError where its energy is not finite there.
    """
    x_CD = start_of(target).to(device=settings.device, dtype=torch.float32).expand(chains, -1).contiguous()
    energy_C, score_CD = target.energy(x_CD).detach(), target.score(x_CD).detach()
    if not bool(torch.isfinite(energy_C).all() & torch.isfinite(score_CD).all()):
        raise ValueError(
            f"chains of {target.name} must start where energy and force are finite, got {float(energy_C[0])} kT; "
            "give the target a start_D near a minimum"
        )
    work = Work(energy_evaluations=chains, force_evaluations=chains)
    return Chains(x_CD=x_CD, energy_C=energy_C, score_CD=score_CD, step_size=settings.step_size, work=work)


def pivot_once(target: Target, chains: Chains, pivot: Pivot, generator: torch.Generator) -> tuple[Chains, float]:
    """One pivot of every chain and its mean acceptance probability. Leaves the scores as they were: they are old."""
    x_CD = chains.x_CD
    uniform_2C = torch.rand((2, len(x_CD)), generator=generator, device=x_CD.device, dtype=x_CD.dtype)
    proposed_CD = target.space.project(turned(x_CD, pivot, 2 * math.pi * uniform_2C[0]))
    energy_C = target.energy(proposed_CD).detach()
    log_ratio_C = torch.nan_to_num(chains.energy_C - energy_C, nan=-math.inf)
    probability_C = log_ratio_C.clamp_max(0.0).exp()
    accept_C = uniform_2C[1] < probability_C
    moved = replace(
        chains,
        x_CD=torch.where(accept_C[:, None], proposed_CD, x_CD),
        energy_C=torch.where(accept_C, energy_C, chains.energy_C),
        work=chains.work + Work(energy_evaluations=len(x_CD)),
    )
    return moved, float(probability_C.mean())


def cycle(
    target: Target, chains: Chains, pivots: tuple[Pivot, ...], *, leapfrog_steps: int, generator: torch.Generator
) -> tuple[Chains, list[float]]:
    """Every pivot, then a trajectory; acceptance probabilities in the order of `pivots`, the trajectory's last."""
    accepted = []
    for pivot in pivots:
        chains, acceptance = pivot_once(target, chains, pivot, generator)
        accepted.append(acceptance)
    if pivots:
        work = chains.work + Work(force_evaluations=len(chains.x_CD))
        chains = replace(chains, score_CD=target.score(chains.x_CD).detach(), work=work)
    chains, acceptance = transition(target, chains, leapfrog_steps=leapfrog_steps, temperature=1.0, generator=generator)
    return chains, [*accepted, acceptance]
