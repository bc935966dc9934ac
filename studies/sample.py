"""Samples of a trained model, with weights: what a study's winner draws, and what that says of the target.

    python studies/sample.py --from results/train_plan/ID --samples 10000 --output samples.npz
    python studies/sample.py --from results/budget_split/ID --segment 3fa9

The model is the one with the best validation metric among those that the study chooses among (of a plan, the last stage
of every seed), or any segment by the start of its hash. Weights stand for the target exp(-energy). What an interrupted
run has drawn is kept until the file is whole, and the same command goes on there.
"""

from __future__ import annotations

import io
import math
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from harness.answers.export import write_answer
from harness.answers.report import interval_text, table
from harness.checkpoint import DamagedObject, write_atomically
from harness.cli import conclude
from harness.finished_study import Contender, FinishedStudy
from harness.identity import content_hash, derived_seed, plain
from harness.kept_models import kept_flow
from models.estimators import (
    Estimate,
    configuration_observables,
    importance_estimates,
    mean_estimate,
    self_normalised_mean_estimate,
)
from models.problem import BoltzmannProblem, build
from models.reference.progress import Bar
from models.weighted_draws import weighted_draws
from studies.options import BUILD

Columns = dict[str, np.ndarray]
WEIGHTS = {
    "ess_q": "ESS_q",
    "ess_q_of_16": "ESS_q of 16 draws",
    "ess_q_max_weight": "largest share of a weight",
    "pareto_k": "Pareto k",
    "log_z": "log Z",
    "log_z_bound": "bound of log Z",
}
PARTS = ".parts"


@dataclass(frozen=True, kw_only=True)
class SampleModel:
    """Samples of a trained model with weights, and what they say of the target."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of a study, OUTPUT/NAME/ID as it printed it; the end of the ID may be left out."""
    segment: str | None = None
    """Start of a segment's hash (default: the model with the best validation metric)."""
    samples: int = 10_000
    """Samples that are drawn."""
    batch: int = 1000
    """Samples that are drawn at a time."""
    seed: int = 0
    """Of all that is random. The same seed and the same batch give the same samples."""
    tolerance: float | None = None
    """Tolerance of dopri5 (default: that of the study's evaluations)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where samples are drawn."""
    output: Path = Path("samples.npz")
    """File of the samples; beside it a .json says where they came from."""

    def execute(self) -> str:
        self.check()
        study = FinishedStudy.read(self.source)
        chosen = study.winner() if self.segment is None else study.model(self.segment)
        problem = self.problem(study)
        tolerance = study.problem["evaluation"]["tolerance"] if self.tolerance is None else self.tolerance
        columns = self.drawn(problem, self.model(study, chosen, problem), chosen, tolerance)
        write_archive(self.output, columns)
        weights, means = weight_rows(columns), mean_rows(columns, problem)
        write_answer(self.output.with_suffix(".json"), self.told(study, chosen, tolerance, weights, means))
        for part in self.parts.glob("*.npz"):
            part.unlink()
        if self.parts.is_dir():
            self.parts.rmdir()
        title = f"{study.problem['system']['target']}: {chosen.title}, segment {chosen.segment}"
        return "\n".join([title, "", *report(columns, weights, means), "", self.where(columns)])

    def check(self) -> None:
        """Raise ValueError for options that cannot be drawn, or a file that cannot be written."""
        if self.samples < 2:
            raise ValueError(f"an interval needs at least two samples, got {self.samples}; write --samples 10000")
        if self.batch < 1:
            raise ValueError(f"a batch holds at least one sample, got {self.batch}; write --batch 1000")
        if self.seed < 0:
            raise ValueError(f"a seed is not negative, got {self.seed}; write --seed 0")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise ValueError(f"a solver's tolerance is positive and finite, got {self.tolerance}; write 1e-5")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs a GPU that torch sees, got none; write --device cpu")
        check_file(self.output)

    def problem(self, study: FinishedStudy) -> BoltzmannProblem:
        """What the study trained on. A file does not say which code is run.

        Raises:
            ValueError: where its settings are damaged, or another project's.
        """
        if study.build != BUILD:
            raise ValueError(
                f"a study's problem is made by {BUILD}, got {study.build!r} in {study.folder}; write the folder of a "
                "study of this project"
            )
        return build(study.problem, cache=study.store.folder / "reference")

    def model(self, study: FinishedStudy, chosen: Contender, problem: BoltzmannProblem) -> torch.nn.Module:
        """The trained model, read as weights only, in the precision that the study judged it in.

        Raises:
            ValueError: where its checkpoint is gone or damaged.
        """
        try:
            flow = kept_flow(problem, study.store, chosen.segment, chosen.seed)
        except (DamagedObject, RuntimeError) as error:
            raise ValueError(
                f"a model is read from the study's store, but that of {chosen.title} cannot be ({error}); run the "
                "study's command again, which trains what is missing"
            ) from error
        return flow.to(device=torch.device(self.device), dtype=getattr(torch, problem.evaluation["dtype"]))

    def drawn(self, problem: BoltzmannProblem, flow: Any, chosen: Contender, tolerance: float) -> Columns:
        """All samples, batch after batch; batches that an interrupted run has kept are read."""
        key = content_hash([chosen.segment, self.seed, self.batch, tolerance, self.device, plain(problem.evaluation)])
        bar, found = Bar("samples"), []
        for number, rows in enumerate(batches(self.samples, self.batch)):
            part = self.parts / f"{key}-{number}-{rows}.npz"
            columns = read_archive(part)
            if columns is None:
                seed = derived_seed("samples", self.seed, number)
                draws = weighted_draws(flow, problem.physics.target, rows=rows, seed=seed, tolerance=tolerance)
                named = {"x": draws.x_BD, "log_q": draws.log_q_B}
                named |= {"energy": draws.energy_B, "log_weight": draws.log_weight_B}
                columns = {name: value.cpu().numpy() for name, value in named.items() if value is not None}
                write_archive(part, columns)
            found.append(columns)
            bar("drawn", sum(len(one["x"]) for one in found), self.samples)
        bar.close()
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    @property
    def parts(self) -> Path:
        return self.output.with_name(self.output.name + PARTS)

    def told(
        self,
        study: FinishedStudy,
        chosen: Contender,
        tolerance: float,
        weights: dict[str, Estimate],
        means: dict[str, tuple[Estimate, Estimate]],
    ) -> dict[str, Any]:
        """Where the samples came from, and what was estimated from them."""
        return {
            "study": str(study.folder.resolve()),
            "segment": chosen.segment,
            "model": chosen.title,
            "model_seed": chosen.seed,
            "problem": plain(study.problem),
            "samples": self.samples,
            "batch": self.batch,
            "seed": self.seed,
            "tolerance": tolerance,
            "weights": plain(weights),
            "means": {name: {"drawn": plain(raw), "reweighted": plain(mean)} for name, (raw, mean) in means.items()},
        }

    def where(self, columns: Columns) -> str:
        return f"in {self.output}: {', '.join(columns)}\nin {self.output.with_suffix('.json')}: where they came from"


