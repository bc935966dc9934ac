"""Free energies of a trained plan: from the folder of a tiny one to the table, the file and the picture.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import calibrate
from models.contracts import Target
from models.estimators import free_energy_difference_estimate
from models.molecules.classical import alanine_dipeptide
from models.molecules.geometry import dihedrals
from models.problem import build
from models.problem_settings import evaluation_settings, system_settings
from models.reference.pivots import pivots_of, turned
from models.reference.samples import ReferenceSamples
from studies.budget_split import BudgetSplit
from studies.free_energy import FreeEnergy, molecule_of
from studies.train_plan import TrainPlan
from tests.studies.test_minima import PLAN

AD2 = alanine_dipeptide()
TINY: dict[str, Any] = {
    **PLAN,
    "target": "ad2-classical",
    "seeds": "1",
    "hidden": 4,
    "layers": 1,
    "pg_batch": 4,
    "evaluation_samples": 32,
    "evaluation_tolerance": 1e-1,
}


def turned_about(rows: int, seed: int) -> Tensor:
    """The molecule with its backbone angles drawn evenly, (B, D) in float32: both states of phi, whatever energies."""
    x_BD, generator = AD2.start_D.expand(rows, -1), torch.Generator().manual_seed(seed)
    for pivot in pivots_of(AD2.topology):
        x_BD = turned(x_BD, pivot, 2 * math.pi * torch.rand(rows, generator=generator, dtype=torch.float64))
    return AD2.space.project(x_BD).float()


@pytest.fixture(scope="module", autouse=True)
def cheap_reference() -> Iterator[None]:
    """Rows that no chain had to be run for."""

    def made(target: Target, **sizes: Any) -> ReferenceSamples:
        sets = {f"{name}_BD": turned_about(128, seed) for seed, name in enumerate(("train", "validation", "test"))}
        costs: dict[str, Any] = {"energy_evaluations": 0, "force_evaluations": 0, "device_seconds": 0.0}
        return ReferenceSamples(**sets, **costs, diagnostics={}, source="turned")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.problem.reference_samples", made)
        patch.setattr(calibrate, "TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plan whose field has the published classes."""
    output = tmp_path_factory.mktemp("results")
    plan = TrainPlan(**{**TINY, "stages": ("fm=1",)}, judge_last=1, atom_classes="backbone", output=output)
    plan.execute()
    return output / "train_plan" / plan.study().id


def test_a_trained_plan_tells_its_free_energies(trained: Path, tmp_path: Path) -> None:
    text = FreeEnergy(plan=trained, output=tmp_path).execute()
    answered = next((tmp_path / "free_energy").iterdir())
    assert {path.name for path in answered.iterdir()} == {"free_energy.csv", "free_energy.png"}
    with (answered / "free_energy.csv").open(newline="") as stream:
        rows = {(row["set"], row["estimate"]): row for row in csv.DictReader(stream)}
    x_BD = AD2.space.project(turned_about(128, 2).double())
    expected = free_energy_difference_estimate(dihedrals(x_BD, AD2.topology.phi.values())[:, 0].numpy(), seed=0)
    found = rows["reference", "delta_f"]
    assert (float(found["value"]), float(found["eval_lo"])) == pytest.approx((expected.value, expected.lo))
    assert found["n"] == "128"
    assert ("reference", "delta_f_reweighted") not in rows
    assert {name for title, name in rows if title == "fm, seed 0"} >= {"delta_f", "delta_f_reweighted", "ess_q"}
    assert rows["fm, seed 0", "ess_q"]["n"] == "32"
    assert "as drawn / kT" in text
    assert "reweighted / kT" in text


def test_weights_bring_samples_of_a_file_back_to_the_reference(trained: Path, tmp_path: Path) -> None:
    """Every third row of the positive state is kept, with three times the weight."""
    x_BD = AD2.space.project(turned_about(3000, 7).double())
    phi_B = dihedrals(x_BD, AD2.topology.phi.values())[:, 0]
    positive_B = (phi_B > 0) & (phi_B < 2)
    kept_B = ~positive_B | (torch.arange(len(x_BD)) % 3 == 0)
    log_weight = torch.where(positive_B, math.log(3.0), 0.0)[kept_B]
    file = tmp_path / "thinned.npz"
    np.savez(file, x=x_BD[kept_B], energy=np.zeros(int(kept_B.sum())), log_weight=log_weight)
    FreeEnergy(plan=trained, samples=(file,), output=tmp_path).execute()
    with next((tmp_path / "free_energy").rglob("*.csv")).open(newline="") as stream:
        rows = {(row["set"], row["estimate"]): row for row in csv.DictReader(stream)}
    truth = math.log((math.tau - 2.0) / 2.0)
    assert float(rows["thinned", "delta_f_reweighted"]["value"]) == pytest.approx(truth, abs=0.12)
    assert float(rows["thinned", "delta_f"]["value"]) == pytest.approx(truth + math.log(3.0), abs=0.12)

    np.savez(file, x=np.zeros((4, 39)), energy=np.zeros(4), log_weight=np.zeros(4))
    with pytest.raises(ValueError, match=r"have shape \(rows, 66\), got \(4, 39\)"):
        FreeEnergy(plan=trained, samples=(file,), output=tmp_path).execute()
    for wrong, beat in (
        ({"samples": (tmp_path / "gone.npz",)}, "x, energy and log_weight"),
        ({"rows": 1}, "--rows 1;"),
    ):
        with pytest.raises(ValueError, match=beat):
            replace(FreeEnergy(plan=trained, output=tmp_path), **wrong).execute()


def test_a_plan_on_something_else_is_told(tmp_path: Path) -> None:
    settings = {"system": system_settings("gmm4"), "evaluation": evaluation_settings("gmm4")}
    with pytest.raises(ValueError, match=r"of a peptide, got a plan trained on gmm4; write .* ad2-classical"):
        molecule_of(build(settings, cache=tmp_path))


def test_what_a_split_of_a_budget_would_cost_is_told_for_a_molecule(tmp_path: Path) -> None:
    options = {name: value for name, value in TINY.items() if name not in ("stages", "ml_batch")}
    study = BudgetSplit(**options, budget="1e9flop", budgets="2", splits=2, dry_run=True, output=tmp_path)
    assert "segments" in study.execute()
