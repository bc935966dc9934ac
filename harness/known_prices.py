"""Step prices before anything has started: those on record, or else measured here by one worker."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.address import resolve
from harness.calibrate import device_kind, measure_price, price_from_plain, price_key
from harness.checkpoint import Store
from harness.collective import Alone
from harness.contracts import Problem
from harness.loop import Trainer
from harness.phase_data import PhaseData
from harness.plan import Branch, Phase
from harness.session import Setting
from harness.split import Prices


def problem_of(setting: Setting, store: Store) -> Problem:
    """The problem of a study, made in this process."""
    problem: Problem = resolve(setting.build)(setting.problem, cache=store.folder / "reference")
    return problem


def known_prices(setting: Setting, phases: Sequence[Phase], store: Store) -> tuple[Prices, bool]:
    """Prices on record, or else measured in this process by one worker (then True for all of them)."""
    system, placement, device, cap = (
        setting.problem["system"],
        setting.placement,
        device_kind(),
        setting.memory_cap_bytes,
    )
    keys = {p.price_fingerprint: price_key(system, p, placement, device, cap) for p in phases}
    found = {fingerprint: store.price(key) for fingerprint, key in keys.items()}
    if all(value is not None for value in found.values()):
        return Prices(by_phase={name: price_from_plain(value) for name, value in found.items() if value}), False
    problem, seed = problem_of(setting, store), setting.seeds[0]
    data = PhaseData(problem, store, Alone(), torch.device("cpu"))
    torch.set_num_threads(placement.threads)
    by_phase = {}
    for phase in phases:
        if phase.price_fingerprint not in by_phase:
            branch = Branch(parent=setting.root(seed), phase=phase, seed=seed)
            rows, flow = data.stand_in(phase, seed), problem.flow(seed, phase.objective)
            trainer = Trainer.of(branch, problem.objective(phase.objective), rows, Alone())
            by_phase[phase.price_fingerprint] = measure_price(trainer, flow, memory_cap_bytes=cap)
    return Prices(by_phase=by_phase), True
