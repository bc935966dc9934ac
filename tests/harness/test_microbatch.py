"""Under a memory cap: the largest micro-batch that fits, by brute force; the same gradients; one record of it all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import calibrate, microbatch
from harness.calibrate import counted_step, measure_price, price_key
from harness.checkpoint import Store
from harness.loop import Trainer, TrainState
from harness.microbatch import Unheard, state_tensors, warm_state, within_memory
from harness.plan import Branch, BranchWork, Phase, Stop
from tests.harness.test_calibrate import trainer_of
from tests.harness.tiny import FM, PG, SETTINGS, events, root, trial

LARGE_FM = replace(FM, batch=96)
LARGE_PG = replace(PG, batch=16)
PHASES = pytest.mark.parametrize("phase", [LARGE_FM, LARGE_PG], ids=["fm", "pg"])


def peak(trainer: Trainer, flow: torch.nn.Module) -> int:
    """Of a whole step, once moments and gradients are there."""
    return counted_step(trainer, warm_state(flow, trainer.branch.phase)).peak_memory_bytes


def halves(size: int) -> list[int]:
    """size, then halves rounded up, down to one."""
    found = [size]
    while found[-1] > 1:
        found.append(math.ceil(found[-1] / 2))
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, int]]:
    """Peak memory of a whole step by phase and micro-batch."""
    found: dict[str, dict[int, int]] = {}
    for phase in (LARGE_FM, LARGE_PG):
        found[phase.name] = {}
        for size in halves(phase.batch):
            trainer, flow = trainer_of(phase, tmp_path_factory.mktemp(phase.name))
            found[phase.name][size] = peak(replace(trainer, microbatch=size), flow)
    return found


@PHASES
def test_smaller_micro_batches_take_less_memory(phase: Phase, measured: dict[str, dict[int, int]]) -> None:
    peaks = measured[phase.name]
    assert peaks[1] < 0.8 * peaks[phase.batch]
    assert min(peaks.values()) == peaks[1]


@PHASES
def test_the_largest_micro_batch_below_the_cap_is_found(
    phase: Phase, tmp_path: Path, measured: dict[str, dict[int, int]]
) -> None:
    peaks = measured[phase.name]
    whole, least = peaks[phase.batch], min(peaks.values())
    for cap in (whole, whole - 1, (whole + least) // 2, least):
        trainer, flow = trainer_of(phase, tmp_path)
        found = within_memory(trainer, flow, cap)
        best = max(size for size, taken in peaks.items() if taken <= cap)
        assert (found.microbatch or phase.batch) == best
        assert peak(found, flow) <= cap


@PHASES
def test_where_nothing_fits_one_row_is_taken_and_the_price_says_by_how_much(
    phase: Phase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    trainer, flow = trainer_of(phase, tmp_path)
    price = measure_price(trainer, flow, memory_cap_bytes=100.0)
    assert price.microbatch == 1
    assert price.per_step.peak_memory_bytes > 100


@PHASES
def test_gradients_are_the_same_up_to_rounding(
    phase: Phase, tmp_path: Path, measured: dict[str, dict[int, int]]
) -> None:
    gradients = []
    cap = sum(sorted(measured[phase.name].values())[:2]) // 2
    for limit in (None, cap):
        trainer, flow = trainer_of(phase, tmp_path)
        if limit is not None:
            trainer = within_memory(trainer, flow, limit)
            assert trainer.microbatch is not None
            assert trainer.microbatch <= phase.batch // 4
        trainer.step(TrainState.start(flow, phase))
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None]))
    assert float(gradients[0].norm()) > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * float(gradients[0].norm()))


def test_the_peak_holds_weights_gradients_and_moments(tmp_path: Path) -> None:
    trainer, flow = trainer_of(FM, tmp_path)
    state = warm_state(flow, replace(FM, ema_decay=0.9))
    before = [p.detach().clone() for p in flow.parameters()]
    parameters = sum(p.numel() for p in flow.parameters())
    counters = len(before)  # Adam counts its steps in a tensor each
    held = sum(tensor.nbytes for tensor in state_tensors(state))
    assert held == 4 * (5 * parameters + counters)  # weights, gradients, two moments, the average
    assert all(torch.equal(p, q) for p, q in zip(flow.parameters(), before, strict=True))
    assert peak(trainer, flow) > held


def test_all_workers_take_the_size_that_the_fullest_of_them_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, flow = trainer_of(LARGE_FM, tmp_path)
    tried: list[int | None] = []

    class First(Unheard):
        """Rank zero of two: the other one always takes twice as much."""

        def gather(self, value: Any) -> list[Any]:
            return [value, 2 * value]

    def taken(trainer: Trainer, flow: torch.nn.Module) -> float:
        tried.append(trainer.microbatch)
        return float(trainer.microbatch or 48)

    monkeypatch.setattr(microbatch, "tried_peak", taken)
    found = within_memory(replace(trainer, collective=First(0, 2)), flow, 24.0)
    assert tried == [None, 24, 12]
    assert found.microbatch == 12


def test_a_trial_measures_once_and_trains_in_the_recorded_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "TIMED_SECONDS", 0.0)
    used: list[int | None] = []
    original = Trainer.step

    def step(self: Trainer, *args: Any) -> Any:
        used.append(self.microbatch)
        return original(self, *args)

    branch = Branch(parent=root(), phase=LARGE_FM, seed=0)
    works = (BranchWork(branch=branch, stops=(Stop(steps=3, evaluate=False),)),)
    states = {}
    for name, cap in (("free", None), ("capped", 20_000.0)):
        spec = trial(tmp_path / name, works, calibrate=(LARGE_FM,), memory_cap_bytes=cap)
        priced = [event for event in events(spec) if event.kind == "price"]
        kept = Store(tmp_path / name).segment(branch.at(3).hash)
        assert kept is not None
        states[name] = Store(tmp_path / name).get_state(kept["state"])["weights"]
    (price,) = priced
    key = price_key(SETTINGS["system"], LARGE_FM, spec.placement, calibrate.device_kind(), 20_000.0)
    record = Store(tmp_path / "capped").price(key)
    assert record is not None
    assert 1 < record["microbatch"] < LARGE_FM.batch
    assert record["per_step"]["peak_memory_bytes"] <= 20_000
    assert price.values["microbatch"] == record["microbatch"]
    assert price.values["peak_memory_bytes"] == record["per_step"]["peak_memory_bytes"]
    for name, weight in states["free"].items():
        torch.testing.assert_close(states["capped"][name], weight, rtol=1e-3, atol=1e-5)

    monkeypatch.setattr(Trainer, "step", step)
    further = (BranchWork(branch=branch, stops=(Stop(steps=3, evaluate=False), Stop(steps=5, evaluate=False))),)
    again = trial(tmp_path / "capped", further, calibrate=(LARGE_FM,), memory_cap_bytes=20_000.0)
    assert [event.kind for event in events(again)].count("segment") == 1
    assert used == [record["microbatch"]] * 2  # two steps of training, none of calibration
