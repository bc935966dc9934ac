"""What counts the faults finds them: in traces, in stores, and in a real study that is killed a few times."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.checkpoint import Store
from tests.faults.counts import Counts, Episode, add_to_tally, compare, events_twice, read_tally, table, weights
from tests.faults.random_kills import TALLY, RandomKills, main
from tests.faults.traced import (
    LINE_BYTES,
    SAVED,
    STEP,
    WENT_ON,
    Line,
    Repeat,
    Trace,
    lines_written,
    read_traces,
    repeats,
    trace_folder,
)
from tests.harness.test_checkpoint import BRANCH, event, keep


def lines(text: str, branch: str = "b") -> list[Line]:
    """ "from 0, step 1, kept 1": one line a second."""
    pairs = (part.split() for part in text.split(","))
    return [Line(seconds=float(n), kind=kind, branch=branch, step=int(step)) for n, (kind, step) in enumerate(pairs)]


def test_a_trace_is_read_back_in_order(tmp_path: Path) -> None:
    trace = Trace(trace_folder(tmp_path))
    for kind, step in ((WENT_ON, 0), (STEP, 1), (SAVED, 1)):
        trace.write(kind, "0123456789abcdef0123", step)
    found = read_traces(tmp_path)
    assert [(line.kind, line.step) for line in found] == [(WENT_ON, 0), (STEP, 1), (SAVED, 1)]
    assert found == sorted(found, key=lambda line: line.seconds)
    assert lines_written(tmp_path) == 3
    assert sum(file.stat().st_size for file in trace_folder(tmp_path).iterdir()) == 3 * LINE_BYTES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 0, step 1, kept 1, step 2, from 1, step 2", [(1, 1)]),
        ("from 0, step 1, kept 1, from 1, step 2", []),
        ("from 0, step 1, step 2, from 0, step 1", [(1, 2)]),
        ("from 0, step 1, kept 1, step 2, kept 2, step 3, from 1, step 2", [(2, 2)]),
        ("from 0, step 1, kept 1, step 2, kept 2, from 0, step 1", [(2, 2)]),
        ("from 0, step 1, from 0, step 1, step 2, kept 2, step 3, from 2, step 3", [(1, 1), (1, 1)]),
    ],
)
def test_repeated_intervals_are_counted(text: str, expected: list[tuple[int, int]]) -> None:
    assert [(repeat.intervals, repeat.steps) for repeat in repeats(lines(text))] == expected


def test_repeated_seconds_begin_at_the_state_that_training_went_on_from() -> None:
    assert repeats(lines("from 0, step 1, kept 1, step 2, step 3, from 1")) == [Repeat(intervals=1, steps=2, seconds=2)]


def test_branches_do_not_mix() -> None:
    assert repeats(lines("from 0, step 9, kept 9") + lines("from 0, step 1", branch="c")) == []


def test_an_event_in_two_segments_is_twice_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    keep(store, BRANCH, 4, last=(2, 4))
    assert events_twice(tmp_path) == 0
    name = keep(store, BRANCH, 8, last=(4, 8))
    assert events_twice(tmp_path) == 1
    assert weights(tmp_path) == {BRANCH.at(steps).hash: ("c",) for steps in (4, 8)}
    store.finish_segment(BRANCH.at(8), state=name, checksum="other", events=[event(8)])
    assert weights(tmp_path)[BRANCH.at(8).hash] == ("other",)


def test_counts_of_several_runs_add_up(tmp_path: Path) -> None:
    tally = tmp_path / TALLY
    for seed, kills in enumerate(({"study": 3}, {"node": 2, "study": 1})):
        counts = Counts(compared_segments=9, events_twice=seed, most_repeated_steps=5 - seed)
        add_to_tally(tally, Episode(seed=seed, kills=kills, counts=counts))
    found = read_tally(tally)
    assert [episode.seed for episode in found] == [0, 1]
    assert [episode.counts.faults for episode in found] == [0, 1]
    told = [" ".join(line.split()) for line in table(found).splitlines()]
    assert {"study 4 kills", "node 2 kills", "all 6 kills in 2 studies"} <= set(told)
    assert {"1 events twice", "0 trials lost", "18 compared segments", "5 most repeated steps"} <= set(told)


@pytest.mark.faults
def test_a_few_random_kills_leave_no_fault_and_planted_ones_are_found(tmp_path: Path) -> None:
    assert main(RandomKills(output=tmp_path, how=("inline",), kills=3, seed=5)) == 0
    (episode,) = read_tally(tmp_path / TALLY)
    assert episode.kills == {"study": 3}
    assert episode.counts.compared_segments == 9
    undisturbed, spoilt = tmp_path / "undisturbed", tmp_path / "spoilt"
    shutil.copytree(undisturbed, spoilt)
    assert compare(spoilt, undisturbed).faults == 0
    first, second, *_ = sorted((spoilt / "store" / "segments").glob("*.json"))
    first.write_text(json.dumps({**json.loads(first.read_text()), "checksum": "another"}))
    second.unlink()
    found = compare(spoilt, undisturbed)
    assert (found.weights_different, found.trials_lost, found.faults) == (1, 1, 2)
