"""Which model an objective trains: names of what is known, bits of what was trained, and the units of wide systems."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contracts import Batch, whole_batch
from models.controlled import ControlledSampler
from models.estimators import WeightedRecords, estimate_weighted, modes_covered_estimate
from models.fields.mlp import MLPField
from models.fields.sinusoidal import SinusoidalField
from models.flows.continuous import ContinuousFlow
from models.flows.coupling import CouplingFlow
from models.flows.diffusion import ProbabilityFlow
from models.generators import CONTINUOUS_FLOW, Sizes, model_for, model_of, schedule_of
from models.objective_settings import objective_of
from models.objectives.denoising_energy_matching import DenoisingEnergyMatching
from models.objectives.replayed_bootstrap import ReplayedBootstrap
from models.objectives.replayed_energy_matching import ReplayedEnergyMatching
from models.problem import BoltzmannProblem, build
from models.problem_settings import evaluation_settings, system_settings
from models.schedules import Geometric
from models.score_estimator import Clip
from models.systems import System, system_of
from models.targets import dw4, gmm4, gmm40
from models.targets.rescaled import Rescaled
from studies.train_plan import TrainPlan
from tests.laws.objective_laws import flat

SIZES = Sizes(hidden=8, layers=2, prior_std=1.0)
ENERGY_ONLY = ("idem", "pdem", "pis", "dds")
TARGETS = ("gmm4", "gmm40", "dw4", "lj13", "lj55")


def problem(target: str = "gmm4", cache: Path = Path("unused"), **evaluation: Any) -> BoltzmannProblem:
    system = system_settings(target, train_samples=64, hidden=8, layers=2)
    judged = evaluation_settings(target, samples=64, tolerance=1e-3, **evaluation)
    return build({"system": system, "evaluation": judged}, cache=cache)


def objective(target: str, name: str) -> dict[str, Any]:
    return dict(TrainPlan(target=target).named_phases()[name].objective)


def test_phases_of_data_train_the_flow_that_they_always_did() -> None:
    made = problem()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        field = MLPField(dim=2, hidden=8, layers=2)
    for name in ("fm", "pg", "ml"):
        assert made.model(objective("gmm4", name)) == CONTINUOUS_FLOW == made.model(None)
        flow = made.flow(7, objective("gmm4", name))
        assert isinstance(flow, ContinuousFlow)
        assert all(torch.equal(value, flow.field.state_dict()[key]) for key, value in field.state_dict().items())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ENERGY_ONLY)
def test_every_system_can_be_learnt_from_its_energy(target: str, name: str) -> None:
    made, settings = problem(target), objective(target, name)
    flow = made.flow(0, settings)
    assert isinstance(flow, ControlledSampler if name in ("pis", "dds") else ContinuousFlow)
    shorter = {"steps": 2} if name in ("pis", "dds") else {"samples": 2}
    few = {**settings, **shorter}
    made_objective = made.objective(few)
    x_BD = made.physics.target.space.project(torch.randn(3, made.physics.target.space.dim))
    prepared = made_objective.prepare(flow.prior, Batch(x_BD=x_BD), whole_batch(3, 0))
    found = made_objective.gradient(flow, prepared)
    assert bool(torch.isfinite(found.loss_sum)) or target.startswith("lj")  # particles may overlap on a wild path
    again = made.flow(0, settings).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in flow.state_dict().items())


def test_what_a_settings_dictionary_turns_into() -> None:
    settings = objective("lj55", "idem")
    made = objective_of(settings, system_of("lj55"))
    assert isinstance(made, ReplayedEnergyMatching)
    assert (made.capacity, made.every, made.rows) == (10_000, 100, 128)
    assert made.matching.schedule == Geometric(sigma_min=0.5, sigma_max=4.0)
    assert (made.matching.samples, made.matching.clip) == (100, Clip(norm=20.0, of="particles"))
    assert made.sde.final is not None
    assert (made.sde.noise_scale, made.sde.steps, made.sde.final.steps) == (0.5, 1000, 10)
    other = objective_of(objective("lj55", "pdem"), system_of("lj55"))
    assert isinstance(other, DenoisingEnergyMatching)
    assert other.start == "prior"


def test_models_are_alike_where_weights_can_be_handed_on() -> None:
    idem, pdem, pis = (objective("dw4", name) for name in ("idem", "pdem", "pis"))
    assert model_of(idem) == model_of(pdem)
    assert model_of({"kind": "path_gradient", "model": model_of(idem)}) == model_of(idem)
    assert model_of(pis) != model_of(idem)
    assert model_of(pis) != model_of({**pis, "steps": 7})
    assert model_of(pis) == model_of({**pis, "data": {"from": "parent"}})
    other = {**idem, "schedule": {**idem["schedule"], "sigma_max": 2.0}}
    assert model_of(other) != model_of(idem)


def test_forty_gaussians_are_learnt_as_in_units_of_fifty() -> None:
    """The recipe in the target's own lengths is the published one, row by row, with the loss in other units."""
    settings = {**objective("gmm40", "pdem"), "samples": 6}
    wide = objective_of(settings, system_of("gmm40"))
    assert isinstance(wide, DenoisingEnergyMatching)
    narrow = DenoisingEnergyMatching(
        target=Rescaled(target=gmm40(), scale=50.0),
        schedule=Geometric(sigma_min=1e-5, sigma_max=1.0),
        samples=6,
        start="prior",
        clip=Clip(norm=70.0, of="row"),
        weighting="variance",
    )
    sizes = Sizes(hidden=8, layers=1, prior_std=1.0)
    network = {"kind": "sinusoidal", "length": 50.0}
    flow = model_for({**model_of(settings), "network": network}, gmm40(), sizes).double()
    unit = {"kind": "probability_flow", "schedule": {"kind": "geometric", "sigma_min": 1e-5, "sigma_max": 1.0}}
    small = model_for({**unit, "network": {"kind": "sinusoidal"}}, gmm40(), sizes).double()
    small.load_state_dict(flow.state_dict())
    batch = Batch(x_BD=torch.zeros(40, 2, dtype=torch.float64))
    found = []
    for each, model in ((wide, flow), (narrow, small)):
        found.append(each.gradient(model, each.prepare(model.prior, batch, whole_batch(40, 1))))  # type: ignore[arg-type]
    torch.testing.assert_close(found[0].loss_sum, found[1].loss_sum, rtol=1e-6, atol=0)
    one, other = (flat(each.gradients) for each in found)
    assert float((one - other).norm() / other.norm()) < 1e-5  # clipping adds 1e-6 to norms of either unit


