"""The rows of samplers.py: a sampler's own samples, the flow fitted to them, Monte Carlo at equal cost, and the floor.

What takes seconds (chains, distances) is kept in the study's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from harness.answers.surface import Cell
from harness.budget import Cost
from harness.checkpoint import DamagedObject, read_json, write_json
from harness.collective import Alone
from harness.identity import content_hash, derived_seed
from harness.judging import ESTIMATES_VERSION
from harness.phase_data import PhaseData, making_cost
from harness.plan import Branch
from harness.plan_run import PlanCells, PlanStudyRun
from harness.plan_study import PlanComparison
from harness.session import StudyFailed
from models.contracts import Work
from models.estimators import Estimate
from models.problem import BoltzmannProblem
from models.reference import cache
from models.reference.within import FEWEST_EVALUATIONS, ChainEnds, chain_ends

SAMPLER, FLOW, CHAINS, FLOOR = "sampler", "fitted flow", "HMC at its cost", "floor"
OF_WEIGHTS = ("nll", "ess_q", "ess_q_of_16", "ess_p", "log_z", "log_z_bound")
"""What a sampler's density or path weights tell; all else is of the samples that the flow is fitted to."""
OF_CHAINS = ("transitions", "acceptance", "step_size", "device_seconds")
CHAINS_VERSION = 1
"""Raise this when chains change, so that kept ones are run anew."""


@dataclass(frozen=True, kw_only=True)
class SamplerRow:
    """One line of the answer.

    Attributes:
        method: the sampler that it belongs to, "" for the floor. kind: SAMPLER, FLOW, CHAINS or FLOOR.
        seed: None for the floor, which has no model.
        cost: of all that it took to have the samples. x_BD: samples, for pictures.
    """

    method: str
    kind: str
    seed: int | None
    estimates: Mapping[str, Estimate]
    cost: Cost
    x_BD: Tensor

    @property
    def evaluations(self) -> int:
        return self.cost.energy_evaluations + self.cost.force_evaluations


def rows_of(run: PlanStudyRun, cells: PlanCells) -> list[SamplerRow]:
    """Every method and seed that was trained to its end, then the floor."""
    rows: list[SamplerRow] = []
    for method, by_seed in cells.items():
        for seed, judged in by_seed.items():
            sampler, flow = (run.tracks[method].planned(seed)[number].segment for number in (0, 1))
            found = {cell.segment: cell for cell in judged}
            if sampler in found and flow in found:
                rows += method_rows(run, method, seed, found[sampler], found[flow])
    return [*rows, floor_row(run)]


def method_rows(run: PlanStudyRun, method: str, seed: int, sampler: Cell, flow: Cell) -> Iterator[SamplerRow]:
    problem, branch = problem_of(run), run.tracks[method].ends(seed)[1].branch
    judged = problem.evaluation["samples"]
    x_BD = made_rows(run, branch)[:judged]
    cost = sampler.trunk_cost + sampler.tail_cost + making_cost(problem, run.session.store, branch)
    told = {name: sampler.test[name] for name in OF_WEIGHTS if name in sampler.test}
    drawn = kept_estimates(run, ["drawn", flow.segment], lambda: problem.sample_estimates(x_BD))
    yield SamplerRow(method=method, kind=SAMPLER, seed=seed, estimates=told | drawn, cost=cost, x_BD=x_BD)
    flow_BD = torch.from_numpy(run.records(flow)["model/x"])
    total = flow.trunk_cost + flow.tail_cost
    yield SamplerRow(method=method, kind=FLOW, seed=seed, estimates=flow.test, cost=total, x_BD=flow_BD)
    asked = asks_of(run).get("mcmc_evaluations")
    spent = cost.energy_evaluations + cost.force_evaluations
    most = spent if asked is None else min(spent, asked)
    if most >= FEWEST_EVALUATIONS * judged:
        yield chains_row(run, method, seed, most)


def made_rows(run: PlanStudyRun, branch: Branch) -> Tensor:
    """What a flow was fitted to, (rows, D); made again where it cannot be read.

    Raises:
        StudyFailed: where the model that made them cannot be read either.
    """
    try:
        return PhaseData(problem_of(run), run.session.store, Alone(), torch.device("cpu")).of(branch).x_BD
    except DamagedObject as error:
        raise StudyFailed(str(error)) from error


def chains_row(run: PlanStudyRun, method: str, seed: int, most_evaluations: int) -> SamplerRow:
    problem = problem_of(run)
    ends, key = kept_chains(run, seed, most_evaluations)
    cost = Cost(
        energy_evaluations=ends.work.energy_evaluations,
        force_evaluations=ends.work.force_evaluations,
        device_seconds=ends.device_seconds,
    )
    estimates = kept_estimates(run, ["chains", key], lambda: problem.sample_estimates(ends.x_CD))
    return SamplerRow(method=method, kind=CHAINS, seed=seed, estimates=estimates, cost=cost, x_BD=ends.x_CD)


def floor_row(run: PlanStudyRun) -> SamplerRow:
    problem = problem_of(run)
    estimates = kept_estimates(run, ["floor"], problem.floor)
    points_BD = problem.points("validation")
    return SamplerRow(method="", kind=FLOOR, seed=None, estimates=estimates, cost=Cost(), x_BD=points_BD)


def kept_chains(run: PlanStudyRun, seed: int, most_evaluations: int) -> tuple[ChainEnds, str]:
    """Chains from the system's base, read where they were run before, and their name."""
    problem = problem_of(run)
    settings: dict[str, Any] = {
        "chains": problem.evaluation["samples"],
        "most_evaluations": most_evaluations,
        "start_scale": problem.system["prior_std"],
        "seed": derived_seed("chains", seed),
    }
    key = content_hash({**settings, "target": problem.system["fingerprint"], "version": CHAINS_VERSION})
    path = run.folder / "chains" / f"{key}.npz"
    known = cache.load(path)
    if known is None:
        run.session.progress.note(f"HMC, seed {seed}, {most_evaluations:,} energies and forces")
        ends = chain_ends(problem.physics.target, **settings)
        record = {"work": asdict(ends.work), **{name: getattr(ends, name) for name in OF_CHAINS}}
        cache.save(path, {"x": ends.x_CD.numpy()}, record)
        return ends, key
    arrays, record = known
    own = {name: record[name] for name in OF_CHAINS}
    return ChainEnds(x_CD=torch.from_numpy(arrays["x"]), work=Work(**record["work"]), **own), key


def kept_estimates(
    run: PlanStudyRun, what: Sequence[str], make: Callable[[], Mapping[str, Estimate]]
) -> dict[str, Estimate]:
    """Estimates of something that never changes, read where they were made before."""
    path = run.folder / "estimates" / f"{'-'.join(what)}-{ESTIMATES_VERSION}.json"
    kept = read_json(path)
    if kept is None:
        kept = {name: asdict(estimate) for name, estimate in make().items()}
        write_json(path, kept)
    return {name: Estimate(**kept[name]) for name in sorted(kept)}


def asks_of(run: PlanStudyRun) -> Mapping[str, Any]:
    assert isinstance(run.study, PlanComparison)
    return run.study.asks


def problem_of(run: PlanStudyRun) -> BoltzmannProblem:
    assert isinstance(run.session.problem, BoltzmannProblem)
    return run.session.problem
