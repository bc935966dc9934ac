"""Exchange rates between steps and currencies, on every kind of device whose prices are on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.answers.report import table
from harness.budget import Currency, StepPrice
from harness.calibrate import price_from_plain
from harness.checkpoint import Store
from harness.identity import Settings, plain
from harness.split import SplitPhases


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The price of a phase's step on one kind of device.

    Attributes:
        workers, threads: that shared the step. trunk_steps: steps of the trunk's phase that one step costs on the same
            device, by currency; empty where the trunk has no price there.
    """

    phase: str
    workers: int
    threads: int
    price: StepPrice
    trunk_steps: Mapping[Currency, float]

    @property
    def flops_per_second(self) -> float:
        return self.price.per_step.flops / self.price.per_step.device_seconds


def rates_on_record(store: Store, system: Settings, phases: SplitPhases) -> tuple[Rate, ...]:
    """Rates of a system's phases, those of one device together, the trunk's first."""
    names: dict[str, str] = {}
    for phase in phases.all:  # phases of one price are named by the first
        names.setdefault(phase.price_fingerprint, phase.name)
    places: dict[tuple[str, int, int], dict[str, StepPrice]] = {}
    for record in store.prices():
        key = record["key"]
        if key["problem"] == plain(system) and key["phase"] in names and "memory_cap_bytes" not in key:
            place = (key["device"], key["workers"], key["threads"])
            places.setdefault(place, {})[key["phase"]] = price_from_plain(record)
    rates = []
    for (_, workers, threads), prices in sorted(places.items()):
        trunk = prices.get(phases.trunk.price_fingerprint)
        for fingerprint in (name for name in names if name in prices):
            price = prices[fingerprint]
            rates.append(
                Rate(
                    phase=names[fingerprint],
                    workers=workers,
                    threads=threads,
                    price=price,
                    trunk_steps={} if trunk is None else in_trunk_steps(price, trunk),
                )
            )
    return tuple(rates)


def in_trunk_steps(price: StepPrice, trunk: StepPrice) -> dict[Currency, float]:
    return {
        currency: price.per_step.amount(currency) / trunk.per_step.amount(currency)
        for currency in Currency
        if trunk.per_step.amount(currency) > 0
    }


def rates_table(rates: tuple[Rate, ...], first: str) -> str:
    """A row for every phase on every kind of device. Args: first: the trunk's phase, as people know it."""
    if not rates:
        return "no price is on record: a study of budgets measures them, see --parts law"
    header = ["device", "workers x threads", "phase", "device-ms a step", "flop a step", "flop / device-s"]
    header += [f"in {first} steps, device-s", "flop"]
    rows = []
    for rate in rates:
        price, step = rate.price, rate.price.per_step
        quartiles = f"[{1e3 * price.device_seconds_lo:.3g}, {1e3 * price.device_seconds_hi:.3g}]"
        row: list[Any] = [price.device, f"{rate.workers} x {rate.threads}", rate.phase]
        row += [f"{1e3 * step.device_seconds:.3g} {quartiles}", f"{step.flops:.3g}", f"{rate.flops_per_second:.3g}"]
        rows.append(row + [f"{rate.trunk_steps[c]:.3g}" if c in rate.trunk_steps else "-" for c in Currency])
    return "\n".join([table(header, rows), "medians with quartiles of steps after warm-up; prices on record"])
