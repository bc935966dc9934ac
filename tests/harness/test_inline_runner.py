"""The inline runner keeps the runner laws; addresses of functions are resolved with clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.adapters.inline_runner import InlineRunner
from harness.address import resolve
from harness.contracts import Runner
from harness.trial import Event, TrialSpec
from tests.harness.runner_workers import spec
from tests.laws.runner_laws import WORKER, Family, RunnerLaws


class TestInlineRunner(RunnerLaws):
    @pytest.fixture(scope="class")
    def runner(self) -> Runner:
        return InlineRunner(worker=WORKER)


def test_more_workers_than_this_process_are_refused(tmp_path: Path) -> None:
    family = Family({"pair": spec("pair", tmp_path, workers=2)})
    with pytest.raises(ValueError, match="got a trial for 2; write --workers 1 or --runner ray"):
        InlineRunner(worker=WORKER).run(family, family.on_event)


def test_threads_are_those_of_the_trial_and_are_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    family = Family({"threads": spec("threads", tmp_path, threads=before + 1)})
    InlineRunner(worker=WORKER).run(family, family.on_event)
    assert int(family.events["threads"][0].notes["rank_0"].split()[2]) == before + 1
    assert torch.get_num_threads() == before


def test_an_error_of_the_recording_side_is_not_taken_for_the_trials(tmp_path: Path) -> None:
    def full(found: TrialSpec, event: Event) -> None:
        raise OSError("no space left")

    family = Family({"one": spec("one", tmp_path)})
    with pytest.raises(OSError, match="no space left"):
        InlineRunner(worker=WORKER).run(family, full)
    assert family.results == {}


def test_ctrl_c_passes_through(tmp_path: Path) -> None:
    family = Family({"one": spec("one", tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        InlineRunner(worker="tests.harness.runner_workers:interrupted").run(family, family.on_event)
    assert family.results == {}


def test_an_address_names_a_function() -> None:
    assert resolve("tests.harness.runner_workers:spec") is spec


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no_colon", "an address is a module and a function, got 'no_colon'"),
        (":function", "an address is a module and a function"),
        ("harness.absent:function", "must be importable, got 'harness.absent:function'"),
        ("harness.address:absent", "write the name of one that harness.address defines"),
        ("harness.collective:torch", "must name something callable"),
    ],
)
def test_an_address_that_leads_nowhere_says_why(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(address)
