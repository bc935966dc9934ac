"""The comparison of energy-only samplers: its plans as values, and a whole one in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import calibrate
from harness.budget import Currency
from harness.plan_run import PlanCells, PlanStudyRun
from models.estimators import total_variation_2d, wasserstein_2, wasserstein_2_energy
from models.reference.within import evaluations
from studies import samplers_rows
from studies.samplers import Samplers
from studies.samplers_report import report
from studies.samplers_rows import CHAINS, FLOOR, FLOW, SAMPLER, SamplerRow, rows_of
from tests.studies.test_energy_options import SMALL
from tests.studies.test_trajectory_length import Described, run_of
from tests.studies.test_trajectory_length import rows_of as csv_rows_of

TINY: dict[str, Any] = {
    **SMALL,
    "own_samples": 80,
    "control_batch": 16,
    "methods": ("idem", "pis"),
    "spend": "4",
    "own": "3",
}
Done = tuple[PlanStudyRun, PlanCells, str, Described]


@pytest.fixture(autouse=True)
def short_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A whole study of two seeds with its report."""
    output = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "TIMED_SECONDS", 0.0)
        run, recorder, _ = run_of(Samplers(**{**TINY, "seeds": "2"}).study(), output)
        cells = run.run()
        assert not run.session.failures
        (run.folder / "study.json").write_text("{}")
        return run, cells, report(run, cells), recorder


@pytest.fixture(scope="module")
def rows(done: Done) -> list[SamplerRow]:
    run, cells, *_ = done
    return rows_of(run, cells)


def of(rows: list[SamplerRow], kind: str, method: str = "idem", seed: int | None = 0) -> SamplerRow:
    (found,) = [row for row in rows if (row.kind, row.method, row.seed) == (kind, method, seed)]
    return found


# what is asked


def test_a_plan_for_every_method_ends_with_a_flow_on_its_samples() -> None:
    study = Samplers(**TINY).study()
    assert tuple(study.plans) == ("idem", "pis")
    for method, plan in study.plans.items():
        assert [(stage.phase.name, stage.spend) for stage in plan.stages] == [(method, 4), ("fm_own", 3)]
        own = plan.stages[1].phase.objective
        assert own["coupling"] == "optimal-transport"
        assert (own["data"]["from"], own["data"]["rows"], own["data"]["resampled"]) == ("parent", 80, False)
    assert study.setting.problem["evaluation"]["transport"]
    assert tuple(Samplers(target="dw4").study().plans) == ("idem", "pdem", "pis", "dds", "fab")


def test_the_study_has_a_name_of_its_own_for_every_question() -> None:
    changes: list[dict[str, Any]] = [{}, {"spend": "5"}, {"own": "4"}, {"methods": ("idem",)}, {"transport": False}]
    changes += [{"mcmc_evaluations": 500}, {"coupling": "independent"}, {"own_samples": 90}]
    assert len({Samplers(**{**TINY, **change}).study().id for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"methods": ("fm",)}, r"learns from the energy alone: idem.*got fm; write one of these"),
        ({"methods": ("idem", "idem")}, "write each once"),
        ({"methods": ()}, "at least one plan"),
        ({"spend": "0"}, "write for example idem=100"),
        ({"own": "much"}, "write for example 60s"),
        ({"own_samples": 40}, "write --own-samples 64 or more"),
        ({"mcmc_evaluations": 255}, "write 256 or more"),
    ],
)
def test_options_that_make_no_sense_are_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        Samplers(**{**TINY, "output": tmp_path, **change}).execute()
    assert not list(tmp_path.iterdir())


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    text = Samplers(**TINY, output=tmp_path, dry_run=True).execute()
    for word in ("idem", "pis", "fm_own", "4 steps", "3 steps", "4 models, 4 to be judged"):
        assert word in text
    assert not (tmp_path / "store" / "segments").exists()


# what is found


