"""MLflow's SQLite file: made whole or not at all, opened by one process at a time, asked before a write."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from harness.adapters.sqlite_uri import sqlite_uri
from harness.contracts import TrackerAway
from harness.told import without_passwords

LOCK_SECONDS = 10.0


def open_database(path: Path) -> MlflowClient:
    """A client of the SQLite file, with its tables.

    MLflow builds the tables in steps that two processes must not take at once and that none can take up where another
    was killed, and it retries for minutes what cannot succeed; hence the lock, the rename and the check before.
    """
    path = path.absolute()
    for name in ("mlflow.store.db.utils", "alembic"):
        # Migrations are no news, and failures are raised anyway.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_size == 0:
                make_database(path)
            check_writable(path)
        client = MlflowClient(tracking_uri=sqlite_uri(path))
        client.search_experiments(max_results=1)
    except (OSError, SQLAlchemyError, MlflowException) as error:
        raise _away(path, error) from error
    return client


def check_writable(path: Path) -> None:
    """MLflow itself would wait longer, and be louder.

    Raises:
        TrackerAway: if the database is gone, locked or cannot be written. ValueError: if the file is none.
    """
    try:
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone")
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as probe:
            probe.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.OperationalError) as error:
        raise _away(path, error) from error
    except sqlite3.Error as error:
        raise ValueError(
            f"records need an SQLite file, got {path} ({error}); remove it, or write another output folder"
        ) from error


def _away(path: Path, error: Exception) -> TrackerAway:
    reason = without_passwords(str(error).splitlines()[0])
    return TrackerAway(f"{path} cannot be written ({reason}); stop the program that locks it, or make it writable")


def make_database(path: Path) -> None:
    """Build all tables in another file first, so that the database is there whole or not at all."""
    made = path.with_name(f".partial-{path.name}")
    _remove(made)
    try:
        engine = create_sqlalchemy_engine(sqlite_uri(made))
        _initialize_tables(engine)
        engine.dispose()
        os.replace(made, path)
    except BaseException:
        _remove(made)  # on a full disk it would take the room that checkpoints need
        raise


def _remove(made: Path) -> None:
    """With its journal."""
    for leftover in made.parent.glob(f"{made.name}*"):
        leftover.unlink()
