"""A trial end to end on a tiny problem: done once, the same after any interruption, mended after damage."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch

from harness.checkpoint import DamagedObject, Store
from harness.kept_models import judged_weights
from harness.plan import BranchWork, Stop
from harness.trial import Event, TrialSpec
from harness.worker import evaluation_key
from models.problem import build
from models.problem_settings import evaluation_settings
from tests.harness.tiny import SETTINGS, checksums, events, kinds, trial, trunk_and_tails


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A store that holds the whole tiny tree, and how it came to be. Tests only read it."""
    folder = tmp_path_factory.mktemp("done")
    return folder, list(events(trial(folder)))


@cache
def uninterrupted(folder: Path) -> dict[str, str]:
    return checksums(folder)


def shared_reference(spec: TrialSpec, folder: Path) -> TrialSpec:
    """The reference samples are the same for all; making them anew is slow."""
    target = Path(spec.store) / "reference"
    if not target.exists():
        Path(spec.store).mkdir(parents=True, exist_ok=True)
        target.symlink_to(folder / "reference")
    return spec


def object_of(store: Store, segment: str) -> Path:
    known = store.segment(segment)
    assert known is not None
    return store.folder / "objects" / known["state"]


def test_a_trial_trains_and_judges_every_stop(done: tuple[Path, list[Event]]) -> None:
    folder, found = done
    store, works = Store(folder), trunk_and_tails()
    assert found[0].kind == "workers"
    assert f"pid {__import__('os').getpid()}" in found[0].notes["rank_0"]
    assert [e.notes["segment"] for e in found if e.kind == "segment"] == [s.hash for w in works for s in w.segments]
    judged = [s.hash for w in works for s, stop in zip(w.segments, w.stops, strict=True) if stop.evaluate]
    assert [e.notes["segment"] for e in found if e.kind == "evaluated"] == judged
    key = evaluation_key(SETTINGS)
    for work in works:
        for segment, stop in zip(work.segments, work.stops, strict=True):
            assert (store.evaluation(segment.hash, key) is not None) == stop.evaluate
    assert all(store.latest(work.branch) is None for work in works)


def test_what_is_stored_is_what_was_reported(done: tuple[Path, list[Event]]) -> None:
    folder, found = done
    store = Store(folder)
    for work in trunk_and_tails():
        reported = [e for e in found if e.kind == "train" and e.branch == work.branch.hash]
        assert store.events(work.branch, up_to=100) == reported
        assert [e.step for e in reported] == sorted({e.step for e in reported})


def test_records_hold_every_sample_once(done: tuple[Path, list[Event]]) -> None:
    folder, _ = done
    store = Store(folder)
    known = store.evaluation(trunk_and_tails()[0].segments[0].hash, evaluation_key(SETTINGS))
    assert known is not None
    records = store.get_arrays(known["records"])
    for group in ("validation", "test", "model"):
        assert records[f"{group}/sample_id"].tolist() == list(range(64))
    assert known["device_seconds"] > 0


def test_the_untrained_segment_is_the_untrained_flow(done: tuple[Path, list[Event]]) -> None:
    folder, _ = done
    store = Store(folder)
    known = store.segment(trunk_and_tails()[0].segments[0].hash)
    assert known is not None
    weights = store.get_state(known["state"])["weights"]
    flow = build(SETTINGS, cache=folder).flow(0)
    assert all(torch.equal(weights[name], value) for name, value in flow.state_dict().items())


def test_the_average_is_judged_and_forked() -> None:
    saved = {"weights": {"a": torch.zeros(2), "buffer": torch.ones(1)}, "average": [torch.full((2,), 5.0)]}
    assert judged_weights(saved, ["a"])["a"].tolist() == [5.0, 5.0]
    assert judged_weights(saved, ["a"])["buffer"].tolist() == [1.0]
    assert judged_weights({**saved, "average": None}, ["a"])["a"].tolist() == [0.0, 0.0]