def test_every_method_and_seed_has_its_rows_and_one_floor_stands_below(rows: list[SamplerRow]) -> None:
    places = [(row.method, row.seed, row.kind) for row in rows]
    kinds = (SAMPLER, FLOW, CHAINS)
    assert places == [(m, s, kind) for m in ("idem", "pis") for s in (0, 1) for kind in kinds] + [("", None, FLOOR)]


def test_distances_of_a_sampler_are_those_of_what_the_flow_was_fitted_to(done: Done, rows: list[SamplerRow]) -> None:
    run, *_ = done
    problem = samplers_rows.problem_of(run)
    reference = problem.points("test").numpy()
    for method in ("idem", "pis"):
        row, branch = of(rows, SAMPLER, method), run.tracks[method].ends(0)[1].branch
        x = samplers_rows.made_rows(run, branch)[:64].double()
        found = row.estimates
        assert found["w2"].value == pytest.approx(wasserstein_2(x.numpy(), reference))
        assert found["tv_2d"].value == pytest.approx(total_variation_2d(x.numpy(), reference))
        energies = (problem.physics.target.energy(torch.as_tensor(v)).numpy() for v in (x, reference))
        assert found["energy_w2"].value == pytest.approx(wasserstein_2_energy(*energies))
        assert {found[name].n for name in ("w2", "tv_2d", "energy_w2", "modes_covered", "mean_energy")} == {64}


def test_densities_and_flows_are_those_of_the_judged_cells(done: Done, rows: list[SamplerRow]) -> None:
    _, cells, *_ = done
    for method in ("idem", "pis"):
        sampler, flow = cells[method][0]
        for name in ("ess_q", "log_z", "log_z_bound"):
            assert of(rows, SAMPLER, method).estimates[name] == sampler.test[name]
        assert of(rows, FLOW, method).estimates == flow.test
        assert of(rows, FLOW, method).estimates["nll"].n == 64
        assert of(rows, FLOW, method).cost.device_seconds == flow.cost(Currency.DEVICE_SECONDS)
    assert "nll" in of(rows, SAMPLER, "idem").estimates
    assert "nll" not in of(rows, SAMPLER, "pis").estimates


def test_chains_call_as_much_as_the_sampler_and_no_more(done: Done, rows: list[SamplerRow]) -> None:
    run, cells, *_ = done
    for method in ("idem", "pis"):
        sampler, chains = of(rows, SAMPLER, method), of(rows, CHAINS, method)
        trained = cells[method][0][0].tail_cost
        assert sampler.evaluations >= trained.energy_evaluations + trained.force_evaluations > 0
        # A last trajectory may not fit any more, and no chain is given more than another.
        assert sampler.evaluations - 64 * 3 < chains.evaluations <= sampler.evaluations
        ends, _ = samplers_rows.kept_chains(run, 0, sampler.evaluations)
        assert evaluations(ends.work) == chains.evaluations
        assert "w2" in chains.estimates
        assert not {"nll", "ess_q", "log_z"} & set(chains.estimates)
        assert chains.estimates["w2"].value == pytest.approx(
            wasserstein_2(ends.x_CD.numpy(), samplers_rows.problem_of(run).points("test").numpy())
        )


def test_the_floor_is_one_reference_set_against_another(done: Done, rows: list[SamplerRow]) -> None:
    problem = samplers_rows.problem_of(done[0])
    one, other = (problem.points(split) for split in ("validation", "test"))
    floor = of(rows, FLOOR, "", None).estimates
    assert floor["w2"].value == pytest.approx(wasserstein_2(one.numpy(), other.numpy()))
    assert floor["tv_2d"].value == pytest.approx(total_variation_2d(one.numpy(), other.numpy()))
    assert 0 < floor["w2"].value < min(of(rows, kind).estimates["w2"].value for kind in (SAMPLER, FLOW))
    assert {e.n for e in floor.values()} == {64}
    target = problem.physics.target
    assert target.log_z is not None
    assert floor["nll"].value == pytest.approx(float(target.energy(other).mean()) + target.log_z)
    assert "ess_q" not in floor


