"""Budgets are read strictly, prices turn them into steps, ledgers keep what is off the clock apart."""

from __future__ import annotations

import pytest

from harness.budget import Budget, Cost, Currency, Ledger, StepPrice

SECONDS, FLOP = Currency.DEVICE_SECONDS, Currency.FLOP


def price(device_seconds: float, flops: float = 0.0) -> StepPrice:
    step = Cost(steps=1, device_seconds=device_seconds, flops=flops)
    return StepPrice(
        phase="p",
        device="d",
        workers=2,
        per_step=step,
        timed_steps=9,
        device_seconds_lo=device_seconds,
        device_seconds_hi=device_seconds,
    )


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("60s", 60.0, SECONDS),
        (" 60 s ", 60.0, SECONDS),
        ("1.5min", 90.0, SECONDS),
        ("3m", 180.0, SECONDS),
        ("2h", 7200.0, SECONDS),
        ("1d", 86400.0, SECONDS),
        ("2H", 7200.0, SECONDS),
        (".5s", 0.5, SECONDS),
        ("1e-3s", 0.001, SECONDS),
        ("3e13flop", 3e13, FLOP),
        ("3E+13 FLOP", 3e13, FLOP),
    ],
)
def test_budgets_are_read(text: str, amount: float, currency: Currency) -> None:
    assert Budget.parse(text) == Budget(amount=amount, currency=currency)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("60", "needs a unit"),
        ("", "a number with a unit"),
        ("s", "a number with a unit"),
        ("nan s", "a number with a unit"),
        ("inf s", "a number with a unit"),
        ("1,5s", "a number with a unit"),
        ("1.2.3s", "a number with a unit"),
        ("..s", "a number with a unit"),
        ("--1s", "a number with a unit"),
        ("0x10s", "needs a unit|a number with a unit"),
        ("1h30m", "a number with a unit"),
        ("60 parsecs", "needs a unit"),
        ("5e", "needs a unit"),
        ("0s", "positive and finite"),
        ("-1s", "positive and finite"),
        ("1e400s", "positive and finite"),
        ("1e-400s", "positive and finite"),
    ],
)
def test_what_is_no_budget_is_refused_with_an_example(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as error:
        Budget.parse(text)
    assert "60s" in str(error.value)


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_positive(amount: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Budget(amount=amount, currency=SECONDS)


def test_budgets_print_with_their_unit() -> None:
    assert str(Budget.parse("1.5min")) == "90s"
    assert str(Budget.parse("3e13flop")) == "3e+13 flop"


def test_costs_add_and_multiply_but_peak_memory_does_not() -> None:
    one = Cost(steps=1, samples=4, flops=2.0, device_seconds=0.5, peak_memory_bytes=100)
    other = Cost(steps=2, energy_evaluations=3, peak_memory_bytes=70)
    assert one + other == Cost(
        steps=3, samples=4, energy_evaluations=3, flops=2.0, device_seconds=0.5, peak_memory_bytes=100
    )
    assert one.times(3) == Cost(steps=3, samples=12, flops=6.0, device_seconds=1.5, peak_memory_bytes=100)
    assert one.times(0) == Cost()
    assert one + Cost() == one
    assert (one.amount(SECONDS), one.amount(FLOP)) == (0.5, 2.0)


@pytest.mark.parametrize("unit", [0.1, 0.3, 1 / 3, 0.7, 1e-3])
def test_a_budget_of_exactly_n_steps_pays_for_n(unit: float) -> None:
    for steps in range(1, 200):
        exactly = Budget(amount=sum([unit] * steps), currency=SECONDS)
        assert price(unit).steps_within(exactly) == steps
        below = Budget(amount=unit * steps * (1 - 1e-6), currency=SECONDS)
        assert price(unit).steps_within(below) == steps - 1


def test_what_was_spent_before_counts() -> None:
    budget = Budget(amount=10.0, currency=SECONDS)
    assert price(2.0).steps_within(budget, already_spent=3.0) == 3
    assert price(2.0).steps_within(budget, already_spent=10.0) == 0
    assert price(2.0).steps_within(budget, already_spent=11.0) == 0
    assert price(0.0).steps_within(budget) == 0
    assert price(2.0, flops=5.0).steps_within(Budget(amount=11.0, currency=FLOP)) == 2


def test_a_ledger_keeps_what_is_off_the_clock_apart() -> None:
    ledger = Ledger().charge("fm", Cost(steps=1)).charge("fm", Cost(steps=2)).charge("pg", Cost(steps=4))
    ledger = ledger.charge("evaluation", Cost(steps=100), on_the_clock=False)
    assert ledger.total == Cost(steps=7)
    assert ledger.accounts == {"fm": Cost(steps=3), "pg": Cost(steps=4)}
    both = ledger + ledger
    assert both.total == Cost(steps=14)
    assert both.off_the_clock == {"evaluation": Cost(steps=200)}
    assert ledger.total == Cost(steps=7)
