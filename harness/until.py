"""Rules that end a phase by what its records say, not by a number given beforehand. Events alone replay them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.trial import Event


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Stop once the mean loss of an octave of steps is not lower than that of the octave before by more than a part.

    Octaves (n/2, n] grow with the phase, so that the noise of the loss shrinks while the rule waits.

    Args:
        gain: the relative fall of the loss, from octave to octave, that is still worth going on for.
        at_most: steps after which the phase ends in any case, a power of two.
    """

    gain: float
    at_most: int

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise ValueError(f"the gain of a plateau must be positive, got {self.gain}; write for example 0.01")
        if self.at_most < FEWEST_STEPS or self.at_most & (self.at_most - 1):
            raise ValueError(
                f"a plateau ends at a power of two from {FEWEST_STEPS} on, got {self.at_most}; write for example 65536"
            )

    def next_stop(self, events: Sequence[Event]) -> int | None:
        """Up to which step to train before asking again; None where the phase has ended."""
        stop = FEWEST_STEPS
        while stop <= self.at_most:
            if not reached(events, stop):
                return stop
            if stop == self.at_most or self._is_flat(events, stop):
                return None
            stop *= 2
        return None

    def end(self, events: Sequence[Event]) -> int:
        """The step at which the phase ended.

        Raises:
            ValueError: while it has not.
        """
        if (missing := self.next_stop(events)) is not None:
            raise ValueError(f"a phase must have ended before its end is asked for, got events up to {missing} missing")
        stop = FEWEST_STEPS
        while stop < self.at_most and not self._is_flat(events, stop):
            stop *= 2
        return stop

    def _is_flat(self, events: Sequence[Event], stop: int) -> bool:
        before, now = octave_loss(events, stop // 2), octave_loss(events, stop)
        return not now < before - self.gain * abs(before)


FEWEST_STEPS = 64
"""The first step at which a rule is asked."""


def reached(events: Sequence[Event], step: int) -> bool:
    return any(event.kind == "train" and event.step == step for event in events)


def octave_loss(events: Sequence[Event], stop: int) -> float:
    """Mean loss over the steps (stop / 2, stop], NaN where there is none."""
    held = sorted((e for e in events if e.kind == "train" and e.step <= stop), key=lambda e: e.step)
    total, weight, last = 0.0, 0, 0
    for event in held:
        if event.step > stop // 2 and math.isfinite(event.values["loss"]):
            total += event.values["loss"] * (event.step - last)
            weight += event.step - last
        last = event.step
    return total / weight if weight else math.nan
