"""The spool holds whole calls, each point once, through kills, damage and a full disk; one process has it at a time."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.room import NoRoom
from harness.spool import Spool, destination_of, is_in_use

TO = {"study": "s", "experiment": "e", "tracking_uri": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study" / "unsent.jsonl"


def start(key: str, **params: Any) -> dict[str, Any]:
    return {"call": "start", "key": key, "name": f"run {key}", "params": params, "tags": {}}


def points(key: str, *steps: int, value: float = 0.5) -> dict[str, Any]:
    return {"call": "record", "key": key, "points": [["train/loss", value, step, 1.25 + step] for step in steps]}


def again(file: Path) -> list[Any]:
    """What another process finds."""
    spool = Spool(file, {})
    found = list(spool.calls())
    spool.close()
    return found


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """This process may write no file larger than `size` bytes: the kernel refuses, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_calls_come_back_in_order_and_say_where_they_go(file: Path) -> None:
    told = [start("a", rate=0.1, sizes=[8, 8]), points("a", 1, 2), start("b"), points("b", 1, value=math.inf)]
    spool = Spool(file, TO)
    assert not spool.waiting
    for call in told:
        spool.append(call)
    assert spool.waiting
    spool.close()
    assert again(file) == told
    assert destination_of(file) == TO


def test_what_waits_already_is_not_kept_twice(file: Path) -> None:
    spool = Spool(file, TO)
    for call in (start("a"), points("a", 1, 2), start("a"), points("a", 1, 2, 3), points("a", 1)):
        spool.append(call)
    spool.close()
    spool = Spool(file, TO)
    spool.append(points("a", 2, 3, 4))
    spool.close()
    assert again(file) == [start("a"), points("a", 1, 2), points("a", 3), points("a", 4)]


def test_a_run_that_ends_runs_again_and_ends_keeps_all_three_calls(file: Path) -> None:
    ended = {"call": "finish", "key": "a", "status": "finished"}
    spool = Spool(file, TO)
    for call in (start("a"), ended, ended, start("a"), ended):
        spool.append(call)
    spool.close()
    assert again(file) == [start("a"), ended, start("a"), ended]


def test_a_parameter_without_a_json_form_is_kept_as_text(file: Path) -> None:
    spool = Spool(file, TO)
    spool.append(start("a", where=Path("data.npy"), rate=0.1))
    spool.close()
    assert again(file) == [start("a", where="data.npy", rate=0.1)]


def test_half_a_line_of_a_killed_process_is_dropped_and_written_over(file: Path) -> None:
    spool = Spool(file, TO)
    spool.append(start("a"))
    spool.append(points("a", 1))
    spool.close()
    whole = file.read_bytes()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        spool = Spool(file, TO)
        left = list(spool.calls())
        assert left == [start("a"), points("a", 1)][: len(left)]
        spool.append(start("a"))
        spool.append(points("a", 1, 2))
        spool.close()
        assert [point for call in again(file)[1:] for point in call["points"]] == points("a", 1, 2)["points"]
        assert destination_of(file) == TO


def test_a_damaged_line_costs_only_itself(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(file, TO)
    for call in (start("a"), points("a", 1), points("a", 2)):
        spool.append(call)
    spool.close()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], b"\xff" + lines[2][1:], lines[3]]))
    assert again(file) == [start("a"), points("a", 2)]
    assert "damaged and left out" in caplog.text


def test_a_full_disk_leaves_what_was_there(file: Path) -> None:
    spool = Spool(file, TO)
    spool.append(start("a"))
    before = file.read_bytes()
    with no_file_beyond(len(before) + 10), pytest.raises(NoRoom, match="free some and run the same command again"):
        spool.append(points("a", 1, 2, 3))
    assert file.read_bytes() == before
    spool.append(points("a", 1, 2, 3))
    spool.close()
    assert again(file) == [start("a"), points("a", 1, 2, 3)]


def test_what_was_sent_waits_no_more(file: Path) -> None:
    spool = Spool(file, TO)
    spool.append(start("a"))
    spool.clear()
    assert not spool.waiting
    assert not file.exists()
    spool.append(start("a"))
    spool.close()
    assert again(file) == [start("a")]


def test_one_process_has_it_at_a_time(file: Path) -> None:
    spool = Spool(file, TO)
    spool.append(start("a"))
    assert is_in_use(file)
    spool.close()
    assert not is_in_use(file)
