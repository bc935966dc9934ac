"""A staged source: children wait for their parents, stages for each other, and failures end only what needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.checkpoint import Store
from harness.plan import Branch, BranchWork, Stop
from harness.source import StagedSource, parents_are_kept
from harness.trial import TrialResult, TrialSpec
from tests.harness.tiny import FM, PG, root, trial, trunk_and_tails


def spec(name: str) -> TrialSpec:
    return TrialSpec(name=name, build="m:f", problem={}, store="s")


class Stages:
    """Stages of named trials; a trial is ready unless its name is blocked."""

    def __init__(self, *stages: str) -> None:
        self.made: list[str] = []
        self.ended: list[TrialResult] = []
        self.blocked: set[str] = set()
        self.source = StagedSource(
            self._stages(stages), ready=lambda s: s.name not in self.blocked, on_result=self.ended.append
        )

    def _stages(self, stages: Sequence[str]) -> Iterator[Sequence[TrialSpec]]:
        for stage in stages:
            self.made.append(stage)
            yield [spec(name) for name in stage]

    def ask(self) -> str | None:
        found = self.source.ask()
        return None if found is None else found.name

    def tell(self, name: str, status: str = "finished") -> None:
        self.source.tell(TrialResult(spec=spec(name), status=status))  # type: ignore[arg-type]


def test_a_stage_is_made_when_the_one_before_has_ended() -> None:
    stages = Stages("ab", "c")
    assert [stages.ask(), stages.ask(), stages.ask()] == ["a", "b", None]
    assert stages.made == ["ab"]
    stages.tell("a")
    assert (stages.ask(), stages.made) == (None, ["ab"])
    stages.tell("b", "failed")
    assert (stages.ask(), stages.made) == ("c", ["ab", "c"])
    assert not stages.source.finished
    stages.tell("c")
    assert stages.source.finished
    assert stages.ask() is None
    assert [(r.spec.name, r.status) for r in stages.ended] == [("a", "finished"), ("b", "failed"), ("c", "finished")]


def test_empty_stages_are_passed_over() -> None:
    stages = Stages("", "", "a", "")
    assert stages.ask() == "a"
    stages.tell("a")
    assert stages.source.finished
    assert Stages().source.finished
    assert Stages("", "").ask() is None


def test_what_is_not_ready_waits_and_the_rest_goes_on() -> None:
    stages = Stages("abc")
    stages.blocked = {"a", "c"}
    assert [stages.ask(), stages.ask()] == ["b", None]
    stages.blocked = {"c"}
    assert stages.ask() == "a"
    stages.blocked = set()
    stages.tell("b")
    assert stages.ask() == "c"


def test_orphans_fail_and_the_next_stage_starts_at_once() -> None:
    stages = Stages("abc", "d")
    stages.blocked = {"b", "c"}
    assert stages.ask() == "a"
    stages.tell("a", "failed")
    assert stages.ask() == "d"
    assert [(r.spec.name, r.status) for r in stages.ended] == [("a", "failed"), ("b", "failed"), ("c", "failed")]
    assert "parent" in stages.ended[-1].error
    stages.tell("d")
    assert stages.source.finished


def test_a_source_of_orphans_alone_ends() -> None:
    stages = Stages("a")
    stages.blocked = {"a"}
    assert stages.ask() is None
    assert stages.source.finished
    assert len(stages.ended) == 1


def test_parents_are_roots_own_segments_or_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    roots = frozenset({root()})
    trunk, tail, _ = trunk_and_tails()
    assert parents_are_kept(trial(tmp_path), store, roots)
    assert parents_are_kept(trial(tmp_path, [trunk]), store, roots)
    assert not parents_are_kept(trial(tmp_path, [trunk]), store, frozenset())
    assert not parents_are_kept(trial(tmp_path, [tail]), store, roots)
    store.finish_segment(trunk.branch.at(4), state="s.pt", checksum="c", events=[])
    assert parents_are_kept(trial(tmp_path, [tail]), store, roots)
    far = BranchWork(branch=Branch(parent=tail.branch.at(5).hash, phase=FM, seed=0), stops=(Stop(steps=1),))
    assert not parents_are_kept(trial(tmp_path, [far]), store, roots)
    assert PG.fingerprint == tail.branch.phase.fingerprint
