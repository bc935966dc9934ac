"""A tracking server, asked once before a study starts: MLflow itself would retry for minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from harness.told import without_passwords

AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""One question and one answer, within ten seconds."""


def check_form(uri: str) -> None:
    """Raise ValueError unless `uri` has the form of an http or https address."""
    said = without_passwords(uri)
    try:
        parts = urlsplit(uri)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(
            f"a tracking server has an address of the form http://host:port, got {said!r}; "
            "write for example --tracking-uri http://127.0.0.1:5000, or leave it out for a file under --output"
        )


def check_server(uri: str) -> None:
    """Raise ValueError unless a tracking server answers at `uri`."""
    check_form(uri)
    try:
        with variables(AT_ONCE):
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        reason = without_passwords(str(error).splitlines()[0])
        raise ValueError(
            f"a tracking server must answer before a study starts, got none at {without_passwords(uri)} "
            f"({reason}); start it, write another --tracking-uri, or leave it out for a file under --output"
        ) from error


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """The environment with these variables, and afterwards as it was."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
