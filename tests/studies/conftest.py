"""What tests of studies share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.adapters import mlflow_database


@pytest.fixture(scope="session", autouse=True)
def migrated_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow builds its tables in dozens of migrations, which take seconds: databases are copies of the first."""
    template, make = tmp_path_factory.mktemp("database") / "mlflow.db", mlflow_database.make_database

    def copy(path: Path) -> None:
        if not template.exists():
            make(template)
        shutil.copyfile(template, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_database, "make_database", copy)
        yield