def test_a_second_run_does_nothing(done: tuple[Path, list[Event]]) -> None:
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert kinds(trial(folder)) == ["workers"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def killed_and_run_again(killed_after: int, done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    """Ends the trial after so many events, runs it again, and compares all that is kept with the uninterrupted run."""
    folder, found = done
    spec = shared_reference(trial(tmp_path), folder)
    run = events(spec)
    assert len(list(islice(run, killed_after))) == killed_after
    run.close()
    later = list(events(spec))
    assert checksums(tmp_path) == uninterrupted(folder)
    store = Store(tmp_path)
    for work in trunk_and_tails():
        kept = [(e.step, e.values["loss"]) for e in store.events(work.branch, up_to=100)]
        assert kept == [(e.step, e.values["loss"]) for e in found if (e.kind, e.branch) == ("train", work.branch.hash)]
    judged = {e.notes["segment"] for e in later if e.kind == "evaluated"}
    assert judged <= {e.notes["segment"] for e in found[killed_after - 1 :] if e.kind == "evaluated"}


@pytest.mark.parametrize("killed_after", [2, 7, 17, 25])
def test_a_trial_killed_at_some_event_ends_the_same(
    done: tuple[Path, list[Event]], tmp_path: Path, killed_after: int
) -> None:
    killed_and_run_again(killed_after, done, tmp_path)


@pytest.mark.faults
def test_a_trial_killed_at_any_event_ends_the_same(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    for killed_after in range(1, len(done[1])):
        killed_and_run_again(killed_after, done, tmp_path / str(killed_after))


def test_a_trial_killed_again_and_again_makes_progress(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, _ = done
    spec = shared_reference(trial(tmp_path), folder)
    for _ in range(100):
        run = events(spec)
        if len(list(islice(run, 4))) < 4:
            break
        run.close()
    assert checksums(tmp_path) == uninterrupted(folder)


@pytest.mark.parametrize("number", range(3))
def test_a_damaged_checkpoint_is_made_again(done: tuple[Path, list[Event]], tmp_path: Path, number: int) -> None:
    folder, _ = done
    spec = shared_reference(trial(tmp_path, trunk_and_tails()[:1]), folder)
    list(events(spec))
    (trunk,) = spec.works
    before = checksums(tmp_path, [trunk])
    path = object_of(Store(tmp_path), trunk.segments[number].hash)
    path.write_bytes(path.read_bytes()[:-7])
    assert kinds(spec).count("segment") == 1
    assert checksums(tmp_path, [trunk]) == before
    mended = object_of(Store(tmp_path), trunk.segments[number].hash)
    assert Store(tmp_path).get_state(mended.name)["step"] == trunk.segments[number].steps


def test_a_damaged_partial_checkpoint_costs_only_time(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, _ = done
    spec = shared_reference(trial(tmp_path, trunk_and_tails()[:1]), folder)
    run = events(spec)
    for event in run:
        if event.kind == "train" and event.step == 7:
            break
    run.close()
    latest = Store(tmp_path).latest(spec.works[0].branch)
    assert latest is not None
    assert 4 < latest["steps"] < 7
    (tmp_path / "objects" / latest["state"]).write_bytes(b"rubbish")
    later = [event.step for event in events(spec) if event.kind == "train"]
    assert later[0] == 5
    assert checksums(tmp_path, spec.works).items() <= uninterrupted(folder).items()


def test_a_child_without_its_parent_says_so_and_can_be_run_again(
    done: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    folder, _ = done
    trunk, tail, _ = trunk_and_tails()
    with pytest.raises(DamagedObject, match="must be finished before its children start"):
        list(events(trial(tmp_path, [tail])))
    list(events(shared_reference(trial(tmp_path, [trunk]), folder)))
    object_of(Store(tmp_path), tail.branch.parent).write_bytes(b"rubbish")
    with pytest.raises(DamagedObject):
        list(events(trial(tmp_path, [tail])))
    list(events(trial(tmp_path, [trunk])))
    list(events(trial(tmp_path, [tail])))
    assert checksums(tmp_path, [trunk, tail]).items() <= uninterrupted(folder).items()


def test_other_evaluation_settings_judge_again_without_training(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, _ = done
    trunk = trunk_and_tails()[0]
    list(events(shared_reference(trial(tmp_path, [trunk]), folder)))
    settings = {**SETTINGS, "evaluation": evaluation_settings("gmm4", samples=32, tolerance=1e-3)}
    assert kinds(trial(tmp_path, [trunk], problem=settings)) == ["workers", "evaluated", "evaluated"]
    assert kinds(trial(tmp_path, [trunk], problem=settings)) == ["workers"]


def test_a_larger_study_trains_only_what_is_new(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, _ = done
    trunk = trunk_and_tails()[0]
    list(events(shared_reference(trial(tmp_path, [trunk]), folder)))
    longer = replace(trunk, stops=(*trunk.stops, Stop(steps=12)))
    found = list(events(trial(tmp_path, [longer])))
    assert [e.step for e in found if e.kind == "train"] == [10, 11, 12]
    shorter = BranchWork(branch=trunk.branch, stops=(Stop(steps=4, evaluate=False), Stop(steps=9)))
    assert kinds(trial(tmp_path, [shorter])) == ["workers"]
    between = BranchWork(branch=trunk.branch, stops=(Stop(steps=6, evaluate=False),))
    assert [e.step for e in events(trial(tmp_path, [between])) if e.kind == "train"] == [5, 6]
    direct = shared_reference(trial(tmp_path / "direct", [replace(trunk, stops=(Stop(steps=12),))]), folder)
    list(events(direct))
    end = trunk.branch.at(12).hash
    assert checksums(tmp_path / "direct", direct.works)[end] == checksums(tmp_path, [longer])[end]


def test_the_tree_is_the_same_in_one_trial_and_in_many(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, _ = done
    for work in trunk_and_tails():
        list(events(shared_reference(trial(tmp_path, [work]), folder)))
    assert checksums(tmp_path) == uninterrupted(folder)


def test_one_trial_may_hold_several_seeds(done: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, _ = done
    both = (trunk_and_tails(1)[0], trunk_and_tails(0)[0])
    list(events(shared_reference(trial(tmp_path, both, seed=1), folder)))
    assert checksums(tmp_path, both[1:]).items() <= uninterrupted(folder).items()
    alone = shared_reference(trial(tmp_path / "alone", both[:1], seed=1), folder)
    list(events(alone))
    assert checksums(tmp_path / "alone", both[:1]) == checksums(tmp_path, both[:1])
