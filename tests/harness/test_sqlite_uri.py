"""An SQLite file is where its path says, whatever characters its folder has."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from harness.adapters.sqlite_uri import sqlite_uri

NAMES = ["plain", "a b", "a?b", "a#b", "a%20b", "..%2f..%2fescaped", "a&b=c", "a@b:c", "a'b", "ünï", "a\\b", "-x", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_made_where_its_path_says(name: str, tmp_path: Path) -> None:
    file = tmp_path / "outer" / "inner" / name / "records.db"
    file.parent.mkdir(parents=True)
    engine = create_engine(sqlite_uri(file))
    with engine.begin() as connection:
        connection.execute(text("create table t (x integer)"))
    engine.dispose()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
