"""The live view of a study: how far it is, what it spent, the best so far, how long it may still take.

A terminal has a block of lines that is drawn anew in place; a file gets a line now and then, without control
characters.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_UPDATES = 0.5
MOST_TRIALS = 6
"""Running trials that are shown; of the others only their number."""
SURE_FROM = 0.05
"""Share of the work from which on the time left is told."""
GAP = "  ·  "


class Progress:
    """Counts judged cells and spent device-seconds against what is planned.

    Args:
        stream: where to write (stderr). title: of the study. clock: monotonic seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, *, title: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream or sys.stderr
        self.title = title
        self.best = ""
        self._clock = clock
        self._in_place = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._running: dict[str, str] = {}
        self._written: float | None = None
        self._height = 0
        self.plan(device_seconds=0.0, cells=0)

    def plan(self, *, device_seconds: float, cells: int, unit: str = "cells") -> None:
        """What is still to be done when work begins; device-seconds are 0 where nobody knows. Starts the clock."""
        self.planned_cost, self.planned_cells, self.unit = device_seconds, cells, unit
        self.spent, self.cells = 0.0, 0
        self.start = self._clock()

    def advance(self, text: str, *, trial: str = "", device_seconds: float = 0.0, cells: int = 0) -> None:
        """What a trial does now, and what has been spent and judged since the last call."""
        self.spent += device_seconds
        self.cells += cells
        self._running.pop(trial, None)
        self._running[trial] = text  # the newest is last
        interval = SECONDS_BETWEEN_UPDATES if self._in_place else SECONDS_BETWEEN_LINES
        if self._written is None or self._clock() - self._written >= interval:
            self._write()

    def count(self, cells: int) -> None:
        """Further cells are done; the next update shows it."""
        self.cells += cells

    def ended(self, trial: str) -> None:
        """A trial does nothing any more."""
        self._running.pop(trial, None)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the block away."""
        self._clear()
        self._running.clear()

    # what is known

    def fraction(self) -> float | None:
        """Share of the work that is done, None while nothing is planned."""
        if self.planned_cost > 0:
            return min(1.0, self.spent / self.planned_cost)
        return min(1.0, self.cells / self.planned_cells) if self.planned_cells else None

    def facts(self) -> list[str]:
        """Cells, cost and time, as far as there is something to tell."""
        found = [f"{self.cells} of {self.planned_cells} {self.unit}"] if self.planned_cells else []
        if self.planned_cost > 0:
            found.append(f"{self.spent:.3g} of {self.planned_cost:.3g} device-s")
        elif self.spent > 0:
            found.append(f"{self.spent:.3g} device-s")
        done, gone = self.fraction(), self._clock() - self.start
        if done is not None and done >= SURE_FROM:
            found.append(f"about {duration(gone * (1 - done) / done)} left")
        elif self._in_place:
            found.append(f"{duration(gone)} so far")
        return found

    # two ways to show it

    def line(self) -> str:
        """All that is known, with what the newest event is about."""
        done = self.fraction()
        text = next(reversed(self._running.values()), self.title)
        facts = [text, *self.facts(), *([f"best {self.best}"] if self.best else [])]
        return ("" if done is None else f"{done:4.0%}  ") + GAP.join(facts)

    def block(self) -> list[str]:
        """The same in lines, with all running trials."""
        done = self.fraction()
        share = "" if done is None else f"{done:.0%}"
        lines = [GAP.join(filter(None, [self.title, share, *self.facts()]))]
        if self.best:
            lines.append(f"  best  {self.best}")
        shown = list(self._running.values())
        lines += [f"  now   {text}" for text in shown[-MOST_TRIALS:]]
        if len(shown) > MOST_TRIALS:
            lines.append(f"        and {len(shown) - MOST_TRIALS} more")
        return lines

    def _write(self) -> None:
        self._written = self._clock()
        if self._in_place:
            width = columns(self.stream)
            lines = [line[: width - 1] for line in self.block()]
            self.stream.write(self._erasing() + "".join(f"{line}\n" for line in lines))
            self._height = len(lines)
        else:
            self.stream.write(self.line() + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self._height:
            self.stream.write(self._erasing())
            self.stream.flush()
            self._height = 0

    def _erasing(self) -> str:
        """Up to the first line of the block, and everything from there on away."""
        return f"\x1b[{self._height}A\x1b[J" if self._height else ""


def columns(stream: TextIO) -> int:
    """Width of a terminal, 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def duration(seconds: float) -> str:
    """A time in one unit, for people."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}" if unit != "min" else f"{seconds / size:.0f} min"
    return f"{seconds:.0f} s"
