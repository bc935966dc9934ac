"""A cache file of arrays and their record: written at once or not at all, refused when its checksum does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError, RuntimeError)
"""What numpy and zipfile raise on files that were cut, overwritten, or are something else."""


def content_hash(record: Mapping[str, Any]) -> str:
    """sha256 of a JSON-able record, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _checksum(arrays: Arrays, record_json: str) -> str:
    digest = hashlib.sha256(record_json.encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def save(path: Path, arrays: Arrays, record: Mapping[str, Any]) -> None:
    """Write beside the goal, then rename: a reader, or a second writer, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record_json = json.dumps(record, sort_keys=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            members: dict[str, Any] = {**arrays, "record": record_json, "checksum": _checksum(arrays, record_json)}
            np.savez(file, **members)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """(arrays, record), or None where there is no file or a damaged one; damage is warned about."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        record_json, checksum = str(stored.pop("record")), str(stored.pop("checksum"))
        if _checksum(stored, record_json) != checksum:
            raise ValueError("the checksum does not fit the content")
        return stored, json.loads(record_json)
    except UNREADABLE as error:
        warnings.warn(f"the cached samples in {path} are damaged ({error}) and will be made again", stacklevel=2)
        return None
