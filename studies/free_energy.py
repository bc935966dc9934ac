"""What does a model say of a molecule's free energies along phi, as drawn and reweighted, beside reference samples?

    python studies/free_energy.py --plan results/train_plan/ID
    python studies/free_energy.py --plan results/train_plan/ID --samples samples.npz

The question of Klein et al. 2023 on alanine dipeptide: -log P(0 < phi < 2) / P(rest), the price in kT of a state that
plain dynamics seldom visits. Reference samples of this project cross there by pivots. A plan's judged samples are few:
studies/sample.py draws more from its model, with weights, into the file that --samples names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.answers.export import write_csv
from harness.answers.report import interval_text, table
from harness.answers.sample_panel import SamplePanel
from harness.cli import conclude
from harness.identity import content_hash
from harness.launch import check_output
from harness.trained_plan import TrainedPlan
from models.estimators import Estimate, importance_estimates
from models.molecules.observables import molecular_estimates
from models.problem import BoltzmannProblem, build, in_order
from models.reference.pivots import Molecule
from studies.sample import Columns, read_archive

REFERENCE = "reference"
MOST_SHOWN = 3
"""Models in the picture, each drawn twice."""
COLUMNS = {
    "delta_f": "as drawn / kT",
    "delta_f_reweighted": "reweighted / kT",
    "tv_backbone": "TV of (phi, psi)",
    "share_mirrored": "mirror images",
    "ess_q": "ESS_q",
}
LEGEND = (
    "free energies: -log P(0 < phi < 2) / P(rest). TV against reference rows of other chains. [ ] 95 % bootstrap "
    "interval over n rows, taken as independent, which those of the reference nearly are"
)


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Samples of one model or of the reference: x (n, D), energies in kT, log weights or None where all count alike."""

    title: str
    x: np.ndarray
    energy: np.ndarray
    log_weight: np.ndarray | None = None

    @property
    def records(self) -> Columns:
        """As a problem's picture takes them."""
        density = {} if self.log_weight is None else {"model/log_q": -self.energy - self.log_weight}
        return {"model/x": self.x, "model/energy": self.energy, **density}


@dataclass(frozen=True, kw_only=True)
class FreeEnergy:
    """What does a model say of a molecule's free energies along phi, as drawn and reweighted?"""

    plan: Path
    """Folder of a trained plan, or of several that were compared: their models' samples, a set for each seed."""
    stage: int | None = None
    """Stage of the plan, counted from one; 0 is the untrained model (default: the last)."""
    samples: tuple[Path, ...] = ()
    """Further samples of models on the same target, .npz files as studies/sample.py writes them."""
    rows: int = 10_000
    """Most reference rows that are looked at."""
    output: Path = Path("results")
    """Folder of results."""

    def execute(self) -> str:
        self.check()
        plan = TrainedPlan.read(self.plan)
        problem = build(plan.problem, cache=plan.store.folder / "reference")
        target = molecule_of(problem)
        sets = [*self.trained(plan), *(weighted_samples(file, target) for file in self.samples)]
        reference, apart_mD = self.reference(problem)
        found = {each.title: estimates(each, target, apart_mD) for each in (reference, *sets)}
        folder = self.folder()
        write_csv(folder / "free_energy.csv", csv_rows(found))
        # Matplotlib is imported late, so that a wrong option does not wait for it.
        from harness.answers.figure_samples import draw_samples

        shown = (reference, *sets[:MOST_SHOWN])
        panels = [SamplePanel(title=each.title, **problem.picture(each.records)) for each in shown]
        draw_samples(folder / "free_energy.png", panels)
        return f"{text_of(found)}\n{LEGEND}\n\nin {folder}:\n  free_energy.csv\n  free_energy.png"

    def check(self) -> None:
        """Raise ValueError for options that cannot be answered."""
        if self.rows < 2:
            raise ValueError(f"a reference needs at least two rows, got --rows {self.rows}; write --rows 10000")
        check_output(self.output)

    def trained(self, plan: TrainedPlan) -> list[SampleSet]:
        """The judged samples of every model of the plan at the stage."""
        stage = plan.stage(self.stage)
        return [
            sample_set(plan.title(model, stage), without_prefix(plan.records(model, stage))) for model in plan.models
        ]

    def reference(self, problem: BoltzmannProblem) -> tuple[SampleSet, np.ndarray]:
        """Reference rows, and as many from other chains that all sets are held against."""
        target, space = problem.physics.target, problem.physics.target.space
        pools = problem.reference.test_BD, problem.reference.validation_BD
        test_BD, apart_BD = (space.project(pool_BD[: self.rows].double()) for pool_BD in pools)
        energy = target.energy(test_BD).numpy()
        return SampleSet(title=REFERENCE, x=test_BD.numpy(), energy=energy), apart_BD.numpy()

    def folder(self) -> Path:
        """The same question has the same folder."""
        files = [str(file.resolve()) for file in (self.plan, *self.samples)]
        named = {"files": files, "stage": self.stage, "rows": self.rows}
        return self.output / "free_energy" / content_hash(named)


