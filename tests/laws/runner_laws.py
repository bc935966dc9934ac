"""What every runner does with a source of trials, on small trials that need no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.contracts import Runner
from harness.trial import Event, TrialResult, TrialSpec
from tests.harness.runner_workers import spec

WORKER = "tests.harness.runner_workers:count"


@dataclass
class Family:
    """A source of trials, some of which may start only after others. Keeps everything that a runner did with it."""

    specs: dict[str, TrialSpec]
    parents: dict[str, str] = field(default_factory=dict)
    results: dict[str, TrialResult] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    events: dict[str, list[Event]] = field(default_factory=dict)

    def ask(self) -> TrialSpec | None:
        asked = {name for what, name in self.log if what == "ask"}
        for name, found in self.specs.items():
            parent = self.parents.get(name)
            if name not in asked and (parent is None or parent in self.results):
                self.log.append(("ask", name))
                return found
        return None

    def tell(self, result: TrialResult) -> None:
        self.log.append(("tell", result.spec.name))
        self.results[result.spec.name] = result

    @property
    def finished(self) -> bool:
        return self.results.keys() == self.specs.keys()

    def on_event(self, found: TrialSpec, event: Event) -> None:
        self.log.append(("event", found.name))
        self.events.setdefault(found.name, []).append(event)


class RunnerLaws:
    """A member is a test class with a class-scoped fixture `runner`, which does `WORKER` for every trial."""

    @pytest.fixture(scope="class")
    def family(self, runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Family:
        """A trial, one that fails, and a child of the first: run once, looked at by every law."""
        store = tmp_path_factory.mktemp("store")
        specs = {name: spec(name, store) for name in ("child", "parent", "broken")}
        family = Family(specs, parents={"child": "parent"})
        runner.run(family, family.on_event)
        return family

    def test_every_trial_is_told_exactly_once_and_as_it_was_asked(self, family: Family) -> None:
        told = sorted(name for what, name in family.log if what == "tell")
        assert told == ["broken", "child", "parent"]
        assert all(result.spec == family.specs[name] for name, result in family.results.items())
        assert all(result.wall_seconds > 0 for result in family.results.values())

    @pytest.mark.parametrize("name", ["parent", "child"])
    def test_events_come_once_and_in_order(self, family: Family, name: str) -> None:
        events = family.events[name]
        assert [event.kind for event in events] == ["workers"] + ["train"] * 5
        assert [event.step for event in events[1:]] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("name", ["parent", "child", "broken"])
    def test_a_trial_is_told_after_its_last_event(self, family: Family, name: str) -> None:
        told = family.log.index(("tell", name))
        assert ("event", name) not in family.log[told:]

    def test_a_failing_trial_is_told_failed_with_its_cause_and_the_others_finish(self, family: Family) -> None:
        assert {name: result.status for name, result in family.results.items()} == {
            "parent": "finished",
            "child": "finished",
            "broken": "failed",
        }
        assert "ValueError: trials named broken must fail" in family.results["broken"].error
        assert "\n" not in family.results["broken"].error
        assert family.results["parent"].error == ""

    def test_a_child_starts_only_after_its_parent_is_told(self, family: Family) -> None:
        assert family.log.index(("ask", "child")) > family.log.index(("tell", "parent"))

    def test_an_empty_source_is_finished_at_once(self, runner: Runner) -> None:
        family = Family({})
        runner.run(family, family.on_event)
        assert family.log == []

    def test_a_source_that_waits_for_nobody_is_an_error(self, runner: Runner, tmp_path: Path) -> None:
        family = Family({"child": spec("child", tmp_path)}, parents={"child": "never asked"})
        with pytest.raises(RuntimeError, match="must propose a trial while none is running"):
            runner.run(family, family.on_event)
