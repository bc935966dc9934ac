"""Which minima of the energy lie under a model's samples, and which under the reference data?

    python studies/minima.py --target lj13 --samples model.npy --reference data.npy
    python studies/minima.py --plan results/train_plan/ID

Every sample follows its own force downhill. Thermal samples of a cluster lie above many minima (inherent structures,
Stillinger and Weber 1982); a model that puts the wrong share above the deepest one has the wrong funnel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.answers.export import write_csv
from harness.answers.levels import LevelSet, level_table, lowest_level, share_rows
from harness.cli import conclude
from harness.identity import content_hash
from harness.launch import check_output
from harness.trained_plan import TrainedPlan
from models.minimise import Minima, minimise
from models.problem import build
from models.reference.published import read_rows
from models.reference.samples import reference_samples
from models.systems import System, system_of

REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class MinimaUnderSamples:
    """Which minima of the energy lie under a model's samples, and which under the reference data?"""

    target: str | None = None
    """gmm4, gmm40, dw4, lj13, lj55, ad2-classical, ad2-xtb, or module:function (default: the plan's, or lj13)."""
    samples: tuple[Path, ...] = ()
    """Samples of models: .npy files (rows x dim)."""
    plan: Path | None = None
    """Folder of a trained plan, or of several that were compared: their models' samples, a set for each seed."""
    stage: int | None = None
    """Stage of the plan, counted from one; 0 is the untrained model (default: the last)."""
    reference: Path | None = None
    """Reference data as a .npy file (default: the plan's test points, or else own reference samples)."""
    rows: int = 1000
    """Most rows of each set; of more, evenly spread ones are taken."""
    lowest: float | None = None
    """Energy of the deepest minimum in kT (default: the known one, or else the lowest that is found)."""
    within: float = 1e-3
    """Energies closer than this, in kT, are the same minimum."""
    force_tolerance: float = 1e-6
    """Largest coordinate of the force that counts as none, in kT per length."""
    output: Path = Path("results")
    """Folder of results; own reference samples are kept in it."""

    def execute(self) -> str:
        self.check()
        plan = None if self.plan is None else TrainedPlan.read(self.plan)
        name = self.target_name(plan)
        system, points = self.system(name, plan), self.points(name, plan)
        found = {title: self.descend(system, x_BD) for title, x_BD in points.items()}
        sets = [
            LevelSet(title=title, level_n=minima.energy_B.numpy(), settled_n=minima.converged_B.numpy())
            for title, minima in found.items()
        ]
        known = system.lowest_energy if self.lowest is None else self.lowest
        lowest = lowest_level(sets, known, within=self.within)
        folder = self.folder(name)
        write_csv(folder / "minima.csv", minimum_rows(found))
        write_csv(folder / "shares.csv", share_rows(sets, lowest, within=self.within))
        # Matplotlib is imported late, so that a wrong option does not wait for it.
        from harness.answers.figure_levels import draw_levels

        draw_levels(folder / "minima.png", sets, lowest, within=self.within, label="energy of the minimum / kT")
        text = level_table(sets, lowest, within=self.within, unit="kT")
        return f"{text}\n\nin {folder}:\n  minima.csv\n  shares.csv\n  minima.png"

    def check(self) -> None:
        """Raise ValueError for options that ask for nothing, or for too few rows."""
        if not self.samples and self.plan is None:
            raise ValueError(
                "minima are sought under a model's samples, got none; write --samples FILE.npy or --plan FOLDER"
            )
        if self.rows < 2:
            raise ValueError(f"a set needs at least two rows, got --rows {self.rows}; write for example --rows 1000")
        if not self.within > 0:
            raise ValueError(
                f"energies differ by more than nothing, got --within {self.within}; write for example 1e-3"
            )
        check_output(self.output)

    def target_name(self, plan: TrainedPlan | None) -> str:
        """The target of the options and of the plan.

        Raises:
            ValueError: where they differ.
        """
        if plan is None:
            return self.target or "lj13"
        trained = plan.problem["system"]["target"]
        if self.target not in (None, trained):
            raise ValueError(f"the plan was trained on {trained}, got --target {self.target}; leave --target out")
        return trained

    def system(self, target: str, plan: TrainedPlan | None) -> System:
        """That of the target, or as a plan trained on it."""
        return system_of(target) if plan is None else build(plan.problem, cache=Path()).physics

    def points(self, target: str, plan: TrainedPlan | None) -> dict[str, torch.Tensor]:
        """Samples by what they are of, the reference first."""
        space = system_of(target).target.space
        sets = {}
        for file in self.samples:
            title = file.stem if file.stem not in sets and file.stem != REFERENCE else str(file)
            sets[title] = read_rows(file, space, at_most=self.rows)
        if plan is not None:
            stage = plan.stage(self.stage)
            for model in plan.models:
                x_BD = torch.from_numpy(plan.records(model, stage)["model/x"])
                sets[plan.title(model, stage)] = x_BD[: self.rows]
        return {REFERENCE: self.reference_points(target, plan), **sets}

    def reference_points(self, target: str, plan: TrainedPlan | None) -> torch.Tensor:
        if self.reference is not None:
            return read_rows(self.reference, system_of(target).target.space, at_most=self.rows)
        if plan is not None:
            return build(plan.problem, cache=plan.store.folder / "reference").points("test")[: self.rows]
        cache = self.output / "store" / "reference"
        own = reference_samples(system_of(target).target, n_train=2, n_validation=2, n_test=self.rows, cache_dir=cache)
        return own.test_BD

    def descend(self, system: System, x_BD: torch.Tensor) -> Minima:
        return minimise(system.target, x_BD, force_tolerance=self.force_tolerance)

    def folder(self, target: str) -> Path:
        """The same question has the same folder."""
        asked = {**vars(self), "target": target, "samples": [str(file.resolve()) for file in self.samples]}
        del asked["output"]
        named = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
        return self.output / "minima" / content_hash(named)


def minimum_rows(found: dict[str, Minima]) -> list[dict[str, object]]:
    """A row for every sample: its minimum's energy, and how the descent ended."""
    return [
        {"set": title, "row": row, "energy": energy, "converged": converged, "force": force, "iterations": iterations}
        for title, m in found.items()
        for row, (energy, converged, force, iterations) in enumerate(
            zip(m.energy_B.tolist(), m.converged_B.tolist(), m.force_B.tolist(), m.iterations_B.tolist(), strict=True)
        )
    ]


if __name__ == "__main__":
    conclude(MinimaUnderSamples)
