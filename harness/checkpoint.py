"""The store that workers share: content-addressed objects, finished segments, evaluations, partial checkpoints, prices.

Every write goes to a temporary file first and is renamed into place, so a reader sees the old file or the new one and
never half of either. Objects carry their own SHA-256 as a name and are checked against it when they are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.identity import content_hash, plain
from harness.plan import Branch, Segment
from harness.room import NO_ROOM, no_room
from harness.trial import Event

READABLE = 0o644
"""Temporary files start private; what is shared with other workers must be readable by them."""

NAME = re.compile(r"[0-9a-f]{64}\.[a-z]+")
"""Of an object: its SHA-256 and a suffix."""


class DamagedObject(RuntimeError):
    """A stored object does not match its own name, or is gone."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, also after a power cut.

    Raises:
        NoRoom: where the disk is full.
    """
    try:
        _write_whole(path, content)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(path, error) from error


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, READABLE)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, sort_keys=True, allow_nan=True).encode())


def read_json(path: Path) -> Any | None:
    """The value, or None where there is no readable file."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def read_record(path: Path, *names: str) -> dict[str, Any] | None:
    """The object of a file with these names in it; None where there is none, or something else."""
    value = read_json(path)
    return value if isinstance(value, dict) and set(names) <= value.keys() else None


