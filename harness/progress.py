"""One calm line on how far a study is, what it spent and how long it may still take; legible in a file as well."""

from __future__ import annotations

import sys
import time
from typing import TextIO

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_UPDATES = 0.5


class Progress:
    """Counts evaluated cells and spent device-seconds against what is planned.

    Args:
        stream: where to write; a terminal is updated in place, a file gets a line now and then.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.start = time.monotonic()
        self.planned_cost = 0.0
        self.spent = 0.0
        self.cells = 0
        self.planned_cells = 0
        self._written = 0.0
        self._width = 0

    def plan(self, *, device_seconds: float, cells: int) -> None:
        """What is still to be done when work begins."""
        self.planned_cost, self.planned_cells = device_seconds, cells
        self.spent, self.cells = 0.0, 0
        self.start = time.monotonic()

    def advance(self, text: str, *, device_seconds: float = 0.0, cells: int = 0) -> None:
        self.spent += device_seconds
        self.cells += cells
        interval = SECONDS_BETWEEN_UPDATES if self.stream.isatty() else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._written >= interval:
            self._write(
                f"{self._fraction():4.0%}  {text}  ·  {self.cells}/{self.planned_cells} cells{self._time_left()}"
            )

    def note(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        self._clear()

    def _fraction(self) -> float:
        return min(1.0, self.spent / self.planned_cost) if self.planned_cost > 0 else 0.0

    def _time_left(self) -> str:
        done = self._fraction()
        if done < 0.05:
            return ""
        left = (time.monotonic() - self.start) * (1.0 - done) / done
        return f"  ·  about {left / 60:.0f} min left" if left > 90 else f"  ·  about {left:.0f} s left"

    def _write(self, line: str) -> None:
        self._written = time.monotonic()
        if self.stream.isatty():
            self.stream.write("\r" + line.ljust(self._width)[:160])
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self.stream.isatty() and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0
