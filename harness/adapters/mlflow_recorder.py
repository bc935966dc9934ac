"""MlflowRecorder: the one writer of records. A flat MLflow run a key, each (metric, step) once, over restarts too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from harness.adapters.mlflow_database import check_writable, open_database
from harness.adapters.mlflow_server import check_form
from harness.adapters.mlflow_view import KIND, KIND_TAG, VIEW_TAG, charts_address, page_address, shared_view
from harness.contracts import Point, RecordRefused, TrackerAway
from harness.identity import canonical
from harness.told import without_passwords
from harness.view import View

_STUDY_TAG, _KEY_TAG, _NOT_FINITE_TAG, _NOTE_TAG = "study", "key", "not_finite", "mlflow.note.content"
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # of one batch
_MAX_PARAM_CHARACTERS, _MAX_TAG_CHARACTERS = 6000, 8000
_NEVER = "INVALID_PARAMETER_VALUE"
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}
_Item = TypeVar("_Item")


@dataclass(kw_only=True)
class _OpenRun:
    """What is known of a run without asking the store again."""

    id: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    """Metrics with points of an earlier process; read when the first new point comes."""
    seen: set[tuple[str, int]] = field(default_factory=set)


class MlflowRecorder:
    """Records a study in MLflow: runs side by side, told apart by the tags `study` and `key`.

    A value that is not finite is written as NaN, which charts leave out, and the run gets the tag `not_finite` with the
    first such metric and step. A parameter that comes back with another value keeps its first one; the new one is the
    tag `changed/<name>`. Texts longer than MLflow stores are cut, and end in an ellipsis.

    Args:
        database: the SQLite file, made if absent. tracking_uri: a tracking server instead; one of both is None.
        artifacts: folder of attached files (with a server, the server decides).
        study: value of the `study` tag. experiment: name of the MLflow experiment, made if absent.

    Raises:
        ValueError: if the address is none, the file is no database, or the experiment was deleted.
        TrackerAway: if the database is locked or cannot be written, or the server does not answer; so does every call.
        RecordRefused: (calls) if MLflow will never take a record, because of its name for example.
    """

    def __init__(
        self, *, database: Path | None, tracking_uri: str | None, artifacts: Path, study: str, experiment: str
    ) -> None:
        if (database is None) == (tracking_uri is None):
            raise ValueError(
                f"records go to a database file or to a server, got {database=} and {tracking_uri=}; "
                "write one and None for the other"
            )
        if "'" in study:
            raise ValueError(f"a study's name stands in quotes in searches, got {study!r}; write it without '")
        self._study, self._database = study, database
        self._client = open_database(database) if database is not None else _open_server(str(tracking_uri))
        location = artifacts.absolute().as_uri() if database is not None else None
        self._runs: dict[str, _OpenRun] = {}
        with self._asking():
            self._experiment_id = _experiment_id(self._client, experiment, location)
            self._earlier = {run.data.tags[_KEY_TAG]: run for run in self._runs_of_study()}

    @property
    def experiment_id(self) -> str:
        return self._experiment_id

    def arrange(self, view: View) -> None:
        """Keep how the study's runs are to be shown when their page is opened."""
        texts = {VIEW_TAG + self._study: shared_view(view, self._study), KIND_TAG: KIND, _NOTE_TAG: view.note}
        with self._asking():
            known = self._client.get_experiment(self._experiment_id).tags
            for name, text in texts.items():
                if text and known.get(name) != text:
                    self._client.set_experiment_tag(self._experiment_id, name, text)

    def page(self, server: str) -> str:
        """Address of the study's page. Args: server: scheme, host and port of MLflow's server over these records."""
        return page_address(server, self._experiment_id, self._study)

    def start(self, key: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        with self._asking():
            if key not in self._runs:
                self._runs[key] = self._take_up(key, name)
            run = self._runs[key]
            wanted = {param: _cut(_text(value), _MAX_PARAM_CHARACTERS) for param, value in params.items()}
            new = {param: value for param, value in wanted.items() if param not in run.params}
            for chunk in _chunks([Param(*item) for item in new.items()], _MAX_PARAMS):
                self._client.log_batch(run.id, params=chunk)
            run.params |= new
            changed = {f"changed/{param}": value for param, value in wanted.items() if value != run.params[param]}
            self._tag(run, {**tags, **changed})

    def record(self, key: str, points: Sequence[Point]) -> None:
        run = self._run(key)
        with self._asking():
            self._read_history(run)
            fresh: dict[tuple[str, int], Point] = {}
            for point in points:
                if (point.metric, point.step) not in run.seen:
                    fresh.setdefault((point.metric, point.step), point)
            for chunk in _chunks(list(fresh.values()), _MAX_METRICS):
                self._client.log_batch(run.id, metrics=[_metric(point) for point in chunk])
                run.seen |= {(point.metric, point.step) for point in chunk}
            wild = [point for point in fresh.values() if not math.isfinite(point.value)]
            if wild and _NOT_FINITE_TAG not in run.tags:
                self._tag(run, {_NOT_FINITE_TAG: f"{wild[0].metric} = {wild[0].value} at step {wild[0].step}"})

    def attach(self, key: str, file: Path) -> None:
        if not file.is_file():
            raise ValueError(f"only a file can be attached to a run, got {file}; write it before attaching it")
        run = self._run(key)
        with self._asking():
            self._client.log_artifact(run.id, str(file))

    def describe(self, key: str, text: str) -> None:
        run = self._run(key)
        with self._asking():
            self._tag(run, {_NOTE_TAG: text})

    def finish(self, key: str, status: Literal["finished", "failed"]) -> None:
        run = self._run(key)
        with self._asking():
            self._client.set_terminated(run.id, status=_STATUS[status])

    def close(self) -> None:
        """Forget the open runs; every record was on disk before its call returned."""
        self._runs.clear()
        self._earlier.clear()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Put into words why MLflow did not do something, and whether it may do it later."""
        try:
            if self._database is not None:
                check_writable(self._database)
        except ValueError as error:  # it was one when it was opened, and may be mended
            raise TrackerAway(str(error)) from error
        try:
            yield
        except MlflowException as error:
            reason = without_passwords(str(error).splitlines()[0])
            if error.error_code == _NEVER:
                raise RecordRefused(
                    f"a record must be one that MLflow can keep, but it refused: {reason}; "
                    "give it another name and run the same command again, which loses nothing"
                ) from error
            raise TrackerAway(f"MLflow does not take records now: {reason}") from error
        except OSError as error:  # of a file, or of a connection
            raise TrackerAway(f"MLflow does not take records now: {error}") from error

    def _take_up(self, key: str, name: str) -> _OpenRun:
        """The run of an earlier process, running again; a new one if there is none."""
        found = self._earlier.get(key)
        if found is None:
            tags = {_STUDY_TAG: self._study, _KEY_TAG: key}
            created = self._client.create_run(self._experiment_id, tags=tags, run_name=name)
            return _OpenRun(id=created.info.run_id, tags=tags)
        self._client.update_run(found.info.run_id, status="RUNNING", name=name)
        return _OpenRun(
            id=found.info.run_id,
            params=dict(found.data.params),
            tags=dict(found.data.tags),
            unread=list(found.data.metrics),
        )

    def _run(self, key: str) -> _OpenRun:
        if key not in self._runs:
            raise ValueError(f"a run has to be open to be written to, got key {key!r}; call start({key!r}, ...) first")
        return self._runs[key]

    def _read_history(self, run: _OpenRun) -> None:
        while run.unread:
            metric = run.unread[-1]
            run.seen |= {(metric, point.step) for point in self._client.get_metric_history(run.id, metric)}
            run.unread.pop()

    def _tag(self, run: _OpenRun, tags: Mapping[str, str]) -> None:
        cut = {name: _cut(text, _MAX_TAG_CHARACTERS) for name, text in tags.items()}
        new = {name: text for name, text in cut.items() if run.tags.get(name) != text}
        for chunk in _chunks([RunTag(*item) for item in new.items()], _MAX_PARAMS):
            self._client.log_batch(run.id, tags=chunk)
        run.tags |= new

    def _runs_of_study(self) -> Iterator[Run]:
        """Runs of earlier processes. Asked once, not once a key: a search costs as much as a batch of points."""
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], filter_string=f"tags.{_STUDY_TAG} = '{self._study}'", page_token=token
            )
            yield from (run for run in page if _KEY_TAG in run.data.tags)
            token = page.token
            if not token:
                return


def pages(database: Path, server: str) -> list[str]:
    """A line for every study in a database: its experiment and the address of its page.

    Experiments of which no study has a view have a line for all their runs. MLflow's own first one is left out.
    """
    lines = []
    for experiment in open_database(database).search_experiments():
        number = experiment.experiment_id
        studies = [tag.removeprefix(VIEW_TAG) for tag in experiment.tags if tag.startswith(VIEW_TAG)]
        found = [page_address(server, number, study) for study in studies]
        if number != "0":
            lines += [f"{experiment.name}: {address}" for address in found or [charts_address(server, number)]]
    return lines


def recorder_at(output: Path, destination: Mapping[str, Any]) -> MlflowRecorder:
    """The recorder of a study's `destination`: its names as "study" and "experiment", and a "tracking_uri" or None."""
    uri = destination["tracking_uri"]
    return MlflowRecorder(
        database=None if uri else output / "mlflow.db",
        tracking_uri=uri,
        artifacts=output / "artifacts",
        study=destination["study"],
        experiment=destination["experiment"],
    )


def _open_server(uri: str) -> MlflowClient:
    check_form(uri)
    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    found: Experiment | None = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=location)
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"records go to an experiment that is there, but {name!r} was deleted in MLflow; "
            f"write `mlflow experiments restore --experiment-id {found.experiment_id}`, or another name"
        )
    return found.experiment_id


def _metric(point: Point) -> Metric:
    """An infinity would be stored as the largest double and flatten every chart: NaN stands for both."""
    value = float(point.value) if math.isfinite(point.value) else math.nan
    return Metric(point.metric, value, round(point.timestamp * 1000), point.step)


def _text(value: Any) -> str:
    return canonical(value) if isinstance(value, (Mapping, list, tuple)) else str(value)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))