class Store:
    """Checkpoints and records of any number of studies, found by content hash.

    Args:
        folder: visible to every worker.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # objects

    def put(self, content: bytes, suffix: str) -> str:
        """Keep some bytes; the name says what they are. A damaged object of that name is mended."""
        name = hashlib.sha256(content).hexdigest() + suffix
        write_atomically(self.folder / "objects" / name, content)
        return name

    def get(self, name: str) -> bytes:
        """The bytes under a name.

        Raises:
            DamagedObject: where they are gone, do not hash to their name (the file is then removed), or the name is
                none that `put` gives, which could lead out of the store.
        """
        if NAME.fullmatch(name) is None:
            raise DamagedObject(f"an object's name is its hash, got {name!r}; run the same command again")
        path = self.folder / "objects" / name
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            text = f"object {name} must be in the store, but it is gone; run the same command again"
            raise DamagedObject(text) from error
        if hashlib.sha256(content).hexdigest() != name.split(".")[0]:
            path.unlink(missing_ok=True)
            raise DamagedObject(f"object {name} must hash to its name, but it is damaged; run the same command again")
        return content

    def put_state(self, state: Mapping[str, Any]) -> str:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        return self.put(buffer.getvalue(), ".pt")

    def get_state(self, name: str) -> dict[str, Any]:
        """A checkpoint, loaded as weights only: no code of the file is run.

        Raises:
            DamagedObject: as `get`, and where it holds something else than tensors, numbers and texts by name.
        """
        content = self.get(name)
        try:
            state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            raise foreign(name, "a checkpoint holds weights only", error) from error
        if not isinstance(state, dict):
            raise foreign(name, "a checkpoint holds weights only", f"a {type(state).__name__}")
        return state

    def put_arrays(self, arrays: Mapping[str, np.ndarray]) -> str:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{key: arrays[key] for key in sorted(arrays)})
        return self.put(buffer.getvalue(), ".npz")

    def get_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Named arrays, read without pickle. Raises: DamagedObject as `get`, and where it holds something else."""
        content = self.get(name)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise foreign(name, "records are plain arrays", error) from error

    # segments

    def _segment_path(self, segment_hash: str) -> Path:
        return self.folder / "segments" / f"{segment_hash}.json"

    def segment(self, segment_hash: str) -> dict[str, Any] | None:
        """What is known of a finished segment: its state's name, checksum and events; None if it is not finished."""
        return read_record(self._segment_path(segment_hash), "branch", "parent", "steps", "state", "events")

    def finish_segment(self, segment: Segment, *, state: str, checksum: str, events: list[Event]) -> None:
        # The branch's entry comes first: alone it means nothing, but a segment without it would not be found again.
        write_atomically(self.folder / "branches" / segment.branch.hash / str(segment.steps), b"")
        write_json(
            self._segment_path(segment.hash),
            {
                "branch": segment.branch.hash,
                "parent": segment.branch.parent,
                "phase": plain(segment.branch.phase),
                "steps": segment.steps,
                "state": state,
                "checksum": checksum,
                "events": [asdict(event) for event in events],
            },
        )

    def forget_segment(self, segment_hash: str) -> None:
        self._segment_path(segment_hash).unlink(missing_ok=True)

    def finished_steps(self, branch: Branch) -> list[int]:
        """Step counts at which this branch has a finished segment, rising."""
        folder = self.folder / "branches" / branch.hash
        if not folder.exists():
            return []
        steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
        return [n for n in steps if self._segment_path(branch.at(n).hash).exists()]

    def events(self, branch: Branch, *, up_to: int) -> list[Event]:
        """The events of a branch in order of their steps, each once, from its finished segments."""
        found: dict[tuple[str, int], Event] = {}
        for steps in self.finished_steps(branch):
            if steps <= up_to:
                for value in (self.segment(branch.at(steps).hash) or {}).get("events", []):
                    found.setdefault((value["kind"], value["step"]), Event(**value))
        return [found[key] for key in sorted(found, key=lambda key: (key[1], key[0]))]

    # evaluations

    def _evaluation_path(self, segment_hash: str, evaluation: str) -> Path:
        return self.folder / "evaluations" / f"{segment_hash}-{evaluation}.json"

    def evaluation(self, segment_hash: str, evaluation: str) -> dict[str, Any] | None:
        """The name of the records of a segment under an evaluation's settings, and what making them took."""
        return read_record(self._evaluation_path(segment_hash, evaluation), "records")

    def finish_evaluation(self, segment_hash: str, evaluation: str, value: Mapping[str, Any]) -> None:
        write_json(self._evaluation_path(segment_hash, evaluation), dict(value))

    def forget_evaluation(self, segment_hash: str, evaluation: str) -> None:
        self._evaluation_path(segment_hash, evaluation).unlink(missing_ok=True)

    # rows made for a phase

    def _made_data_path(self, key: str) -> Path:
        return self.folder / "made_data" / f"{key}.json"

    def made_data(self, key: str) -> dict[str, Any] | None:
        """The name of the object that holds made rows, and what making them cost; None if they are not made."""
        return read_record(self._made_data_path(key), "object")

    def save_made_data(self, key: str, value: Mapping[str, Any]) -> None:
        write_json(self._made_data_path(key), dict(value))

    # partial checkpoints

    def _latest_path(self, branch: Branch) -> Path:
        return self.folder / "branches" / branch.hash / "latest.json"

    def save_latest(self, branch: Branch, *, steps: int, state: str, events: list[Event]) -> None:
        """Replace the branch's partial checkpoint; the object of the one before is dropped if no segment holds it."""
        before = self.latest(branch)
        value = {"steps": steps, "state": state, "events": [asdict(event) for event in events]}
        write_json(self._latest_path(branch), value)
        if before is not None and before["state"] != state:
            self._drop_object(branch, before["state"])

    def latest(self, branch: Branch) -> dict[str, Any] | None:
        return read_record(self._latest_path(branch), "steps", "state", "events")

    def drop_latest(self, branch: Branch) -> None:
        """Forget the partial checkpoint (its object stays where a finished segment holds the same state)."""
        before = self.latest(branch)
        self._latest_path(branch).unlink(missing_ok=True)
        if before is not None:
            self._drop_object(branch, before["state"])

    def _drop_object(self, branch: Branch, state: str) -> None:
        segments = (self.segment(branch.at(n).hash) for n in self.finished_steps(branch))
        if NAME.fullmatch(state) and state not in {segment["state"] for segment in segments if segment}:
            (self.folder / "objects" / state).unlink(missing_ok=True)

    # prices

    def _price_path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / "prices" / f"{content_hash(key)}.json"

    def price(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The recorded step price of a phase on a kind of device, None if it was never measured."""
        return read_record(self._price_path(key), "per_step")

    def prices(self) -> list[dict[str, Any]]:
        """Every recorded price with what it depends on under "key", on whatever kind of device."""
        found = (read_json(path) for path in sorted((self.folder / "prices").glob("*.json")))
        return [price for price in found if price is not None]

    def save_price(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        write_json(self._price_path(key), {"key": dict(key), **value})


def foreign(name: str, rule: str, found: object) -> DamagedObject:
    """What is told of an object that hashes to its name, and that no worker of this project can have written."""
    first = (str(found).splitlines() or [type(found).__name__])[0]
    return DamagedObject(f"{rule}, but object {name} does not ({first}); run the same command again")


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """The hash of the bits of some named tensors: equal on all ranks, and before and after a resume."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]