def test_bootstrapping_trains_a_coupling_flow_in_the_sizes_of_its_recipe() -> None:
    settings = objective("gmm40", "fab")
    made = objective_of(settings, system_of("gmm40"))
    assert isinstance(made, ReplayedBootstrap)
    assert (made.capacity, made.minimum, made.every, made.rows) == (16_384, 4096, 8, 512)
    assert (made.annealing.bridges, made.annealing.step_size, made.loss.ratio_clip) == (2, 1.0, 10.0)
    flow = problem("gmm40").flow(0, settings)
    assert isinstance(flow, CouplingFlow)
    assert flow.prior.std == 23.0
    assert len(flow.couplings.transforms) == 8
    again = problem("gmm40").flow(0, settings).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in flow.state_dict().items())
    assert model_of(settings) == model_of({**settings, "ratio_clip": None})
    assert model_of(settings) != model_of({**settings, "flow": {**settings["flow"], "layers": 4}})
    for target in TARGETS:
        energy_only = problem(target)
        settings = objective(target, "fab")
        short = {**settings, "annealing": {**settings["annealing"], "bridges": 1, "leapfrog_steps": 1}}
        model, loss = energy_only.flow(0, settings), energy_only.objective(short)
        assert isinstance(model, CouplingFlow)
        assert isinstance(loss, ReplayedBootstrap)
        state = loss.begin(Batch(x_BD=torch.zeros(1, model.space.dim)), seed=0)
        made_rows = loss.generate(model, state, whole_batch(6, 0))
        assert len(loss.extended(state, made_rows.tensors)) >= 3


def test_a_coupling_flow_is_judged_by_its_density(tmp_path: Path) -> None:
    made = problem(cache=tmp_path)
    flow = made.flow(0, objective("gmm4", "fab"))
    records = made.evaluate(flow, rank=0, workers=1)
    x_BD = made.points("test")
    log_q_B = copy.deepcopy(flow).double().log_prob(x_BD).detach().numpy()
    np.testing.assert_allclose(records["test/log_q"], log_q_B, rtol=1e-12)
    np.testing.assert_array_equal(records["test/length"], records["test/displacement"])
    assert "test/fm_loss" not in records
    model_log_q_B = copy.deepcopy(flow).double().log_prob(torch.from_numpy(records["model/x"]).double())
    np.testing.assert_allclose(records["model/log_q"], model_log_q_B.detach().numpy(), atol=1e-4)
    parts = [made.evaluate(flow, rank=rank, workers=2) for rank in range(2)]
    for key, column in records.items():
        np.testing.assert_allclose(np.concatenate([part[key] for part in parts]), column, rtol=1e-6, atol=1e-6)
    estimates = made.estimates(records, "test", expensive=True)
    assert {"nll", "ess_q", "ess_p", "log_z", "w2", "tv_2d", "modes_covered"} <= set(estimates)


