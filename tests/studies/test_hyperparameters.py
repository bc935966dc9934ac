"""The joint sweep over a plan's settings, tiny: interrupted, resumed, trained again, and read by other programs."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness import calibrate, launch, tracking
from harness.adapters.optuna_journal import best_before
from harness.adapters.optuna_search import OptunaSearch
from harness.budget import Budget, Cost, Currency, StepPrice
from harness.checkpoint import Store, write_json
from harness.finished_study import FinishedStudy
from harness.judging import Judgement
from harness.split import Prices
from harness.sweep_points import PlanPoints
from models.problem import build
from studies.hyperparameters import HyperParameters
from tests.harness.test_recording import Remembered
from tests.studies.counted_trials import counted_trials

TINY: dict[str, Any] = {
    "target": "gmm4",
    "plans": ("fm,fm_tail", "fm,pg"),
    "budget": "6e6flop",
    "split_range": (0.3, 0.6),
    "trials": 4,
    "factor": 2,
    "rungs": 2,
    "startup": 2,
    "runner": "inline",
    "hidden": 8,
    "layers": 2,
    "train_samples": 96,
    "evaluation_samples": 32,
    "evaluation_tolerance": 1e-2,
    "fm_batch": 16,
    "pg_batch": 8,
    "solver_steps": 2,
    "coupling": "independent",
    "again": 1,
    "again_seeds": "1001,1002",
    "resamples": 2,
}


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_joint_sweep_resumes_trains_its_best_again_and_warms_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    study = HyperParameters(**TINY, output=tmp_path)
    recorded = Remembered()
    monkeypatch.setattr(launch, "recorder_of", lambda *_: nullcontext(recorded))
    counted_trials(monkeypatch, at_most=3)
    with pytest.raises(KeyboardInterrupt):
        study.execute()
    counted_trials(monkeypatch)
    text = study.execute()
    folder = tmp_path / "hyperparameters" / study.sweep().id
    write_json(folder / "study.json", tracking.described(study.sweep()))
    rows = read(folder / "trials.csv")
    assert {row["point"] for row in rows} == {"0", "1", "2", "3"}
    for row in rows:
        with_pg = row["plan"] == "fm,pg"
        assert (bool(row["pg_learning_rate"]), bool(row["fm_tail_learning_rate"])) == (with_pg, not with_pg)
        assert 0 < float(row["cost"]) <= 3e6 * int(row["steps"]) * (1 + 1e-9)
    agrees_with_the_store(study, Store(tmp_path / "store"), rows, text)
    again = read(folder / "again.csv")
    ended = sorted({row["point"]: float(row["loss"]) for row in rows if row["state"] == "finished"}.items())
    best = [point for point, _ in sorted(ended, key=lambda pair: pair[1])[:1]]
    assert {row["point"] for row in again} == set(best)
    assert {row["seed"] for row in again} == {"1001", "1002"}
    assert f"winner: point {again[0]['point']}: plan " in text
    assert "Pareto front of n =" in text
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    is_tracked(recorded, again)
    assert FinishedStudy.read(folder).winner().segment == again[0]["segment"]

    warm = HyperParameters(**{**TINY, "warm": folder, "warm_points": 1, "budget": "4e6flop"}, output=tmp_path)
    first = warm.sweep().first
    assert [point["plan"] for point in first] == [next(r["plan"] for r in rows if r["point"] == p) for p in best]
    assert warm.sweep().id != study.sweep().id
    only = best_before(folder / "search.journal", {"fm_learning_rate": study.space()["fm_learning_rate"]}, count=9)
    assert all(list(point) == ["fm_learning_rate"] for point in only)


def agrees_with_the_store(study: HyperParameters, store: Store, rows: list[dict[str, str]], text: str) -> None:
    sweep = study.sweep()
    problem = build(sweep.setting.problem, cache=store.folder / "reference")
    judgement = Judgement(sweep.question, problem, store, sweep.setting.problem)
    for row in rows:
        assert float(row["loss"]) == judgement.estimates(row["segments"], "validation")["forward_kl"].value
        assert float(row["test_loss"]) == judgement.estimates(row["segments"], "test")["forward_kl"].value
        # Later stages fork from the first one where it stands on this rung.
        known = store.segment(row["segments"])
        assert known is not None
        assert [part.split("=")[0] for part in row["stages"].split()] == row["plan"].split(",")
        assert f"{known['phase']['name']}={known['steps']}" == row["stages"].split()[1]
        parent = store.segment(known["parent"])
        assert parent is not None
        assert parent["phase"]["optimiser"]["learning_rate"] == float(row["fm_learning_rate"])
    for point in {row["point"] for row in rows}:
        mine = [row for row in rows if row["point"] == point]
        segments = [store.segment(row["segments"]) for row in mine]
        assert len({store.segment(one["parent"])["branch"] for one in segments if one}) == 1  # type: ignore[index]


def is_tracked(recorded: Remembered, again: list[dict[str, str]]) -> None:
    """Fresh losses stand in the run of their point, at the seed as a step."""
    for row in again:
        points = recorded.runs[f"point{row['point']}"]
        found = {p.value for p in points if p.metric == "again/test_loss" and p.step == int(row["seed"])}
        assert found == {float(row["test_loss"])}
        assert {p.step for p in points if p.metric == "sweep/cost"} == {1, 2}


def test_the_front_of_loss_and_cost_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    changes = {"objectives": "loss,cost", "trials": 6, "again": 2, "again_seeds": "1001,1002"}
    study = HyperParameters(**{**TINY, **changes}, output=tmp_path)
    monkeypatch.setattr(launch, "recorder_of", lambda *_: nullcontext(Remembered()))
    counted_trials(monkeypatch, at_most=4)
    with pytest.raises(KeyboardInterrupt):
        study.execute()
    counted_trials(monkeypatch)
    text = study.execute()
    sweep = study.sweep()
    folder = tmp_path / "hyperparameters" / sweep.id
    rows = read(folder / "trials.csv")
    assert [row["point"] for row in rows] == list("012345")
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        assert 3e6 <= float(row["spend"]) <= 6e6
        assert 0 < float(row["cost"]) <= float(row["spend"]) * (1 + 1e-9)
    told = {row["point"]: (float(row["loss"]), float(row["cost"])) for row in rows}
    front = {
        number
        for number, mine in told.items()
        if not any(other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in told.values())
    }
    search = OptunaSearch(
        name=sweep.name,
        space=sweep.space,
        trials=6,
        seed=sweep.setting.seeds[0],
        storage=folder / "search.journal",
        n_startup=sweep.startup,
        ladder=sweep.ladder,
        acts=sweep.acts,
        objectives=2,
    )
    assert {str(number) for number in search.front} == front
    assert {row["point"] for row in read(folder / "again.csv")} <= front
    assert "a share of" in text
    assert all(f"{number} on rung 1 " in text for number in front)
    assert sweep.id != HyperParameters(**TINY).sweep().id


def points(**changes: Any) -> PlanPoints:
    study = HyperParameters(**{**TINY, **changes})
    return PlanPoints(sweep=study.sweep(), shares_of=study.shares_of, budgets=study.rung_budgets())


def test_rungs_are_budgets_and_a_first_stage_goes_on() -> None:
    meaning = points(plans=("fm,fm_tail,pg",), budget="1200s", rungs=3, factor=2)
    assert [budget.amount for budget in meaning.budgets] == [300, 600, 1200]
    price = {"phase": "", "device": "", "workers": 1, "timed_steps": 1, "device_seconds_lo": 1, "device_seconds_hi": 1}
    second = {"fm": 1.0, "fm_tail": 1.0, "pg": 10.0}
    prices = Prices(
        by_phase={
            phase.price_fingerprint: StepPrice(per_step=Cost(device_seconds=second[phase.name]), **price)
            for phase in meaning.priced()
        }
    )
    values = {"split": 0.5, "second_split": 0.2, "fm_learning_rate": 1e-3, "pg_learning_rate": 2e-3}
    parents = []
    for rung, budget in enumerate(meaning.budgets, start=1):
        fm, tail, pg = meaning.works(values, rung, 7, prices)
        steps = [work.stops[-1].steps for work in (fm, tail, pg)]
        # Half of the budget, a tenth and four tenths, down to the grid of an eighth of an octave.
        wanted = [0.5 * budget.amount, 0.1 * budget.amount, 0.04 * budget.amount]
        assert all(0.9 * most <= n <= most for n, most in zip(steps, wanted, strict=True))
        assert meaning.cost(values, rung, prices) == steps[0] + steps[1] + 10.0 * steps[2]
        assert [work.stops[-1].evaluate for work in (fm, tail, pg)] == [False, False, True]
        assert tail.branch.parent == fm.segments[-1].hash
        assert pg.branch.parent == tail.segments[-1].hash
        parents.append((fm.branch.hash, tail.branch.hash))
    assert len({fm for fm, _ in parents}) == 1
    assert len({tail for _, tail in parents}) == 3
    tiny = PlanPoints(
        sweep=meaning.sweep,
        shares_of=meaning.shares_of,
        budgets=(Budget(amount=1e-3, currency=Currency.DEVICE_SECONDS),),
    )
    (only,) = tiny.works(values, 1, 7, prices)
    assert (only.branch.phase.name, only.stops[-1].steps, only.stops[-1].evaluate) == ("fm", 1, True)


def test_ranges_do_not_change_a_price_and_choices_do() -> None:
    meaning = points(plans=("idem,fm_own",), fm_batch=None, coupling=None)
    fingerprints = {phase.price_fingerprint for phase in meaning.priced()}
    for values in meaning.corners:
        likes = meaning.shares_of(meaning.representative(values))
        assert {stage.phase.price_fingerprint for stage in likes} <= fingerprints
    # K has three values; own rows know of the batch and of the coupling, and of the score network before them.
    assert len([phase for phase in meaning.priced() if phase.name == "idem"]) == 3
    assert len([phase for phase in meaning.priced() if phase.name == "fm_own"]) == 6


def test_settings_act_where_the_plan_has_their_phase() -> None:
    study = HyperParameters(plans=("fm", "fm,pg", "fab"))
    space, homes = study.space(), study.homes()
    assert next(iter(space)) == "plan"
    assert homes["fm_learning_rate"] == ("fm", "fm,pg")
    assert homes["solver_steps"] == ("fm,pg",)
    assert homes["split"] == ("fm,pg",)
    assert not {"second_split", "dem_clip", "ml_batch"} & space.keys()
    (fm,) = study.shares_of({"plan": "fm", "fm_learning_rate": 0.5, "pg_learning_rate": 0.1, "split": 0.3})
    assert (fm.phase.optimiser.learning_rate, fm.share) == (0.5, 1.0)
    first, second = study.shares_of({"plan": "fm,pg", "pg_learning_rate": 0.1, "solver_steps": 7, "split": 0.3})
    assert (first.share, second.share) == (0.3, 0.7)
    assert (second.phase.optimiser.learning_rate, second.phase.objective["solver_steps"]) == (0.1, 7)
    fixed = HyperParameters(plans=("fm,pg",), pg_batch=64)
    assert not {"plan", "pg_batch"} & fixed.space().keys()
    assert HyperParameters(plans=("fm,pg",), trials=99).sweep().id == HyperParameters(plans=("fm,pg",)).sweep().id
    assert fixed.sweep().id != HyperParameters(plans=("fm,pg",)).sweep().id
    json.dumps(study.sweep().acting({"plan": "fm", "split": 0.1}))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no plan": ({"plans": ()}, "--plans fm,pg"),
    "plans alike": ({"plans": ("fm", "fm")}, "--plans fm,pg"),
    "unknown phase": ({"plans": ("fm,xx",)}, r"a plan is one to 4 of fm, pg, .* got 'fm,xx'; write"),
    "too long": ({"plans": ("fm,fm,fm,fm,fm",)}, "a plan is one to 4"),
    "from nothing": ({"plans": ("fm_own",)}, "samples of the stage before"),
    "no density": ({"plans": ("pis",)}, "--plans pis,fm_own"),
    "split of one": ({"split_range": (0.5, 1.0)}, "--split-range 0.05 0.95"),
    "no range": ({"rate_factor": 1.0}, "--rate-factor 1.0"),
    "one trial": ({"trials": 1}, "--trials 30"),
    "no rungs": ({"rungs": 0}, "--rungs 3"),
    "seeds that chose": ({"again_seeds": "0,5"}, "--again-seeds 1001,1002,1003"),
    "fewer than none": ({"again": -1}, "--again 3"),
    "no journal": ({"warm": Path("gone")}, "--warm with the folder of a sweep"),
    "no points of it": ({"warm_points": 0}, "--warm-points 5"),
    "no resamples": ({"resamples": 1}, "--resamples 50"),
    "no budget": ({"budget": "5"}, "needs a unit"),
    "a front that is pruned": (
        {"objectives": "loss,cost", "pruner": "median"},
        "--pruner median --rungs 2; leave both",
    ),
    "a front of one budget": ({"objectives": "loss,cost", "rungs": 1}, "--rungs 1; leave both out"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told_before_anything_starts(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        HyperParameters(**{**TINY, **change}, output=tmp_path / "results").execute()
    assert list(tmp_path.iterdir()) == []
