"""Workers timed in turns: who takes part in which bout, and that all ranks tell the same."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from harness import throughput
from harness.collective import Alone, Collective, ProcessGroup, first_workers
from harness.measure import measured_of
from harness.throughput import measure, worker_counts
from harness.trial import Event, Placement
from tests.harness.tiny import FM, PG, trial
from tests.harness.two_workers import TwoWorkers


def test_numbers_of_workers_double_and_end_with_all() -> None:
    assert [worker_counts(n) for n in (1, 2, 3, 4, 6)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 2, 4, 6)]


def events(store: Path, collective: Collective) -> list[Event]:
    throughput.ROUNDS, throughput.BOUT_SECONDS = 2, 0.0
    placement = Placement(workers=collective.workers)
    return list(measure(trial(store, (), calibrate=(FM, PG), placement=placement), collective))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "BOUT_SECONDS"):
        monkeypatch.setattr(throughput, name, getattr(throughput, name))


def test_one_worker_is_timed_alone_and_its_step_is_counted(tmp_path: Path, quick: None) -> None:
    measured = measured_of(events(tmp_path, Alone()), (FM, PG))
    assert [(t.phase, t.way, t.workers, t.batch) for t in measured.timings] == [
        ("fm", "alone", 1, FM.batch),
        ("pg", "alone", 1, PG.batch),
    ]
    assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in measured.timings)
    assert measured.costs["pg"]["flops"] > measured.costs["fm"]["flops"] > 0
    assert list(measured.workers) == ["rank_0"]


def as_one_of_two(collective: ProcessGroup) -> dict[str, Any]:
    first = first_workers(collective, 1)
    both = first_workers(collective, 2)
    with TemporaryDirectory() as store:
        told = events(Path(store), collective)
    values = [event.values for event in told if event.kind == "train"]
    return {
        "first": first is not None,
        "both": both is collective,
        "kinds": [event.kind for event in told],
        "values": [dict(v) for v in values],
    }


def test_two_workers_take_turns_in_every_way_and_tell_the_same(two_workers: TwoWorkers) -> None:
    zero, one = two_workers(as_one_of_two)
    assert (zero["first"], one["first"]) == (True, False)
    assert (zero["both"], one["both"]) == (True, True)
    assert zero["kinds"] == one["kinds"] == ["workers", *(["price"] + ["train"] * 2) * 2]
    assert zero["values"] == one["values"]
    assert [list(v) for v in zero["values"]] == [["alone 1", "strong 2", "weak 2", "apart 2"]] * 4
