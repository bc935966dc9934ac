"""The address of an SQLite file, as MLflow and SQLAlchemy read it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote


def sqlite_uri(path: Path) -> str:
    """Names are quoted: a bare `?` would end the path, and `%2f` would lead into another folder."""
    return f"sqlite:///{quote(str(path.absolute()))}"
