"""Exchange rates are read from prices on record: every kind of device by itself, other systems left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.budget import Currency
from harness.calibrate import price_key
from harness.checkpoint import Store
from harness.exchange_rates import rates_on_record, rates_table
from harness.plan import Phase
from harness.trial import Placement
from tests.harness.test_split import PHASES, priced
from tests.harness.tiny import FM, PG, SETTINGS

SYSTEM = SETTINGS["system"]


def keep(store: Store, phase: Phase, seconds: float, *, device: str, system: Mapping[str, Any] = SYSTEM) -> None:
    key = price_key(system, phase, Placement(workers=1), device)
    store.save_price(key, asdict(replace(priced(phase, seconds), device=device)))


def test_every_device_has_its_own_rates(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for device, fm, pg in (("cpu", 0.001, 0.2), ("gpu", 0.0005, 0.02)):
        keep(store, FM, fm, device=device)
        keep(store, PG, pg, device=device)
    keep(store, PG, 9.0, device="cpu", system=SYSTEM | {"hidden": 9})
    rates = rates_on_record(store, SYSTEM, PHASES)
    assert [(rate.price.device, rate.phase) for rate in rates] == [
        ("cpu", "fm"),
        ("cpu", "pg"),
        ("gpu", "fm"),
        ("gpu", "pg"),
    ]
    assert [rate.trunk_steps[Currency.DEVICE_SECONDS] for rate in rates] == pytest.approx([1, 200, 1, 40])
    assert all(rate.flops_per_second == pytest.approx(1e9) for rate in rates)
    text = rates_table(rates, "FM")
    assert "in FM steps, device-s" in text
    assert text.count("gpu") == 2


def test_a_device_without_the_trunk_has_no_exchange(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keep(store, PG, 0.2, device="cpu")
    (rate,) = rates_on_record(store, SYSTEM, PHASES)
    assert rate.trunk_steps == {}
    assert rates_table((rate,), "FM").splitlines()[2].split()[-2:] == ["-", "-"]


def test_nothing_on_record_is_said(tmp_path: Path) -> None:
    assert "no price is on record" in rates_table(rates_on_record(Store(tmp_path), SYSTEM, PHASES), "FM")