def batches(samples: int, batch: int) -> Iterator[int]:
    """Sizes of the batches in order, the last one smaller where it must be."""
    for start in range(0, samples, batch):
        yield min(batch, samples - start)


def check_file(path: Path) -> None:
    """Raise ValueError unless samples can be written to `path` without losing another file."""
    if path.suffix != ".npz":
        raise ValueError(f"samples are written to a .npz file, got {path}; write for example --output samples.npz")
    known = read_archive(path)
    if path.exists() and (known is None or not {"x", "energy", "log_weight"} <= known.keys()):
        raise ValueError(f"samples do not overwrite other files, got {path}, which holds none; write another --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"the folder of --output must be writable, got {path.parent} ({error.strerror}); write another one"
        ) from error


def read_archive(path: Path) -> Columns | None:
    """The arrays of a file, read without pickle; None where there is no readable one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile):
        return None


def write_archive(path: Path, columns: Columns) -> None:
    """Plain arrays under their names, whole or not at all."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **columns)
    write_atomically(path, stream.getvalue())


def weight_rows(columns: Columns) -> dict[str, Estimate]:
    found = importance_estimates(columns["log_weight"].astype(np.float64), seed=0)
    return {name: found[name] for name in WEIGHTS}


def mean_rows(columns: Columns, problem: BoltzmannProblem) -> dict[str, tuple[Estimate, Estimate]]:
    """Means of observables as drawn, and reweighted."""
    observed = {
        "energy / kT": columns["energy"],
        **configuration_observables(columns["x"], problem.physics.target.space),
    }
    return {
        name: (mean_estimate(values, seed=0), self_normalised_mean_estimate(values, columns["log_weight"], seed=0))
        for name, values in observed.items()
    }


def report(columns: Columns, weights: dict[str, Estimate], means: dict[str, tuple[Estimate, Estimate]]) -> list[str]:
    n, lost = len(columns["x"]), int((~np.isfinite(columns["log_weight"])).sum())
    told = [f"{lost} of {n} samples have no weight: they are not finite, or their energy is not"] if lost else []
    return [
        table(["weights", "value"], [[WEIGHTS[name], text(e)] for name, e in weights.items()]),
        "",
        table(["mean", "as drawn", "reweighted"], [[name, text(a), text(b)] for name, (a, b) in means.items()]),
        f"[ ] 95 % interval over n = {n} samples (bootstrap; of Pareto k, normal)",
        *told,
    ]


def text(estimate: Estimate) -> str:
    return interval_text(estimate) if math.isfinite(estimate.value) else estimate.reason


if __name__ == "__main__":
    conclude(SampleModel)
