"""What a study says of wrong options: one line with three beats, exit code 2, and nothing on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness import cli


class Harmful:
    """What makes a folder where somebody unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def refused(kind: type[Any], args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What a study's command line says to standard error after it has ended with code 2."""
    return refused_by(lambda: cli.conclude(kind), args, monkeypatch, capsys)


def refused_by(
    program: Callable[[], None], args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    """The same of any program of this project."""
    monkeypatch.setattr(sys, "argv", ["study.py", *args])
    with pytest.raises(SystemExit) as ended:
        program()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    return said.err


def check_message(text: str, beats: list[str]) -> None:
    """One line with every beat, and no traceback."""
    assert text.startswith("error: ")
    assert text.count("\n") == 1, f"one line is clear, got {text}"
    missing = [beat for beat in beats if not any(part in text for part in beat.split("|"))]
    assert not missing, f"{missing} not in {text}"
