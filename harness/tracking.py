"""Where a study's records go: its tracker, its page in MLflow, and study.json, by which it can be repeated."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from harness.checkpoint import write_json
from harness.cli import StudyOptions
from harness.contracts import Recorder
from harness.dashboard import HOST, PORT
from harness.identity import plain
from harness.online_study import OnlineStudy
from harness.plan_study import PlanComparison, PlanStudy
from harness.spool import SPOOL
from harness.study import Study
from harness.sweep import Sweep
from harness.told import without_passwords
from harness.view import View, plan_view, split_view, sweep_view

PACKAGES = ("torch", "torchdyn", "pot", "ray", "optuna", "mlflow", "numpy", "scipy")


class Named(Protocol):
    """A study as a value, of whatever kind."""

    @property
    def name(self) -> str: ...

    @property
    def id(self) -> str: ...


@contextmanager
def recorder_of(study: Named, options: StudyOptions, experiment: str) -> Iterator[Recorder]:
    """The tracker with a view of the study, or a spool while it is away; and study.json."""
    from harness.adapters.mlflow_recorder import recorder_at
    from harness.patient_recorder import PatientRecorder

    uri = options.tracking_uri
    folder, view = options.output / study.name / study.id, view_of(study)
    write_json(folder / "study.json", described(study))
    destination = {"study": study.id, "experiment": experiment, "tracking_uri": uri}

    def tracker() -> Recorder:
        opened = recorder_at(options.output, destination)
        if view is not None:
            opened.arrange(view)
        return opened

    # A password is not written down: without it, only the study's own command can send what waits.
    told = destination if uri is None or without_passwords(uri) == uri else None
    recorder = PatientRecorder(tracker, file=folder / SPOOL, destination=told)
    try:
        yield recorder
    finally:
        recorder.close()


def view_of(study: Named) -> View | None:
    """What the study's page shows when it is opened; None where nothing was thought of."""
    if isinstance(study, Study | OnlineStudy):
        return split_view(study.question, study.currency)
    if isinstance(study, Sweep):
        always = tuple(name for name in study.space if name not in study.acts)
        return sweep_view(study.question.metric, tuple(study.space), always=always, costs=bool(study.rung_names))
    return plan_view(study.question) if isinstance(study, PlanStudy | PlanComparison) else None


def where_to_look(recorder: Recorder, options: StudyOptions) -> str:
    """How to open the study's page."""
    if options.tracking_uri is not None:
        server = without_passwords(options.tracking_uri)
        return f"records: {recorder.page(server) or f'wait until {server} takes them'}"
    command = f"python -m harness.dashboard --output {options.output}"
    page = recorder.page(f"http://{HOST}:{PORT}")
    return f"records: {command}" + (f", then {page}" if page else ", which sends those that wait")


def described(study: Named) -> dict[str, Any]:
    """A study's values, the command, and the versions that it ran on."""
    return {
        "id": study.id,
        "study": plain(study),
        "command": [without_passwords(text) for text in (Path(sys.argv[0]).name, *sys.argv[1:])],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
    }
