"""What is spent, in which unit, charged to which phase: Cost, Budget, StepPrice, Ledger."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum


class Currency(StrEnum):
    """The unit that budgets are compared in. It is applied when records are read, never when they are written."""

    DEVICE_SECONDS = "s"
    FLOP = "flop"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources spent, summed over all workers.

    Peak memory is of one worker and one step, so that it never adds up: the largest of any worker and of any phase.
    It holds weights, gradients, the optimiser's moments and all that a step makes, but not the training set (0 where it
    was not measured).
    """

    steps: int = 0
    samples: int = 0
    field_evaluations: int = 0
    energy_evaluations: int = 0
    force_evaluations: int = 0
    flops: float = 0.0
    device_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)}
        summed["peak_memory_bytes"] = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Cost(**summed)

    def times(self, count: int) -> Cost:
        """The cost of doing this `count` times."""
        scaled = {f.name: getattr(self, f.name) * count for f in fields(Cost)}
        scaled["peak_memory_bytes"] = self.peak_memory_bytes if count else 0
        return Cost(**scaled)

    def amount(self, currency: Currency) -> float:
        return self.device_seconds if currency is Currency.DEVICE_SECONDS else self.flops


_UNITS = {
    "s": (1.0, Currency.DEVICE_SECONDS),
    "m": (60.0, Currency.DEVICE_SECONDS),
    "min": (60.0, Currency.DEVICE_SECONDS),
    "h": (3600.0, Currency.DEVICE_SECONDS),
    "d": (86400.0, Currency.DEVICE_SECONDS),
    "flop": (1.0, Currency.FLOP),
}
_BUDGET = re.compile(r"\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount of one currency: device-seconds (summed over workers) or floating-point operations."""

    amount: float
    currency: Currency

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise ValueError(f"a budget must be positive and finite, got {self.amount:g}; write for example 60s")

    @staticmethod
    def parse(text: str) -> Budget:
        """Read "60s", "2h", "1.5min" or "3e13flop".

        Raises:
            ValueError: without a number, without a unit, or with an amount that is not positive.
        """
        match = _BUDGET.fullmatch(text)
        example = "write for example 60s, 2h or 3e13flop"
        if match is None:
            raise ValueError(f"a budget is a number with a unit, got {text!r}; {example}")
        number, unit = match.groups()
        if unit.lower() not in _UNITS:
            known = ", ".join(_UNITS)
            raise ValueError(f"a budget needs a unit ({known}), got {text!r}; {example}")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"a budget is a number with a unit, got {text!r}; {example}") from None
        factor, currency = _UNITS[unit.lower()]
        return Budget(amount=value * factor, currency=currency)

    def __str__(self) -> str:
        unit = "s" if self.currency is Currency.DEVICE_SECONDS else " flop"
        return f"{self.amount:.4g}{unit}"


@dataclass(frozen=True, kw_only=True)
class StepPrice:
    """What one step of one phase costs on one kind of device: the exchange rate between steps and currencies.

    Attributes:
        phase: fingerprint of the phase. device: kind of device. workers: how many shared the step.
        per_step: cost of one step, summed over workers (device_seconds: median over the timed steps).
        timed_steps: number of steps timed, after warm-up.
        device_seconds_lo, device_seconds_hi: quartiles of the timed steps.
        microbatch: rows of one gradient call, to stay within a memory cap; None where all local rows are one call.
    """

    phase: str
    device: str
    workers: int
    per_step: Cost
    timed_steps: int
    device_seconds_lo: float
    device_seconds_hi: float
    microbatch: int | None = None

    def of(self, steps: int) -> Cost:
        return self.per_step.times(steps)

    def steps_within(self, budget: Budget, *, already_spent: float = 0.0) -> int:
        """How many whole steps fit into what is left of a budget (0 if nothing is)."""
        left = budget.amount - already_spent
        price = self.per_step.amount(budget.currency)
        return max(0, math.floor(left / price + 1e-9)) if price > 0 else 0


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Costs charged to named accounts. Training phases are on the clock; the rest is kept apart."""

    accounts: Mapping[str, Cost] = field(default_factory=dict)
    off_the_clock: Mapping[str, Cost] = field(default_factory=dict)

    def charge(self, account: str, cost: Cost, *, on_the_clock: bool = True) -> Ledger:
        name = "accounts" if on_the_clock else "off_the_clock"
        book = dict(getattr(self, name))
        book[account] = book.get(account, Cost()) + cost
        return replace(self, **{name: book})

    def __add__(self, other: Ledger) -> Ledger:
        merged = self
        for account, cost in other.accounts.items():
            merged = merged.charge(account, cost)
        for account, cost in other.off_the_clock.items():
            merged = merged.charge(account, cost, on_the_clock=False)
        return merged

    @property
    def total(self) -> Cost:
        """Everything on the clock."""
        return sum(self.accounts.values(), Cost())