def molecule_of(problem: BoltzmannProblem) -> Molecule:
    """The plan's target.

    Raises:
        ValueError: where it is no molecule with an angle phi.
    """
    target = problem.physics.target
    if not isinstance(target, Molecule) or not target.topology.phi:
        raise ValueError(
            f"free energies along phi are those of a peptide, got a plan trained on {target.name}; "
            "write the folder of one with --target ad2-classical"
        )
    return target


def without_prefix(records: Mapping[str, np.ndarray]) -> Columns:
    """The columns of the model's own samples."""
    return {name.removeprefix("model/"): column for name, column in records.items() if name.startswith("model/")}


def sample_set(title: str, columns: Columns) -> SampleSet:
    """Samples with the weights that a density, or a path, gives them."""
    x, energy = columns["x"], columns["energy"].astype(np.float64)
    log_weight = columns["log_weight"] if "log_weight" in columns else -energy - columns["log_q"]
    return SampleSet(title=title, x=x, energy=energy, log_weight=log_weight.astype(np.float64))


def weighted_samples(file: Path, target: Molecule) -> SampleSet:
    """Samples of a file with weights.

    Raises:
        ValueError: where it holds none, or of another molecule.
    """
    columns = read_archive(file)
    if columns is None or not {"x", "energy", "log_weight"} <= columns.keys():
        raise ValueError(
            f"further samples are a .npz file with x, energy and log_weight, got {file}; "
            "write the file that studies/sample.py made"
        )
    if columns["x"].ndim != 2 or columns["x"].shape[1] != target.space.dim:
        raise ValueError(
            f"samples of {target.name} have shape (rows, {target.space.dim}), got {columns['x'].shape} in {file}; "
            "write a file of the same target"
        )
    return sample_set(file.stem, columns)


def estimates(samples: SampleSet, target: Molecule, reference_mD: np.ndarray) -> dict[str, Estimate]:
    """Of one set, against rows that it has nothing to do with."""
    x, log_weight = in_order(samples.x, target), samples.log_weight
    found = molecular_estimates(x, target.topology, reference_mD=reference_mD, log_weight_n=log_weight, seed=0)
    return found if log_weight is None else {**found, "ess_q": importance_estimates(log_weight, seed=0)["ess_q"]}


def csv_rows(found: dict[str, dict[str, Estimate]]) -> list[dict[str, Any]]:
    """A row for every estimate of every set."""
    return [
        {"set": title, "estimate": name, "value": e.value, "eval_lo": e.lo, "eval_hi": e.hi, "n": e.n, "told": e.reason}
        for title, each in found.items()
        for name, e in each.items()
    ]


def text_of(found: dict[str, dict[str, Estimate]]) -> str:
    """A line for every set; of several residues, a block for each."""
    names = dict.fromkeys(name for each in found.values() for name in each)
    ends = [name.removeprefix("delta_f") for name in names if name.removeprefix("delta_f_").isdigit()] or [""]
    blocks = []
    for end in ends:
        header = [f"samples of{end.replace('_', ', residue ')}", "n", *COLUMNS.values()]
        rows = []
        for title, each in found.items():
            cells = [each.get(f"{name}{end}", each.get(name)) for name in COLUMNS]
            rows.append([title, str(each["tv_bonds"].n), *("-" if cell is None else told(cell) for cell in cells)])
        blocks.append(table(header, rows))
    return "\n\n".join(blocks)


def told(estimate: Estimate) -> str:
    return interval_text(estimate) if math.isfinite(estimate.value) else estimate.reason


if __name__ == "__main__":
    conclude(FreeEnergy)
