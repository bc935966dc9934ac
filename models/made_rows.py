"""Rows that a phase trains on where these are not the training set: none, base noise, or samples of a trained model.

The `data` of an objective's settings says which; without it a phase trains on the problem's training set.

Shapes: B batch, D coordinates, K noises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.annealed import PUSH_EVALUATIONS
from models.contracts import Batch, Field, Prepared, Random, Target, Work
from models.controlled import ControlledSampler
from models.fields.known_score import asked_of_target
from models.flows.coupling import CouplingFlow
from models.flows.diffusion import ReverseSDE, noise_prior
from models.flows.divergence import exact_divergence
from models.flows.solvers import Dopri5
from models.generators import schedule_of
from models.objective_settings import sde_of
from models.schedules import Schedule
from models.score_estimator import Clip, estimate_score
from models.sde_noise import sde_rows

SOURCES = ("none", "prior", "estimate", "parent")
FEWEST_USABLE = 0.5
"""Least share of a model's samples that must be finite."""


class MadeRows(Protocol):
    """Fulfils the harness's Sampling."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def rows(self) -> int: ...

    @property
    def from_parent(self) -> bool: ...

    @property
    def kept(self) -> bool: ...

    def draw(self, flow: Any | None, random: Random) -> Prepared: ...

    def finish(self, drawn: Mapping[str, Tensor], *, seed: int) -> tuple[Batch, Work]: ...


def made_rows_of(objective: Mapping[str, Any], target: Target) -> MadeRows | None:
    """The rows of {..., "data": {"from": ...}}; None where an objective says nothing of its data.

    Raises:
        ValueError: for an unknown source.
    """
    data = objective.get("data")
    if data is None:
        return None
    if data["from"] == "none":
        return NoRows(target=target, settings=data)
    if data["from"] == "prior":
        return NoiseRows(target=target, settings=data, schedule=schedule_of(objective["schedule"]))
    if data["from"] == "estimate":
        schedule = schedule_of(objective["schedule"])
        settings = {**data, "schedule": objective["schedule"]}
        return EstimatedRows(target=target, settings=settings, sde=sde_of(data["sde"], target, schedule))
    if data["from"] == "parent":
        return ParentRows(target=target, settings=data)
    raise ValueError(f"rows come from {', '.join(SOURCES)}, got {data['from']!r}; write one of these")


@dataclass(frozen=True, kw_only=True, eq=False)
class NoRows:
    """Zeros, for objectives that look at the number and the type of the rows alone."""

    target: Target
    settings: Mapping[str, Any]
    rows: int = 1024
    from_parent: bool = False
    kept: bool = False

    def draw(self, flow: Any | None, random: Random) -> Prepared:
        return Prepared(tensors={"x": torch.zeros(random.stop - random.start, self.target.space.dim)})

    def finish(self, drawn: Mapping[str, Tensor], *, seed: int) -> tuple[Batch, Work]:
        return Batch(x_BD=drawn["x"]), Work()


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseRows:
    """Draws of the noise distribution N(0, h(1)), to begin a replay buffer with."""

    target: Target
    settings: Mapping[str, Any]
    schedule: Schedule
    from_parent: bool = False
    kept: bool = False

    @property
    def rows(self) -> int:
        return int(self.settings["rows"])

    def draw(self, flow: Any | None, random: Random) -> Prepared:
        space = self.target.space
        noise_BD = random.normal(space.dim, like=torch.zeros(0))
        return Prepared(tensors={"x": noise_prior(space, self.schedule).from_noise(noise_BD)})

    def finish(self, drawn: Mapping[str, Tensor], *, seed: int) -> tuple[Batch, Work]:
        return Batch(x_BD=drawn["x"]), Work()


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimatedRows:
    """The reverse process under scores estimated from the energy, before there is any network.

    Akhound-Sadegh et al. 2024 begin the buffer of mixtures so, with the whole row clipped.
    """

    target: Target
    settings: Mapping[str, Any]
    sde: ReverseSDE
    from_parent: bool = False
    kept: bool = True

    @property
    def rows(self) -> int:
        return int(self.settings["rows"])

    def draw(self, flow: Any | None, random: Random) -> Prepared:
        clip = Clip(norm=self.settings["norm"], of="row")
        spent: list[Work] = []

        def score(tau: Tensor, x_BD: Tensor) -> Tensor:
            noise = (random.normal(x_BD.shape[1], like=x_BD) for _ in range(self.settings["samples"]))
            estimate = estimate_score(self.target, x_BD, self.sde.schedule.h(tau), noise)
            spent.append(estimate.work)
            return clip(estimate.score_BD, self.target.space)

        x_BD, work = sde_rows(self.sde, score, random, like=torch.zeros(0))
        without_network = Work(force_evaluations=work.force_evaluations, declared_flops=work.declared_flops)
        return Prepared(tensors={"x": x_BD}, work=sum(spent, without_network))

    def finish(self, drawn: Mapping[str, Tensor], *, seed: int) -> tuple[Batch, Work]:
        return Batch(x_BD=finite_rows(drawn["x"])), Work()


@dataclass(frozen=True, kw_only=True, eq=False)
class ParentRows:
    """Samples of the parent's model with their forces, as they are or resampled by importance.

    Settings: "rows"; "resampled"; "sde", where a score network's reverse process is to draw instead of its probability
    flow (it has no weights), with its "schedule"; "tolerance" of dopri5 for continuous flows.
    """

    target: Target
    settings: Mapping[str, Any]
    from_parent: bool = True
    kept: bool = True

    def __post_init__(self) -> None:
        if self.settings["resampled"] and "sde" in self.settings:
            raise ValueError(
                "rows are resampled by weights, which a reverse process does not have, got both; "
                "leave one of resampled and sde out"
            )

    @property
    def rows(self) -> int:
        return int(self.settings["rows"])

    @torch.no_grad()
    def draw(self, flow: Any | None, random: Random) -> Prepared:
        """Rows x, and log weights where they are to be resampled."""
        assert flow is not None, "samples of a parent need its model"
        like = next(flow.parameters())
        if isinstance(flow, ControlledSampler):
            return self._paths(flow, random, like)
        if "sde" in self.settings:
            sde = sde_of(self.settings["sde"], self.target, schedule_of(self.settings["schedule"]))
            x_BD, work = sde_rows(sde, flow.field.score, random, like=like)
            return Prepared(tensors={"x": x_BD}, work=work)
        return self._pushed(flow, random, like)

    def finish(self, drawn: Mapping[str, Tensor], *, seed: int) -> tuple[Batch, Work]:
        """float32 rows with forces. Rows that are not finite are dropped, or have no weight.

        Raises:
            ValueError: where most are not finite.
        """
        x_BD = finite_rows(drawn["x"])
        if self.settings["resampled"]:
            log_weight_B = drawn["log_weight"].masked_fill(~torch.isfinite(drawn["x"]).all(dim=1), -torch.inf)
            x_BD = drawn["x"][systematic_resample(log_weight_B, seed=seed)]
        x_BD = self.target.space.project(x_BD.double())
        force_BD = self.target.score(x_BD).float()
        work = Work(force_evaluations=len(x_BD), declared_flops=len(x_BD) * self.target.energy_flops)
        return Batch(x_BD=x_BD.float(), force_BD=force_BD), work

    def _paths(self, sampler: ControlledSampler, random: Random, like: Tensor) -> Prepared:
        path = sampler.draw(random, like=like)
        n = len(path.x_BD)
        calls = sampler.process.steps * n
        own = Work(energy_evaluations=n, declared_flops=n * self.target.energy_flops)
        work = own + Work(field_evaluations=calls) + asked_of_target(sampler.field, calls)
        return Prepared(tensors={"x": path.x_BD, "log_weight": path.log_weight_B}, work=work)

    def _pushed(self, flow: Any, random: Random, like: Tensor) -> Prepared:
        x0_BD = flow.prior.from_noise(random.normal(self.target.space.dim, like=like))
        if isinstance(flow, CouplingFlow):
            pushed, evaluations = flow.push(x0_BD), PUSH_EVALUATIONS * len(x0_BD)
        else:
            tolerance, counted = self.settings["tolerance"], CountedDivergence()
            pushed = flow.push(x0_BD, solver=Dopri5(rtol=tolerance, atol=tolerance), divergence=counted)
            evaluations = counted.rows
        x_BD, work = pushed.x1_BD, Work(field_evaluations=evaluations) + asked_of_target(flow, evaluations)
        if not self.settings["resampled"]:
            return Prepared(tensors={"x": x_BD}, work=work)
        n = len(x_BD)
        log_weight_B = -self.target.energy(x_BD) - pushed.log_q_B
        work = work + Work(energy_evaluations=n, declared_flops=n * self.target.energy_flops)
        return Prepared(tensors={"x": x_BD, "log_weight": log_weight_B}, work=work)


class CountedDivergence:
    """The exact divergence, counting rows; a divergence counts as one evaluation with its velocity."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, field: Field, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        self.rows += len(x_BD)
        return exact_divergence(field, t, x_BD)


def finite_rows(x_BD: Tensor) -> Tensor:
    """The finite rows.

    Raises:
        ValueError: where these are too few.
    """
    usable_B = torch.isfinite(x_BD).all(dim=1)
    if float(usable_B.float().mean()) < FEWEST_USABLE:
        raise ValueError(
            f"most samples of a model must be finite, got {int(usable_B.sum())} of {len(x_BD)}; "
            "train the stage before for longer, or at a lower rate"
        )
    return x_BD[usable_B]


def systematic_resample(log_weight_B: Tensor, *, seed: int) -> Tensor:
    """As many row numbers as there are weights, each row drawn n w times up to one (Kitagawa 1996).

    Raises:
        ValueError: without a usable weight.
    """
    log_weight_B = log_weight_B.double().nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    if not bool(torch.isfinite(log_weight_B).any()):
        raise ValueError("resampling needs a finite weight, got none; train the stage before for longer")
    n = len(log_weight_B)
    ends_B = np.cumsum(torch.softmax(log_weight_B, dim=0).cpu().numpy())
    offset = float(torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    rows = np.searchsorted(ends_B / ends_B[-1], (np.arange(n) + offset) / n, side="right")
    return torch.from_numpy(np.minimum(rows, n - 1))
