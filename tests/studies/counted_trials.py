"""Trials of the inline runner, counted, and broken off where a test wants it."""

from __future__ import annotations

from typing import Any

import pytest

from harness.adapters.inline_runner import InlineRunner
from harness.trial import TrialSpec

RUN_TRIAL = InlineRunner._run_trial


def counted_trials(monkeypatch: pytest.MonkeyPatch, *, at_most: int = 1000) -> list[TrialSpec]:
    """The trials that are started from here on, as they start; the one after `at_most` is interrupted."""
    started: list[TrialSpec] = []

    def counted(self: InlineRunner, spec: TrialSpec, on_event: Any) -> Any:
        if len(started) == at_most:
            raise KeyboardInterrupt
        started.append(spec)
        return RUN_TRIAL(self, spec, on_event)

    monkeypatch.setattr(InlineRunner, "_run_trial", counted)
    return started