def test_the_files_hold_every_row_and_the_means_over_seeds(done: Done, rows: list[SamplerRow]) -> None:
    run, _, text, recorder = done
    written = csv_rows_of(run.folder / "samplers.csv")
    assert [row["seed"] for row in written] == ["0", "1", "all"] * 6 + [""]
    for one, two, mean in zip(written[:18:3], written[1:18:3], written[2:18:3], strict=True):
        assert float(mean["w2"]) == pytest.approx((float(one["w2"]) + float(two["w2"])) / 2)
        assert (one["w2_n"], mean["w2_n"], mean["w2_seed_lo"]) == ("64", "2", "")
        assert float(one["w2_eval_lo"]) <= float(one["w2"]) <= float(one["w2_eval_hi"])
        ours = of(rows, one["kind"], one["method"])
        assert float(one["w2"]) == ours.estimates["w2"].value
        assert int(one["energy_evaluations"]) + int(one["force_evaluations"]) == ours.evaluations
        assert (one["nll"] == "") == ("nll" not in ours.estimates)
    pictures = [f"{kind}_{method}.png" for method in ("idem", "pis") for kind in ("samples", "energies")]
    for name in pictures:
        assert (run.folder / name).read_bytes().startswith(b"\x89PNG")
    assert recorder.files["summary"] == ["stages.csv", "samplers.csv", *pictures, "study.json"]
    for words in ("idem, HMC at its cost", "pis, fitted flow", "W2 (n = 64)", "log Z", "modes", "energies and forces"):
        assert words in text
    assert text.index("idem, HMC") < text.index("pis, sampler") < text.index("\nfloor")


def test_what_is_known_is_neither_trained_nor_run_again(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cells, text, _ = done

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("known already")

    monkeypatch.setattr(samplers_rows, "chain_ends", never)
    monkeypatch.setattr(samplers_rows, "write_json", never)
    again, _, runner = run_of(Samplers(**{**TINY, "seeds": "2"}).study(), run.folder.parents[1])
    assert repr(again.run()) == repr(cells)
    assert runner.kinds == []
    assert report(again, cells) == text


def test_chains_may_be_held_to_fewer_evaluations_or_left_out(done: Done) -> None:
    output = done[0].folder.parents[1]
    held, _, runner = run_of(Samplers(**TINY, mcmc_evaluations=300).study(), output)
    cells = held.run()
    assert runner.kinds == []
    found = rows_of(held, cells)
    assert {row.evaluations for row in found if row.kind == CHAINS} == {256}


def test_a_method_too_cheap_for_chains_says_so(tmp_path: Path) -> None:
    options = {**TINY, "methods": ("pis",), "spend": "1", "own": "1", "control_batch": 2, "own_samples": 64}
    options |= {"control_score_clip": 0.0}  # a share of the score calls it at every step
    run, *_ = run_of(Samplers(**options).study(), tmp_path)
    cells = run.run()
    (run.folder / "study.json").write_text("{}")
    assert CHAINS not in {row.kind for row in rows_of(run, cells)}
    assert "pis: too few evaluations for 64 chains" in report(run, cells)


def test_particles_are_told_modulo_symmetry_with_their_distances(tmp_path: Path) -> None:
    changes = {"target": "tests.studies.harmonic:harmonic", "methods": ("dds",), "evaluation_samples": 32}
    run, *_ = run_of(Samplers(**{**TINY, **changes}).study(), tmp_path)
    cells = run.run()
    assert not run.session.failures
    (run.folder / "study.json").write_text("{}")
    text = report(run, cells)
    found = {row.kind: row.estimates for row in rows_of(run, cells)}
    for kind in (SAMPLER, FLOW, CHAINS, FLOOR):
        assert {"w2", "w2_equivariant", "tv_distances"} <= set(found[kind])
        assert found[kind]["w2_equivariant"].value < found[kind]["w2"].value
    assert "W2 modulo symmetry (n = 32)" in text
    assert "modes" not in text
    assert (run.folder / "samples_dds.png").exists()
    assert not (run.folder / "energies_dds.png").exists()
