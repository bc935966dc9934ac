"""Which trial is next: stages in order, and within a stage only what has its parents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from harness.checkpoint import Store
from harness.trial import TrialResult, TrialSpec


class StagedSource:
    """A TrialSource over stages of trials. A stage is made when every trial of the one before has ended.

    Args:
        stages: yields the trials of each stage; may read what earlier stages left in the store.
        ready: whether a trial could start now.
        on_result: told how every trial ended.
    """

    def __init__(
        self,
        stages: Iterator[Sequence[TrialSpec]],
        *,
        ready: Callable[[TrialSpec], bool],
        on_result: Callable[[TrialResult], None],
    ) -> None:
        self._stages = stages
        self._ready = ready
        self._on_result = on_result
        self._waiting: list[TrialSpec] = []
        self._running: set[str] = set()
        self._exhausted = False

    def ask(self) -> TrialSpec | None:
        while True:
            self._refill()
            for spec in self._waiting:
                if self._ready(spec):
                    self._waiting.remove(spec)
                    self._running.add(spec.hash)
                    return spec
            if self._running or not self._waiting:
                return None
            self._give_up_orphans()

    def tell(self, result: TrialResult) -> None:
        self._running.discard(result.spec.hash)
        self._on_result(result)

    @property
    def finished(self) -> bool:
        self._refill()
        return self._exhausted and not self._waiting and not self._running

    def _refill(self) -> None:
        while not (self._waiting or self._running or self._exhausted):
            stage = next(self._stages, None)
            if stage is None:
                self._exhausted = True
            else:
                self._waiting = list(stage)

    def _give_up_orphans(self) -> None:
        """Nothing runs and nothing is ready: the parents of what waits have failed."""
        orphans, self._waiting = self._waiting, []
        for spec in orphans:
            self._on_result(TrialResult(spec=spec, status="failed", error="the trial that trains its parent failed"))


def parents_are_kept(spec: TrialSpec, store: Store, roots: frozenset[str]) -> bool:
    """Whether every branch of a trial starts from a root, a finished segment, or a segment of the trial itself."""
    own = {segment.hash for work in spec.works for segment in work.segments}
    parents = {work.branch.parent for work in spec.works} - own - roots
    return all(store.segment(parent) is not None for parent in parents)