def test_unknown_models_networks_and_schedules_are_told() -> None:
    with pytest.raises(ValueError, match=r"continuous_flow.*'tea leaves'.*write"):
        model_for({"kind": "tea leaves"}, gmm4(), SIZES)
    with pytest.raises(ValueError, match=r"schedule is one of geometric.*'abrupt'.*write"):
        schedule_of({"kind": "abrupt"})
    flow = {"kind": "probability_flow", "schedule": {"kind": "linear", "total_variance": 2.0}}
    with pytest.raises(ValueError, match=r"no particles.*'sinusoidal'.*write field"):
        model_for({**flow, "network": {"kind": "sinusoidal"}}, dw4(), SIZES)
    with pytest.raises(ValueError, match=r"denoising_energy_matching.*'guessing'"):
        objective_of({"kind": "guessing"}, System(**vars(system_of("gmm4"))))


# models without density


@pytest.mark.parametrize("name", ["pis", "dds"])
def test_weighted_samples_are_judged_without_a_density(name: str, tmp_path: Path) -> None:
    made = problem(cache=tmp_path)
    settings = {**objective("gmm4", name), "steps": 10}
    sampler = made.flow(0, settings)
    records = made.evaluate(sampler, rank=0, workers=1)
    assert set(records) == {f"model/{column}" for column in ("sample_id", "x", "energy", "log_weight")}
    parts = [made.evaluate(sampler, rank=rank, workers=2) for rank in range(2)]
    for key, column in records.items():
        np.testing.assert_allclose(np.concatenate([part[key] for part in parts]), column, rtol=1e-5, atol=1e-6)
    estimates = made.estimates(records, "test", expensive=True)
    assert {"ess_q", "log_z", "log_z_bound", "mean_energy", "energy_w2", "tv_2d", "w2", "modes_covered"} <= set(
        estimates
    )
    assert not {"nll", "ess_p", "path_length", "forward_kl"} & set(estimates)
    assert estimates["log_z_bound"].value <= estimates["log_z"].value
    assert estimates == made.estimates(records, "validation", expensive=True)


def test_weights_without_a_spread_are_an_exact_log_z() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(50, 2)), np.full(50, 0.7)
    model = WeightedRecords(sample_id=np.arange(50), x=x, energy=(x**2).sum(axis=1), log_weight=weight)
    found = estimate_weighted(model, reference_x=x, reference_energy=model.energy, space=gmm4().space, seed=0)
    assert found["log_z"].value == pytest.approx(0.7)
    assert found["ess_q"].value == pytest.approx(1.0)
    assert found["tv_2d"].value == 0.0


def test_the_loss_of_flow_matching_is_not_asked_of_a_probability_flow(tmp_path: Path) -> None:
    made = problem(cache=tmp_path)
    flow = made.flow(0, objective("gmm4", "idem"))
    assert isinstance(flow.field, ProbabilityFlow)
    records = made.evaluate(flow, rank=0, workers=1)
    assert "test/log_q" in records
    assert "test/fm_loss" not in records
    assert "fm_loss" not in made.estimates(records, "test")


def test_transport_distances_are_judged_where_they_are_asked_for(tmp_path: Path) -> None:
    plain, more = problem(cache=tmp_path), problem(cache=tmp_path, transport=True)
    assert set(more.evaluation) - set(plain.evaluation) == {"transport"}
    records = plain.evaluate(plain.flow(0), rank=0, workers=1)
    assert set(more.estimates(records, "test")) - set(plain.estimates(records, "test")) == {"w2"}


def test_modes_are_counted_once_and_only_where_samples_are() -> None:
    modes = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    near = np.array([[0.1, 0.0], [0.0, 0.2], [10.0, 0.5], [5.0, 5.0], [0.0, 13.5]])
    found = modes_covered_estimate(near, modes, width=1.0, seed=0)
    assert (found.value, found.n) == (2.0, 5)
    assert 0 <= found.lo <= 2 <= found.hi <= 4
    assert modes_covered_estimate(modes.repeat(50, axis=0), modes, width=1.0, seed=0).lo == 4.0
    assert np.isnan(modes_covered_estimate(np.full((3, 2), np.nan), modes, width=1.0, seed=0).value)


def test_fields_of_wide_targets_with_fine_detail_see_sinusoids() -> None:
    flow = problem("gmm40").flow(0, None)
    assert isinstance(flow, ContinuousFlow)
    assert isinstance(flow.field, SinusoidalField)
    assert flow.field.length == flow.field.output_scale == system_of("gmm40").field_length == 50.0
    assert "field_length" not in system_settings("gmm4")
