"""The smallest energy-only phases on four Gaussians: energy matching, bootstrapping, and what can stand behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import Store
from harness.collective import Alone
from harness.loop import Trainer, TrainState
from harness.phase_data import PhaseData
from harness.plan import Branch, BranchWork, Optimiser, Phase, Stop
from models.contracts import Work
from models.problem import build
from tests.harness.tiny import FM, PG, SETTINGS, root

SCHEDULE = {"kind": "geometric", "sigma_min": 0.05, "sigma_max": 2.0}
NETWORK = {"kind": "field", "scaled": 1.2}
MATCHING: dict[str, Any] = {
    "kind": "denoising_energy_matching",
    "schedule": SCHEDULE,
    "network": NETWORK,
    "samples": 3,
    "clip": {"norm": 20.0, "of": "row"},
}
SDE = {"steps": 5, "noise_scale": 1.0}
IDEM = Phase(
    name="idem",
    objective={
        **MATCHING,
        "replay": {"capacity": 30, "every": 3, "rows": 11},
        "sde": SDE,
        "data": {"from": "prior", "rows": 16},
    },
    optimiser=Optimiser(learning_rate=1e-2, gradient_clip=0.5),
    batch=10,
)
FAB = Phase(
    name="fab",
    objective={
        "kind": "flow_annealed_bootstrap",
        "flow": {"prior_std": 1.5, "layers": 2, "hidden": 8, "couplings": "spline", "bins": 4},
        "annealing": {"bridges": 2, "leapfrog_steps": 2, "step_size": 0.3},
        "ratio_clip": 10.0,
        "replay": {"capacity": 40, "minimum": 25, "every": 3, "rows": 11},
        "data": {"from": "none"},
    },
    optimiser=Optimiser(learning_rate=1e-2, gradient_clip=100.0),
    batch=10,
)
PDEM = Phase(name="pdem", objective={**MATCHING, "data": {"from": "none"}}, optimiser=IDEM.optimiser, batch=10)
FM_OWN = Phase(
    name="fm_own",
    objective={
        **FM.objective,
        "data": {"from": "parent", "rows": 40, "resampled": False, "sde": SDE, "schedule": SCHEDULE},
    },
    optimiser=FM.optimiser,
    batch=FM.batch,
)
PG_ON_FLOW = Phase(
    name="pg",
    objective={**PG.objective, "model": {"kind": "probability_flow", "schedule": SCHEDULE, "network": NETWORK}},
    optimiser=PG.optimiser,
    batch=PG.batch,
)


def chain(*phases: tuple[Phase, int], evaluate: bool = False) -> tuple[BranchWork, ...]:
    """Phases one after the other, each the child of the one before, from the untrained model of seed 0."""
    works, parent = [], root()
    for phase, steps in phases:
        branch = Branch(parent=parent, phase=phase, seed=0)
        works.append(BranchWork(branch=branch, stops=(Stop(steps=steps, evaluate=evaluate),)))
        parent = branch.at(steps).hash
    return tuple(works)


def trainer_of(phase: Phase, collective: Any = None) -> tuple[Trainer, TrainState]:
    """A phase's trainer and its state before the first step."""
    problem, group = build(SETTINGS, cache=Path("unused")), collective or Alone()
    branch = Branch(parent=root(), phase=phase, seed=0)
    data = PhaseData(problem, Store(Path("unused")), Alone(), torch.device("cpu")).of(branch)
    trainer = Trainer.of(branch, problem.objective(phase.objective), data, group)
    return trainer, TrainState.start(problem.flow(0, phase.objective), phase)


def stepped(trainer: Trainer, state: TrainState, steps: int) -> list[Work]:
    return [trainer.step(state) for _ in range(steps)]


def weights(state: TrainState) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in state.flow.parameters()])
