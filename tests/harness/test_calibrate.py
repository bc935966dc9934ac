"""The price of a step: operations by hand count, seconds summed over workers, one price for phases of equal work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness import calibrate
from harness.calibrate import counted_step, measure_price, price_from_plain, price_key
from harness.checkpoint import Store, checksum
from harness.collective import Alone
from harness.loop import Trainer, TrainState
from harness.plan import Branch, Optimiser, Phase
from harness.trial import Placement
from models.problem import build
from tests.harness.tiny import FM, PG, SETTINGS, events, root, trial


def trainer_of(phase: Phase, tmp_path: Path) -> tuple[Trainer, Any]:
    problem = build(SETTINGS, cache=tmp_path)
    branch = Branch(parent=root(), phase=phase, seed=0)
    data = problem.training_data(0)
    return Trainer.of(branch, problem.objective(phase.objective), data, Alone()), problem.flow(0)


def products(batch: int, widths: Sequence[int]) -> int:
    """Multiply-adds count two; backward every layer has two products more, the first one only that of its weights."""
    forward = [2 * batch * a * b for a, b in pairwise(widths)]
    return sum(forward) + sum(2 * f for f in forward) - forward[0]


def test_operations_of_a_step_equal_the_count_by_hand(tmp_path: Path) -> None:
    trainer, flow = trainer_of(FM, tmp_path)
    cost = counted_step(trainer, TrainState.start(flow, FM))
    widths = (3, 8, 8, 2)  # two coordinates and time, two hidden layers, a velocity
    assert cost.flops == products(FM.batch, widths)
    assert (cost.samples, cost.field_evaluations) == (FM.batch, 2 * FM.batch)
    assert cost.peak_memory_bytes > 0


def test_operations_grow_with_the_batch_and_count_energies(tmp_path: Path) -> None:
    costs = []
    for batch in (10, 20):
        phase = replace(PG, batch=batch)
        trainer, flow = trainer_of(phase, tmp_path)
        costs.append(counted_step(trainer, TrainState.start(flow, phase)))
    assert costs[1].flops == 2 * costs[0].flops
    assert costs[1].field_evaluations == 2 * costs[0].field_evaluations > 0


def test_a_price_is_the_cost_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    trainer, flow = trainer_of(FM, tmp_path)
    price = measure_price(trainer, flow)
    assert (price.per_step.steps, price.workers, price.phase) == (1, 1, FM.price_fingerprint)
    assert price.timed_steps == calibrate.TIMED_STEPS[0]
    assert 0 < price.device_seconds_lo <= price.per_step.device_seconds <= price.device_seconds_hi
    assert price.of(7).flops == 7 * price.per_step.flops
    kept = json.loads(json.dumps({"key": {"a": 1}, **asdict(price)}))
    assert price_from_plain(kept) == price


def test_what_a_price_depends_on() -> None:
    base = price_key(SETTINGS["system"], FM, Placement(workers=1), "cpu")
    slower = replace(FM, name="other", optimiser=Optimiser(learning_rate=1e-6))
    assert price_key(SETTINGS["system"], slower, Placement(workers=1), "cpu") == base
    others = [
        price_key({**SETTINGS["system"], "hidden": 9}, FM, Placement(workers=1), "cpu"),
        price_key(SETTINGS["system"], replace(FM, batch=21), Placement(workers=1), "cpu"),
        price_key(SETTINGS["system"], replace(FM, ema_decay=0.5), Placement(workers=1), "cpu"),
        price_key(SETTINGS["system"], FM, Placement(workers=2), "cpu"),
        price_key(SETTINGS["system"], FM, Placement(workers=1, threads=2), "cpu"),
        price_key(SETTINGS["system"], FM, Placement(workers=1), "gpu"),
    ]
    assert base not in others


def test_a_price_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    spec = trial(tmp_path, (), calibrate=(FM, PG))
    first = [event for event in events(spec) if event.kind == "price"]
    assert [event.notes["phase"] for event in first] == ["fm", "pg"]
    again = [event for event in events(spec) if event.kind == "price"]
    assert [event.values for event in again] == [event.values for event in first]
    key = price_key(SETTINGS["system"], FM, spec.placement, calibrate.device_kind())
    kept = Store(tmp_path).price(key)
    assert kept is not None
    assert kept["per_step"]["flops"] == first[0].values["flops_per_step"]


def test_calibration_leaves_no_trace_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    trainer, flow = trainer_of(FM, tmp_path)
    measure_price(trainer, flow)
    _, fresh = trainer_of(FM, tmp_path)
    assert checksum(dict(fresh.state_dict())) != checksum(dict(flow.state_dict()))
    marks = []
    for calibration in ((), (FM,)):
        folder = tmp_path / str(len(calibration))
        marks += [e.notes["checksum"] for e in events(trial(folder, calibrate=calibration)) if e.kind == "segment"]
    assert marks[: len(marks) // 2] == marks[len(marks) // 2 :]
