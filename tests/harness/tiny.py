"""The smallest real problem: four Gaussians, a field of eight hidden units, evaluations of 64 samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.checkpoint import Store
from harness.collective import Alone
from harness.plan import Branch, BranchWork, Optimiser, Phase, Stop, root_hash
from harness.trial import Event, Placement, TrialSpec
from harness.worker import run_trial
from models.problem_settings import evaluation_settings, system_settings

SETTINGS: dict[str, Any] = {
    "system": system_settings("gmm4", train_samples=96, hidden=8, layers=2),
    "evaluation": evaluation_settings("gmm4", samples=64, tolerance=1e-3),
}
FM = Phase(
    name="fm",
    objective={"kind": "flow_matching", "coupling": "independent", "sigma": 0.0},
    optimiser=Optimiser(learning_rate=1e-2),
    batch=20,
)
PG = Phase(
    name="pg",
    objective={"kind": "path_gradient", "kl": "forward", "divergence": "exact", "solver_steps": 2},
    optimiser=Optimiser(learning_rate=5e-3, gradient_clip=1.0),
    batch=10,
)
TAIL = replace(FM, name="fm_tail", optimiser=Optimiser(learning_rate=1e-3), ema_decay=0.9)


def root(seed: int = 0) -> str:
    return root_hash(SETTINGS["system"], seed)


def trunk_and_tails(seed: int = 0, *, last: int = 9) -> tuple[BranchWork, ...]:
    """A trunk that forks after four steps into two tails."""
    trunk = Branch(parent=root(seed), phase=FM, seed=seed)
    parent = trunk.at(4).hash
    stops = (Stop(steps=0), Stop(steps=4, evaluate=False), Stop(steps=last))
    tails = tuple(
        BranchWork(branch=Branch(parent=parent, phase=phase, seed=seed), stops=(Stop(steps=2), Stop(steps=5)))
        for phase in (PG, TAIL)
    )
    return (BranchWork(branch=trunk, stops=stops), *tails)


def trial(store: Path, works: Sequence[BranchWork] | None = None, **changes: Any) -> TrialSpec:
    settings = {"problem": SETTINGS, "checkpoint_seconds": 0.0, "placement": Placement(workers=1), **changes}
    chosen = trunk_and_tails() if works is None else tuple(works)
    return TrialSpec(name="tiny", build="models.problem:build", store=str(store), works=chosen, **settings)


def events(spec: TrialSpec) -> Iterator[Event]:
    return run_trial(spec, Alone())


def kinds(spec: TrialSpec) -> list[str]:
    return [event.kind for event in events(spec)]


def checksums(store: Path, works: Sequence[BranchWork] | None = None) -> dict[str, str]:
    """Of all segments that works ask for, by their hash."""
    kept = Store(store)
    chosen = trunk_and_tails() if works is None else works
    found = {segment.hash: kept.segment(segment.hash) for work in chosen for segment in work.segments}
    return {name: value["checksum"] for name, value in found.items() if value is not None}
