"""Which model a phase trains, by the settings of its objective, and how that model is made.

Flow matching, maximum likelihood and path gradients train the continuous flow unless their settings name a `model`;
denoising energy matching trains a score network inside its probability flow; the controlled samplers train a control;
flow annealed bootstrap trains a coupling flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.contracts import Field, Space, Target
from models.controlled import ControlledSampler, Process
from models.fields.pinned_score import PinnedScore
from models.fields.scaled_score import ScaledScore
from models.fields.score_control import ScoreControl
from models.fields.sinusoidal import SinusoidalField
from models.flows.continuous import ContinuousFlow
from models.flows.coupling import CouplingFlow
from models.flows.diffusion import ProbabilityFlow, noise_prior
from models.flows.prior import GaussianPrior
from models.objectives.denoising_diffusion import DenoisingDiffusion, cosine_squared, euler_steps
from models.objectives.path_integral import Control, PathIntegral
from models.schedules import Cosine, Geometric, Linear, Power, Quadratic, Schedule
from models.score_estimator import Clip
from models.systems import field_for

Settings = Mapping[str, Any]

CONTINUOUS_FLOW: dict[str, Any] = {"kind": "continuous_flow"}
CONTROLLED = ("path_integral", "denoising_diffusion")
BOOTSTRAP = "flow_annealed_bootstrap"
SCHEDULES: dict[str, type[Geometric | Linear | Quadratic | Power | Cosine]] = {
    "geometric": Geometric,
    "linear": Linear,
    "quadratic": Quadratic,
    "power": Power,
    "cosine": Cosine,
}


def model_of(objective: Settings | None) -> dict[str, Any]:
    """The settings of the model that an objective trains: equal ones mean that weights can be handed on."""
    if objective is None or "kind" not in objective:
        return CONTINUOUS_FLOW
    if objective["kind"] == "denoising_energy_matching":
        return {"kind": "probability_flow", "schedule": objective["schedule"], "network": objective["network"]}
    if objective["kind"] in CONTROLLED:
        kept = ("kind", "sigma", "steps", "largest", "rates", "network")
        return {name: objective[name] for name in kept if name in objective}
    if objective["kind"] == BOOTSTRAP:
        return {"kind": "coupling_flow", **objective["flow"]}
    return dict(objective.get("model", CONTINUOUS_FLOW))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a system says of its networks and of its base.

    Args:
        hidden, layers: of the field. prior_std: of the continuous flow's base. field_length: of its field's sinusoids.
    """

    hidden: int
    layers: int
    prior_std: float
    field_length: float | None = None


def model_for(model: Settings, target: Target, sizes: Sizes) -> nn.Module:
    """An untrained model.

    Raises:
        ValueError: for an unknown kind.
    """
    space, kind = target.space, model["kind"]
    if kind == "continuous_flow":
        prior = GaussianPrior(space=space, std=sizes.prior_std)
        field = field_for(space, hidden=sizes.hidden, layers=sizes.layers, length=sizes.field_length)
        return ContinuousFlow(prior=prior, field=field)
    if kind == "probability_flow":
        schedule = schedule_of(model["schedule"])
        flow_field = ProbabilityFlow(score=score_for(model["network"], target, schedule, sizes), schedule=schedule)
        return ContinuousFlow(prior=noise_prior(space, schedule), field=flow_field)
    if kind == "coupling_flow":
        return coupling_flow_of(model, space)
    if kind in CONTROLLED:
        control = control_for(model["network"], target, sizes)
        return ControlledSampler(space=space, process=process_of(model, target), control=control)
    raise ValueError(
        f"a model is continuous_flow, probability_flow, coupling_flow, {' or '.join(CONTROLLED)}, got {kind!r}; "
        "write one of these"
    )


def coupling_flow_of(model: Settings, space: Space) -> CouplingFlow:
    """An untrained coupling flow of {"prior_std", "layers", "hidden" (a width, twice), "couplings", "bins"}."""
    return CouplingFlow(
        prior=GaussianPrior(space=space, std=model["prior_std"]),
        layers=model["layers"],
        hidden=(model["hidden"], model["hidden"]),
        kind=model["couplings"],
        bins=model["bins"],
    )


def score_for(network: Settings, target: Target, schedule: Schedule, sizes: Sizes) -> Field:
    """An untrained score network s(tau, x); with "pinned", one that ends in the target's own score."""
    score = learned_score(network, target.space, schedule, sizes)
    if "pinned" not in network:
        return score
    pin, clip = network["pinned"], Clip(**network["pinned"]["clip"])
    return PinnedScore(network=score, target=target, clip=clip, schedule=schedule, length=pin["length"])


def learned_score(network: Settings, space: Space, schedule: Schedule, sizes: Sizes) -> Field:
    """The network alone; with "scaled", in units of the noised rows' own width."""
    if "scaled" not in network:
        return network_for(network, space, sizes, output_scale=1.0 / network.get("length", 1.0))
    field = network_for({**network, "length": 1.0}, space, sizes, output_scale=1.0)
    return ScaledScore(network=field, schedule=schedule, length=network["scaled"])


def control_for(network: Settings, target: Target, sizes: Sizes) -> Control:
    """An untrained control u(t, x); with "score_clip", one that has a share of the target's clipped score."""
    plain = network_for(network, target.space, sizes, output_scale=network.get("output_scale", 1.0))
    if "score_clip" not in network:
        return plain
    return ScoreControl(network=plain, target=target, clip=Clip(**network["score_clip"]))


def network_for(network: Settings, space: Space, sizes: Sizes, *, output_scale: float) -> Field:
    """The network of {"kind": "field" (the system's own) or "sinusoidal", ...}, in the system's sizes or its own.

    Raises:
        ValueError: for an unknown kind, or sinusoids where there are particles.
    """
    hidden, layers = network.get("hidden", sizes.hidden), network.get("layers", sizes.layers)
    if network["kind"] == "field":
        return field_for(space, hidden=hidden, layers=layers)
    if network["kind"] == "sinusoidal" and space.particles is None:
        length = network.get("length", 1.0)
        return SinusoidalField(space.dim, hidden, layers, length=length, output_scale=output_scale)
    raise ValueError(
        "a network is the system's own field, or sinusoidal where there are no particles, "
        f"got {network['kind']!r}; write field"
    )


def process_of(settings: Settings, target: Target) -> Process:
    """The controlled process, and objective, of {"kind", "sigma", "steps", and for denoising "largest" or "rates"}."""
    if settings["kind"] == "path_integral":
        return PathIntegral(target=target, sigma=settings["sigma"], steps=settings["steps"])
    if "rates" in settings:
        smallest, largest = settings["rates"]
        alphas = euler_steps(settings["steps"], smallest=smallest, largest=largest)
    else:
        alphas = cosine_squared(settings["steps"], largest=settings["largest"])
    return DenoisingDiffusion(target=target, sigma=settings["sigma"], alphas=alphas)


def schedule_of(settings: Settings) -> Schedule:
    """The noise schedule of {"kind": ..., its arguments}.

    Raises:
        ValueError: for an unknown kind.
    """
    options = {name: value for name, value in settings.items() if name != "kind"}
    if settings["kind"] not in SCHEDULES:
        raise ValueError(
            f"a schedule is one of {', '.join(SCHEDULES)}, got {settings['kind']!r}; write for example geometric"
        )
    return SCHEDULES[settings["kind"]](**options)
