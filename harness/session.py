"""Session: the trials of one study against one store. Prices, placement, progress and failures; knows no question."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.address import resolve
from harness.answers.question import Question
from harness.budget import StepPrice
from harness.calibrate import device_kind, price_from_plain, price_key
from harness.checkpoint import Store, read_json, write_json
from harness.contracts import Problem, Runner, TrialSource
from harness.identity import Settings, plain
from harness.judging import Judgement
from harness.plan import BranchWork, Phase, root_hash
from harness.progress import Progress
from harness.source import StagedSource, parents_are_kept
from harness.split import Prices
from harness.trial import Event, Placement, TrialResult, TrialSpec
from harness.watch import Watch

SECONDS_BETWEEN_RECORDS = 30.0
"""A running study can be watched in the tracker, this far behind."""


class StudyFailed(RuntimeError):
    """A study could not go on; what was made is kept."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials of a study share.

    Args:
        build: "module:function" that makes the Problem of `problem` = {"system": ..., "evaluation": ...}.
        seeds: of the study; the first one is used where any would do.
        checkpoint_seconds: longest training between two checkpoints.
        memory_cap_bytes: most memory that a worker's step may take, by micro-batches where it must; or None.
    """

    build: str
    problem: Settings
    seeds: tuple[int, ...]
    placement: Placement
    checkpoint_seconds: float = 20.0
    memory_cap_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.memory_cap_bytes is not None and not self.memory_cap_bytes > 0:
            raise ValueError(
                f"a memory cap must be positive, got {self.memory_cap_bytes} bytes; write for example "
                "--memory-cap-gib 8"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different and at least one, got {self.seeds}; write for example --seeds 3")

    def root(self, seed: int) -> str:
        return root_hash(self.problem["system"], seed)

    @property
    def identity(self) -> dict[str, Any]:
        """What of it makes a study another study: not how often it is saved, and a memory cap where there is one."""
        value = plain(self)
        del value["checkpoint_seconds"]
        if self.memory_cap_bytes is None:
            del value["memory_cap_bytes"]
        return value


class Asked(Protocol):
    """What a session needs to know of a study."""

    @property
    def name(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def setting(self) -> Setting: ...

    @property
    def question(self) -> Question: ...


class Session:
    """Runs stages of trials and keeps what they report, in a folder of the study and a store of all studies.

    Args:
        study: its question is by which segments are judged. output: holds the study's folder and the store.
        on_judged: called now and then while segments are being judged, to record what there is.
    """

    def __init__(
        self,
        study: Asked,
        *,
        output: Path,
        runner: Runner,
        progress: Progress | None = None,
        on_judged: Callable[[], None] = lambda: None,
    ) -> None:
        setting = study.setting
        self.setting = setting
        self.folder = output / study.name / study.id
        self.store = Store(output / "store")
        self.runner = runner
        self.progress = progress or Progress(title=study.name)
        self.problem: Problem = resolve(setting.build)(setting.problem, cache=self.store.folder / "reference")
        self.judgement = Judgement(study.question, self.problem, self.store, setting.problem)
        self.watch = Watch(self.progress, self.judgement)
        self.failures: list[TrialResult] = []
        self._on_judged = on_judged
        self._told_at = time.monotonic()

    def run(self, stages: Iterator[Sequence[TrialSpec]]) -> None:
        """Run all stages to their end. Failed trials are kept in `failures`, others go on."""
        self.run_source(StagedSource(stages, ready=self._ready, on_result=self.keep_result))

    def run_source(self, source: TrialSource) -> None:
        """Run the trials of a source, which tells `keep_result` how they ended."""
        try:
            self.runner.run(source, self._happened)
        finally:
            self.progress.close()

    def spec(self, name: str, seed: int, **work: Any) -> TrialSpec:
        """A trial of this study."""
        return TrialSpec(
            name=name,
            build=self.setting.build,
            problem=self.setting.problem,
            store=str(self.store.folder.resolve()),
            seed=seed,
            placement=self.setting.placement,
            checkpoint_seconds=self.setting.checkpoint_seconds,
            memory_cap_bytes=self.setting.memory_cap_bytes,
            **work,
        )

    def is_missing(self, work: BranchWork) -> bool:
        """Whether a stop of a branch is yet to be trained or judged."""
        return any(
            self.store.segment(segment.hash) is None
            or (stop.evaluate and not self.judgement.is_evaluated(segment.hash))
            for segment, stop in zip(work.segments, work.stops, strict=True)
        )

    @property
    def failed_seeds(self) -> set[int]:
        return {work.branch.seed for result in self.failures for work in result.spec.works}

    # prices

    def calibration(self, phases: Sequence[Phase]) -> Sequence[TrialSpec]:
        """The trial that measures what is not on record, if anything."""
        missing: dict[str, Phase] = {}
        for phase in phases:
            if self._known_price(phase) is None:
                missing.setdefault(phase.price_fingerprint, phase)
        return [self.spec("prices", self.setting.seeds[0], calibrate=tuple(missing.values()))] if missing else []

    def prices(self, phases: Sequence[Phase]) -> Prices:
        """The recorded step prices.

        Raises:
            StudyFailed: where a phase was never priced, because the calibration failed.
        """
        found = {}
        for phase in phases:
            known = self._known_price(phase)
            if known is None:
                why = self.failures[-1].error if self.failures else "no worker measured it"
                raise StudyFailed(f"a step of {phase.name} needs a price before budgets mean steps, got none: {why}")
            found[phase.price_fingerprint] = self._within_memory(phase, price_from_plain(known))
        return Prices(by_phase=found)

    def _within_memory(self, phase: Phase, price: StepPrice) -> StepPrice:
        """Budgets are compared at equal memory: a step that no micro-batch brings below the cap ends the study."""
        used, cap = price.per_step.peak_memory_bytes, self.setting.memory_cap_bytes
        if cap is not None and used > cap:
            rows = "one row" if price.microbatch == 1 else f"{price.microbatch or 'all'} rows"
            raise StudyFailed(
                f"a step of {phase.name} must fit into {cap / 2**30:.3g} GiB a worker, got {used / 2**30:.3g} GiB with "
                f"{rows} at a time; write a larger --memory-cap-gib, or a smaller field"
            )
        return price

    def _known_price(self, phase: Phase) -> dict[str, Any] | None:
        setting = self.setting
        key = price_key(setting.problem["system"], phase, setting.placement, self._device(), setting.memory_cap_bytes)
        return self.store.price(key)

    def _device(self) -> str:
        """The device that prices hold for: the one that this study's workers met, or else this machine's."""
        known = read_json(self.folder / "device.json")
        return known["device"] if known else device_kind()

    # what happens on the way

    def announce(self, works: Sequence[tuple[str, BranchWork]], prices: Prices) -> None:
        """Tell the progress what is to come. Args: works: branches with the name that people see."""
        self.watch.announce(works, prices)

    def _ready(self, spec: TrialSpec) -> bool:
        roots = frozenset(self.setting.root(work.branch.seed) for work in spec.works)
        return parents_are_kept(spec, self.store, roots)

    def keep_result(self, result: TrialResult) -> None:
        self.progress.ended(result.spec.name)
        if result.status == "failed":
            self.failures.append(result)
            self.progress.note(f"trial {result.spec.name} failed: {result.error}")

    def _happened(self, spec: TrialSpec, event: Event) -> None:
        reactions: dict[str, Callable[[TrialSpec, Event], None]] = {
            "workers": self._keep_proof,
            "price": self._keep_device,
            "train": self.watch.trained,
            "evaluated": self._evaluated,
            "segment": self.watch.trained,
        }
        reactions[event.kind](spec, event)

    def _keep_proof(self, spec: TrialSpec, event: Event) -> None:
        """Who worked on what: rank, host, process and device of every worker of every trial."""
        path = self.folder / "workers.json"
        write_json(path, [*(read_json(path) or []), {"trial": spec.name, "time": event.timestamp, **event.notes}])
        self.watch.begun(spec, int(event.values["workers"]))

    def _keep_device(self, spec: TrialSpec, event: Event) -> None:
        write_json(self.folder / "device.json", {"device": event.notes["device"]})
        milliseconds, rows = event.values["device_seconds_per_step"] * 1e3, event.values.get("microbatch")
        self.progress.note(
            f"a step of {event.notes['phase']} costs {milliseconds:.3g} device-milliseconds and takes "
            f"{event.values['peak_memory_bytes'] / 2**20:.3g} MiB a worker"
            + ("" if rows is None else f" with {rows:.0f} rows at a time")
        )

    def _evaluated(self, spec: TrialSpec, event: Event) -> None:
        self.watch.judged(spec, event)
        if time.monotonic() - self._told_at > SECONDS_BETWEEN_RECORDS:
            self._on_judged()
            self._told_at = time.monotonic()
