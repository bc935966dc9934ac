"""How a runner puts a failed trial's error into words."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The kind of error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
