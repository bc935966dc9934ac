"""The same plan gives the same events inline and on Ray with one worker; with two, the same up to rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness.adapters.inline_runner import InlineRunner
from harness.adapters.ray_runner import RayRunner
from harness.checkpoint import Store
from harness.contracts import Runner
from harness.plan import BranchWork
from harness.source import StagedSource
from harness.trial import Event, Placement, TrialResult, TrialSpec
from tests.harness.tiny import trial, trunk_and_tails

Told = list[tuple[str, str, int, tuple[float, ...]]]


def told(runner: Runner, spec: TrialSpec) -> Told:
    """Kind, branch, step, loss and gradient norm of every event that a runner passes on."""
    seen: list[Event] = []
    results: list[TrialResult] = []
    source = StagedSource(iter([[spec]]), ready=lambda spec: True, on_result=results.append)
    runner.run(source, lambda spec, event: seen.append(event))
    assert [result.status for result in results] == ["finished"], results[0].error
    numbers = ("loss", "gradient_norm", "skipped_steps")
    return [(e.kind, e.branch, e.step, tuple(e.values[n] for n in numbers if n in e.values)) for e in seen]


def marks(store: Path, works: Sequence[BranchWork]) -> list[str]:
    segments = (Store(store).segment(segment.hash) for work in works for segment in work.segments)
    return [segment["checksum"] for segment in segments if segment is not None]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRunner]:
    with RayRunner(folder=tmp_path_factory.mktemp("ray")) as runner:
        yield runner


@pytest.mark.ray
def test_one_worker_under_ray_is_one_worker_in_this_process(session: RayRunner, tmp_path: Path) -> None:
    works = trunk_and_tails()
    here, there = (trial(tmp_path / name, works, placement=Placement(workers=1)) for name in ("here", "there"))
    inline = told(InlineRunner(), here)
    assert len(inline) > 10
    assert told(session, there) == inline
    assert marks(tmp_path / "there", works) == marks(tmp_path / "here", works)


@pytest.mark.ray
def test_two_workers_differ_by_rounding_alone(session: RayRunner, tmp_path: Path) -> None:
    works = trunk_and_tails()
    one = told(InlineRunner(), trial(tmp_path / "one", works, placement=Placement(workers=1)))
    two = told(session, trial(tmp_path / "two", works, placement=Placement(workers=2)))
    assert [event[:3] for event in two] == [event[:3] for event in one]
    for (*_, mine), (*_, yours) in zip(one, two, strict=True):
        assert mine == pytest.approx(yours, rel=1e-4)
