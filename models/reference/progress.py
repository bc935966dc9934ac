"""How long sampling still takes: a callback, and the bar on stderr that is one."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, transitions done, transitions in the stage)."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """A progress callback for those who want none."""


class Bar:
    """A progress bar on stderr, one a stage."""

    def __init__(self, name: str) -> None:
        self.name, self.stage = name, ""
        self.bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.bar is None or self.stage != stage:
            self.close()
            self.stage = stage
            self.bar = tqdm(total=total, desc=f"{self.name} {stage}", file=sys.stderr, mininterval=0.5)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
