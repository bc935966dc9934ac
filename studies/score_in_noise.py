"""How far off is a score estimated from the energy in wide noise, and what mends it?

    python studies/score_in_noise.py --target dw4

Where noise is much wider than a mode few of K noises meet one, and S_K errs however large K is made. The exact score is
unknown for particles; beside the estimates stands that of noised reference samples with many symmetric copies. Forms:
S_K as Akhound-Sadegh et al. 2024 clip it, clipped in units of the noise as well, and blended with the ratio form (De
Bortoli et al. 2024). Nothing is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.answers.export import write_csv
from harness.answers.report import table
from harness.checkpoint import read_json, write_json
from harness.cli import conclude
from harness.identity import content_hash
from harness.launch import check_output
from harness.progress import Progress
from models.estimators import BootstrapMeans
from models.kernel_score import kernel_score, symmetric_copies
from models.objectives.denoising_energy_matching import DenoisingEnergyMatching
from models.reference.samples import reference_samples
from models.schedules import Linear
from models.score_estimator import Clip, estimate_score
from models.systems import system_of

Columns = dict[str, list[float]]
"""A number of every point."""


@dataclass(frozen=True, kw_only=True)
class ScoreInNoise:
    """How far off is a score estimated from the energy in wide noise, and what mends it?"""

    target: str = "dw4"
    """A system of particles that are all alike."""
    widths: tuple[float, ...] = (0.4, 0.67, 1.1, 1.8, 3.0)
    """Standard deviations of the noise, rising."""
    noises: int = 500
    """K."""
    clip: float = 20.0
    """Largest norm of an estimate, of every particle."""
    noise_clip: float = 3.0
    """The same in units of one over the noise's width."""
    blend: float = 0.35
    """Length over which the estimate goes over to its ratio form."""
    points: int = 400
    """Noised points that errors are averaged over."""
    repeats: int = 30
    """Independent estimates at each."""
    samples: int = 2000
    """Reference samples behind the kernel."""
    copies: int = 60
    """Symmetric copies of each."""
    seed: int = 0
    """Of points, noises and copies."""
    output: Path = Path("results")
    """Folder of results; reference samples are kept in it."""

    def execute(self) -> str:
        self.check()
        progress, found = Progress(), {}
        for width in self.widths:
            path = self.folder() / "pieces" / f"{width:g}.json"
            if read_json(path) is None:
                progress.note(f"noise of width {width:g}")
                write_json(path, self.measure(width))
            found[width] = read_json(path) or {}
        rows = [row for width, columns in found.items() for row in rows_of(width, columns)]
        write_csv(self.folder() / "score_in_noise.csv", rows)
        return f"{error_table(rows)}\n\nin {self.folder()}:\n  score_in_noise.csv"

    def check(self) -> None:
        """Raise ValueError for options that ask for nothing, or a system without copies."""
        space = system_of(self.target).target.space
        if space.particles is None or space.types is not None:
            raise ValueError(
                f"the kernel needs copies of particles that are all alike, got {self.target}; write --target dw4"
            )
        if not self.widths or self.widths[0] <= 0.0 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths of the noise rise from above zero, got {list(self.widths)}; write --widths 0.4 3")
        for name, least in (("noises", 1), ("points", 2), ("repeats", 2), ("samples", 1), ("copies", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is at least {least}, got {getattr(self, name)}; write --{name} {least}")
        for name in ("clip", "noise_clip", "blend"):
            if not 0.0 < getattr(self, name) < math.inf:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is positive and finite, got {getattr(self, name)}; write {option} 1")
        check_output(self.output)

    def measure(self, width: float) -> dict[str, Columns]:
        """Of every form: the estimate along the kernel's score, its squared error and spread, beside that score."""
        target, variance = system_of(self.target).target, width**2
        cache = self.output / "store" / "reference"
        kept = reference_samples(target, n_train=2, n_validation=self.samples, n_test=self.points, cache_dir=cache)
        generator = torch.Generator().manual_seed(self.seed)
        shake_BD = torch.randn(kept.test_BD.shape, generator=generator).to(kept.test_BD)
        y_BD = target.space.project(kept.test_BD + width * shake_BD)
        copies_MD = symmetric_copies(kept.validation_BD, target.space, copies=self.copies, generator=generator)
        kernel = kernel_score(y_BD, copies_MD, variance=variance)
        found = {}
        for name, (noise_clip, blend) in self.forms().items():
            clip = partial(self.matching(noise_clip).clipped, width_B1=torch.full_like(y_BD[:, :1], width))
            estimates = []
            for _ in range(self.repeats):
                noise = (torch.randn(y_BD.shape, generator=generator).to(y_BD) for _ in range(self.noises))
                h = torch.as_tensor(variance)
                estimates.append(estimate_score(target, y_BD, h, noise, clip=clip, blend=blend).score_BD)
            found[name] = columns(torch.stack(estimates), kernel.score_BD, kernel.effective_B)
        return found

    def matching(self, noise_clip: Clip | None) -> DenoisingEnergyMatching:
        """What clips an estimate as training does."""
        return DenoisingEnergyMatching(
            target=system_of(self.target).target,
            schedule=Linear(total_variance=1.0),
            samples=self.noises,
            start="batch",
            clip=Clip(norm=self.clip, of="particles"),
            noise_clip=noise_clip,
        )

    def forms(self) -> dict[str, tuple[Clip | None, float | None]]:
        """Clip in units of the noise, and blend, of every form."""
        by_noise = Clip(norm=self.noise_clip, of="particles")
        return {
            "S_K": (None, None),
            "S_K, clipped by the noise": (by_noise, None),
            "blended": (None, self.blend),
            "clipped by the noise, blended": (by_noise, self.blend),
        }

    def folder(self) -> Path:
        """The same question has the same folder, whatever widths are asked for."""
        asked = {name: value for name, value in vars(self).items() if name not in ("output", "widths")}
        return self.output / "score_in_noise" / content_hash(asked)


def columns(estimate_RBD: Tensor, score_BD: Tensor, effective_B: Tensor) -> Columns:
    mean_BD = estimate_RBD.mean(dim=0)
    found = {
        "along": (mean_BD * score_BD).sum(dim=1),
        "score_square": score_BD.square().sum(dim=1),
        "error_square": (estimate_RBD - score_BD).square().sum(dim=2).mean(dim=0),
        "spread_square": estimate_RBD.var(dim=0).sum(dim=1),
        "effective": effective_B,
    }
    return {name: column.tolist() for name, column in found.items()}


def rows_of(width: float, found: dict[str, Columns]) -> list[dict[str, Any]]:
    """A row a form, with bootstrap intervals over points."""
    rows = []
    for form, held in found.items():
        means = BootstrapMeans.of(held, seed=0)
        estimates = {
            "slope": means.estimate(lambda m: m["along"] / m["score_square"]),
            "error": means.estimate(lambda m: (m["error_square"] / m["score_square"]) ** 0.5),
            "spread": means.estimate(lambda m: (m["spread_square"] / m["score_square"]) ** 0.5),
        }
        row: dict[str, Any] = {"width": width, "form": form, "n": means.n}
        row["samples_that_count"] = sorted(held["effective"])[len(held["effective"]) // 2]
        for name, e in estimates.items():
            row |= {name: e.value, f"{name}_lo": e.lo, f"{name}_hi": e.hi}
        rows.append(row)
    return rows


def error_table(rows: list[dict[str, Any]]) -> str:
    def shown(row: dict[str, Any], name: str) -> str:
        return f"{row[name]:.3g} [{row[f'{name}_lo']:.3g}, {row[f'{name}_hi']:.3g}]"

    lines = [
        [
            f"{row['width']:g}",
            row["form"],
            *(shown(row, name) for name in ("slope", "error", "spread")),
            f"{row['samples_that_count']:.3g}",
        ]
        for row in rows
    ]
    legend = (
        "slope: the mean estimate projected on the score of noised samples (1: right); error and spread: root mean "
        f"squares over that of the score; [ ] 95 % bootstrap interval over n = {rows[0]['n']} points; samples: behind "
        "the kernel at a point, median"
    )
    return f"{table(['noise', 'form', 'slope', 'error', 'spread', 'samples'], lines)}\n{legend}"


if __name__ == "__main__":
    conclude(ScoreInNoise)
