"""From the plain settings of a phase's objective to the Objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.annealed import Annealing
from models.contracts import Objective, Target
from models.couplings import Coupling, EquivariantOptimalTransport, Independent, OptimalTransport
from models.flows.diffusion import FinalClimb, ReverseSDE
from models.generators import BOOTSTRAP, CONTROLLED, process_of, schedule_of
from models.objectives.denoising_energy_matching import DenoisingEnergyMatching
from models.objectives.flow_annealed_bootstrap import BufferedBootstrap
from models.objectives.flow_matching import FlowMatching
from models.objectives.maximum_likelihood import MaximumLikelihood
from models.objectives.path_gradient import PathGradient
from models.objectives.replayed_bootstrap import ReplayedBootstrap
from models.objectives.replayed_energy_matching import ReplayedEnergyMatching
from models.schedules import Schedule
from models.score_estimator import Clip
from models.systems import System

KINDS = ("flow_matching", "path_gradient", "maximum_likelihood", "denoising_energy_matching", *CONTROLLED, BOOTSTRAP)
ELSEWHERE = ("data", "model")
"""Settings that stand beside an objective's own: the rows that it trains on, and the model that it trains."""


def objective_of(settings: Mapping[str, Any], system: System) -> Objective:
    """The objective of {"kind": ..., ...}.

    Raises:
        ValueError: for an unknown kind.
    """
    options = {key: value for key, value in settings.items() if key not in ("kind", *ELSEWHERE)}
    kind = settings["kind"]
    if kind == "flow_matching":
        coupling = coupling_of(options.pop("coupling"), system)
        return FlowMatching(coupling=coupling, **options)
    if kind == "path_gradient":
        return PathGradient(target=system.target, **options)
    if kind == "maximum_likelihood":
        return MaximumLikelihood(**options)
    if kind == "denoising_energy_matching":
        return energy_matching_of(settings, system.target)
    if kind in CONTROLLED:
        return controlled_of(settings, system.target)
    if kind == BOOTSTRAP:
        return bootstrap_of(settings, system.target)
    raise ValueError(f"an objective is one of {', '.join(KINDS)}, got {kind!r}; write one of these")


def coupling_of(name: str, system: System) -> Coupling:
    """The coupling of a name.

    Raises:
        ValueError: for an unknown name, or an equivariant coupling where there are no particles.
    """
    if name == "independent":
        return Independent()
    if name == "optimal-transport":
        return OptimalTransport()
    if name == "equivariant-optimal-transport":
        return EquivariantOptimalTransport(space=system.target.space)
    raise ValueError(
        f"a coupling is independent, optimal-transport or equivariant-optimal-transport, got {name!r}; "
        "write one of these"
    )


def energy_matching_of(settings: Mapping[str, Any], target: Target) -> DenoisingEnergyMatching | ReplayedEnergyMatching:
    """iDEM where the settings have a `replay`, else pDEM."""
    replay = settings.get("replay")
    schedule = schedule_of(settings["schedule"])
    offset = {"variance_offset": settings["variance_offset"]} if "variance_offset" in settings else {}
    matching = DenoisingEnergyMatching(
        target=target,
        schedule=schedule,
        samples=settings["samples"],
        start="prior" if replay is None else "batch",
        clip=None if settings["clip"] is None else Clip(**settings["clip"]),
        weighting=settings.get("weighting", "one"),
        blend=settings["blend"]["length"] if "blend" in settings else None,
        noise_clip=Clip(**settings["noise_clip"]) if "noise_clip" in settings else None,
        **offset,
    )
    if replay is None:
        return matching
    return ReplayedEnergyMatching(matching=matching, sde=sde_of(settings["sde"], target, schedule), **replay)


def sde_of(settings: Mapping[str, Any], target: Target, schedule: Schedule) -> ReverseSDE:
    """The reverse process of {"steps": ..., "noise_scale": ..., "climb": {"steps": ..., "norm": ...} or not at all}."""
    climb = settings.get("climb")
    final = None
    if climb is not None:
        final = FinalClimb(target=target, clip=Clip(norm=climb["norm"], of="particles"), steps=climb["steps"])
    return ReverseSDE(
        space=target.space,
        schedule=schedule,
        steps=settings["steps"],
        noise_scale=settings["noise_scale"],
        final=final,
    )


def bootstrap_of(settings: Mapping[str, Any], target: Target) -> ReplayedBootstrap:
    """The bootstrap of {"annealing": ..., "ratio_clip": ..., "replay": {...}}."""
    return ReplayedBootstrap(
        target=target,
        annealing=Annealing(**settings["annealing"]),
        loss=BufferedBootstrap(ratio_clip=settings["ratio_clip"]),
        **settings["replay"],
    )


def controlled_of(settings: Mapping[str, Any], target: Target) -> Objective:
    """The path integral or the denoising diffusion sampler."""
    process: Any = process_of(settings, target)
    objective: Objective = process
    return objective
