"""Measure what workers gain and what steps cost: a study without training, run by real workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from harness.answers.export import write_csv
from harness.answers.throughput import Timing, Way, throughput_rows
from harness.checkpoint import Store
from harness.cli import StudyOptions
from harness.contracts import Point, Runner
from harness.identity import content_hash, plain
from harness.launch import check_machine, check_options, recorder_of
from harness.plan import Phase
from harness.plan_report import SUMMARY
from harness.progress import Progress
from harness.session import Setting, StudyFailed
from harness.source import StagedSource
from harness.trial import Event, Placement, TrialResult, TrialSpec

WORKER = "harness.throughput:measure"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Phases whose steps are timed. Making one starts nothing.

    Args:
        part: what is asked, for people. phases: with different names.
    """

    name: str
    part: str
    setting: Setting
    phases: tuple[Phase, ...]

    @property
    def id(self) -> str:
        return content_hash({**plain(self), "setting": self.setting.identity})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it.

    Attributes:
        timings: of every phase, way and number of workers. costs: counted, of a step of one worker by phase: "flops"
            and "peak_memory_bytes". workers: who they were, by rank.
    """

    timings: tuple[Timing, ...]
    costs: dict[str, dict[str, float]]
    workers: dict[str, str]


def run_measurement(study: Measurement, options: StudyOptions, *, experiment: str) -> tuple[Measured, Path]:
    """Measure anew, whatever was measured before; what was found, and the table that was written.

    Raises:
        ValueError: before anything starts, where this machine cannot hold the workers.
        StudyFailed: where the workers failed.
    """
    check_options(options)
    check_workers(study.setting.placement, options)
    folder = options.output / study.name / study.id
    with recorder_of(study, options, experiment) as recorder, measuring_runner(options, folder) as runner:
        measured = measure_with(runner, study, Store(options.output / "store"))
        rows, file = throughput_rows(measured.timings), folder / "throughput.csv"
        write_csv(file, rows)
        params = {"part": study.part, **{f"system.{k}": v for k, v in study.setting.problem["system"].items()}}
        recorder.start(SUMMARY, name=f"{study.part} · {study.name}", params=params, tags={"plan": study.part})
        now = time.time()
        for name in ("efficiency", "rows_per_second", "seconds"):
            metrics = {f"{name}/{row['phase']}_{row['way']}": row for row in rows}
            recorder.record(
                SUMMARY,
                [Point(metric=m, value=r[name], step=r["workers"], timestamp=now) for m, r in metrics.items()],
            )
        recorder.attach(SUMMARY, file)
        recorder.finish(SUMMARY, "finished")
    return measured, file


def measure_with(runner: Runner, study: Measurement, store: Store) -> Measured:
    """The measurement itself, by a runner whose worker is `WORKER`.

    Raises:
        StudyFailed: where the workers failed.
    """
    spec = TrialSpec(
        name=study.part,
        build=study.setting.build,
        problem=study.setting.problem,
        store=str(store.folder.resolve()),
        calibrate=study.phases,
        seed=study.setting.seeds[0],
        placement=study.setting.placement,
    )
    ended: list[TrialResult] = []
    events: list[Event] = []
    progress = Progress()

    def happened(_: TrialSpec, event: Event) -> None:
        events.append(event)
        progress.advance(f"{study.part}: {event.notes.get('phase', 'workers')}, round {event.step + 1}")

    runner.run(StagedSource(iter([[spec]]), ready=lambda _: True, on_result=ended.append), happened)
    progress.close()
    failed = [result.error for result in ended if result.status == "failed"]
    if failed:
        raise StudyFailed(f"a measurement needs all its workers, got: {failed[0]}; run the same command again")
    return measured_of(events, study.phases)


def measured_of(events: Sequence[Event], phases: Sequence[Phase]) -> Measured:
    """Rounds gathered into timings."""
    batches = {phase.name: phase.batch for phase in phases}
    rounds: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.kind == "train":
            for name, once in event.values.items():
                rounds.setdefault((event.notes["phase"], name), []).append(once)
    timings = []
    for (phase, name), seconds in rounds.items():
        way, _, count = name.partition(" ")
        assert way in get_args(Way), f"a bout is named by its way, got {name}"
        timings.append(
            Timing(
                phase=phase,
                batch=batches[phase],
                way=cast(Way, way),
                workers=int(count),
                seconds=tuple(seconds),
            )
        )
    costs = {event.notes["phase"]: dict(event.values) for event in events if event.kind == "price"}
    workers = next((dict(event.notes) for event in events if event.kind == "workers"), {})
    return Measured(timings=tuple(timings), costs=costs, workers=workers)


@contextmanager
def measuring_runner(options: StudyOptions, folder: Path) -> Iterator[Runner]:
    """Workers under Ray, or processes of this machine."""
    if options.runner == "inline":
        from harness.adapters.process_runner import ProcessRunner

        yield ProcessRunner(worker=WORKER)
        return
    from harness.adapters.ray_runner import RayRunner

    with RayRunner(address=options.address, folder=folder / "ray", worker=WORKER) as runner:
        yield runner


def check_workers(placement: Placement, options: StudyOptions) -> None:
    """Workers that share a core would measure the core: refused before anything starts."""
    check_machine(placement, options)
    need, have = placement.workers * placement.threads, len(os.sched_getaffinity(0))
    if options.runner == "inline" and need > have:
        raise ValueError(
            f"every worker needs cores of its own, got {placement.workers} workers with {placement.threads} threads "
            f"each where there are {have} cores; write fewer --workers or --threads"
        )
