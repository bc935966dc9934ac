"""How good is S_K, the score estimated from the energy alone, against noises, noise time and dimension?

    python studies/score_estimator.py

The question of figures 5 and 10 to 13 of Akhound-Sadegh et al. 2024, where the exact score is known: bias, variance and
direction of three forms of the estimate on GMM40, of S_K on a mixture in growing dimension, and samples in ten thousand
dimensions that no network was trained for. What is measured stays on disk: the same command goes on where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from harness.checkpoint import read_json, write_json
from harness.cli import conclude
from harness.identity import content_hash
from harness.launch import check_output
from harness.progress import Progress
from models.flows.diffusion import ReverseSDE
from models.schedules import Geometric
from models.score_accuracy import score_errors
from models.score_estimator import Clip, EstimatedScore, Form
from models.targets import GaussianMixture, gmm40
from studies.score_estimator_report import Piece, report

SCHEDULE = Geometric(sigma_min=1e-5, sigma_max=1.0)
"""Akhound-Sadegh et al. 2024, for GMM40 in units in which it fills [-1, 1]."""
GMM40_SCALE = 50.0
WEIGHTS = (0.3, 0.7)
DISTANCE = 4.0
"""Of the two modes of the mixture of any dimension, in standard deviations of a mode."""
DIMENSION_VARIANCE = 1.0
"""Of the noise where the dimension grows, in variances of a mode."""
SAMPLING_SCHEDULE = Geometric(sigma_min=0.01, sigma_max=10.0)

Part = Literal["target", "dimension", "sampling"]


def small_gmm40() -> GaussianMixture:
    """Forty Gaussians in the square [-1, 1]^2."""
    wide = gmm40()
    return GaussianMixture(
        name="gmm40 in [-1, 1]", means_KD=wide.means_KD / GMM40_SCALE, variance=wide.variance / GMM40_SCALE**2
    )


def two_modes(dim: int) -> GaussianMixture:
    """Two Gaussians of variance one and unequal weights, equally far apart in any dimension."""
    means_KD = torch.zeros(2, dim, dtype=torch.float64)
    means_KD[0, 0], means_KD[1, 0] = -DISTANCE / 2, DISTANCE / 2
    weights_K = torch.tensor(WEIGHTS, dtype=torch.float64)
    return GaussianMixture(name=f"two modes in {dim} dimensions", means_KD=means_KD, variance=1.0, weights_K=weights_K)


@dataclass(frozen=True, kw_only=True)
class ScoreEstimatorStudy:
    """How good is S_K against the exact score? Training against K is not asked here."""

    parts: tuple[Part, ...] = ("target", "dimension", "sampling")
    """What is measured: errors on GMM40, errors in growing dimension, samples in many dimensions."""
    samples: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    """K, rising."""
    times: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0)
    """Noise times on GMM40, in (0, 1]."""
    forms: tuple[Form, ...] = ("weighted", "ratio", "jensen")
    """Forms of the estimate on GMM40."""
    dimensions: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Dimensions of the mixture of two modes, at the largest K and one noise variance."""
    points: int = 64
    """Points, drawn from the noised target, that errors are averaged over."""
    repeats: int = 32
    """Independent estimates at each point."""
    sampling_dimension: int = 10_000
    """Dimension of the mixture that is sampled."""
    sampling_rows: int = 64
    """Samples."""
    sampling_noises: int = 10
    """K of the score that drives the samples."""
    sampling_steps: int = 300
    """Steps of the reverse process."""
    seed: int = 0
    """Of points and noises."""
    dry_run: bool = False
    """Print what would be measured and what it would call, and stop."""
    output: Path = Path("results")
    """Folder of results."""

    def execute(self) -> str:
        self.check()
        pieces = self.pieces()
        if self.dry_run:
            return self.describe(pieces)
        progress = Progress()
        missing = [piece for piece in pieces if self.known(piece) is None]
        # What counts as spent are energies times what one takes: components and dimensions.
        progress.plan(device_seconds=sum(map(self.work, missing)), cells=len(missing))
        for piece in missing:
            write_json(self.file(piece), self.measure(piece))
            progress.advance(piece.title, device_seconds=self.work(piece), cells=1)
        progress.close()
        found = {piece: self.known(piece) for piece in pieces}
        return report(self.folder(), {piece: records for piece, records in found.items() if records is not None})

    def check(self) -> None:
        """Raise ValueError for options that ask for nothing or for what cannot be measured."""
        if not self.parts or not set(self.parts) <= set(get_args(Part)) or len(set(self.parts)) < len(self.parts):
            raise ValueError(
                f"parts are some of {', '.join(get_args(Part))}, got {list(self.parts)}; write --parts target"
            )
        for name, values in (("samples", self.samples), ("dimensions", self.dimensions)):
            if not values or values[0] < 1 or list(values) != sorted(set(values)):
                raise ValueError(f"{name} rise from one or more, got {list(values)}; write --{name} 1 10 100")
        if not self.times or not all(0.0 < tau <= 1.0 for tau in self.times) or len(set(self.times)) < len(self.times):
            raise ValueError(f"noise times differ and lie in (0, 1], got {list(self.times)}; write --times 0.7 0.9")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise ValueError(f"forms differ, and there is one at least, got {list(self.forms)}; write --forms weighted")
        for name, least, write in (
            ("points", 2, 64),
            ("repeats", 2, 32),
            ("sampling_dimension", 1, 10_000),
            ("sampling_rows", 2, 64),
            ("sampling_noises", 1, 10),
            ("sampling_steps", 1, 300),
        ):
            option = "--" + name.replace("_", "-")
            if getattr(self, name) < least:
                raise ValueError(f"{option} is at least {least}, got {getattr(self, name)}; write {option} {write}")
        check_output(self.output)

    def pieces(self) -> list[Piece]:
        """Everything that is measured by itself, in the order of the report."""
        pieces = []
        if "target" in self.parts:
            pieces += [
                Piece(part="target", form=form, x=tau, samples=k)
                for form in self.forms
                for tau in self.times
                for k in self.samples
            ]
        if "dimension" in self.parts:
            k = self.samples[-1]
            pieces += [Piece(part="dimension", form="weighted", x=float(dim), samples=k) for dim in self.dimensions]
        if "sampling" in self.parts:
            dim = float(self.sampling_dimension)
            pieces.append(Piece(part="sampling", form="weighted", x=dim, samples=self.sampling_noises))
        return pieces

    def measure(self, piece: Piece) -> dict[str, list[float]]:
        """The records of one piece: columns of numbers."""
        if piece.part == "sampling":
            return self.sample(piece)
        on_target = piece.part == "target"
        target = small_gmm40() if on_target else two_modes(int(piece.x))
        variance = float(SCHEDULE.h(torch.tensor(piece.x, dtype=torch.float64))) if on_target else DIMENSION_VARIANCE
        generator = torch.Generator().manual_seed(self.seed)
        x_PD = target.noised(variance).sample(self.points, generator).double()
        found = score_errors(
            target,
            x_PD,
            variance=variance,
            samples=piece.samples,
            repeats=self.repeats,
            form=piece.form,
            seed=self.seed + 1,
        )
        return {name: column.tolist() for name, column in vars(found).items()}

    def sample(self, piece: Piece) -> dict[str, list[float]]:
        """Energies per dimension, first coordinates and widths of the samples, and of as many exact ones."""
        target = two_modes(int(piece.x))
        generator = torch.Generator().manual_seed(self.seed)
        # The score is as long as that of clean data at most.
        clip = Clip(norm=math.sqrt(piece.x), of="row")
        score = EstimatedScore(
            target=target, schedule=SAMPLING_SCHEDULE, samples=piece.samples, generator=generator, clip=clip
        )
        process = ReverseSDE(space=target.space, schedule=SAMPLING_SCHEDULE, steps=self.sampling_steps)
        drawn = {
            "model": process.sample(score, self.sampling_rows, generator=generator),
            "exact": target.sample(self.sampling_rows, generator),
        }
        records = {}
        for name, x_BD in drawn.items():
            records[f"{name}/energy_per_dimension"] = (target.energy(x_BD) / piece.x).tolist()
            records[f"{name}/first"] = x_BD[:, 0].tolist()
            records[f"{name}/width"] = x_BD[:, 1:].square().mean(dim=1).sqrt().tolist() if piece.x > 1 else []
        return records

    def known(self, piece: Piece) -> dict[str, list[float]] | None:
        """The records of a piece that was measured before."""
        return read_json(self.file(piece))

    def file(self, piece: Piece) -> Path:
        """Its name knows what the piece was measured with, and nothing of the pieces beside it."""
        asked = {"piece": piece, "seed": self.seed, "points": self.points, "repeats": self.repeats}
        if piece.part == "sampling":
            asked = {"piece": piece, "seed": self.seed, "rows": self.sampling_rows, "steps": self.sampling_steps}
        return self.output / "score_estimator" / "pieces" / f"{content_hash(asked)}.json"

    def folder(self) -> Path:
        """The same question has the same folder."""
        asked = {name: value for name, value in vars(self).items() if name not in ("output", "dry_run")}
        return self.output / "score_estimator" / content_hash(asked)

    def describe(self, pieces: list[Piece]) -> str:
        lines = []
        for part in self.parts:
            held = [piece for piece in pieces if piece.part == part]
            done = sum(self.known(piece) is not None for piece in held)
            calls = sum(self.calls(piece) for piece in held if self.known(piece) is None)
            lines.append(f"{part:10} {len(held):4} pieces, {done} on disk, {calls:.3g} energies to evaluate")
        return "\n".join([*lines, f"answers go to {self.folder()}"])

    def work(self, piece: Piece) -> float:
        """The share of a piece in what all take, in no unit."""
        return self.calls(piece) * (40.0 if piece.part == "target" else 10.0 + piece.x)

    def calls(self, piece: Piece) -> float:
        """Energies that a piece evaluates: with what is subtracted from a bias, twice as many."""
        if piece.part == "sampling":
            return float(self.sampling_rows * self.sampling_steps * piece.samples)
        return float(np.prod([self.points, self.repeats, piece.samples, 1 if piece.form == "jensen" else 2]))


if __name__ == "__main__":
    conclude(ScoreEstimatorStudy)
