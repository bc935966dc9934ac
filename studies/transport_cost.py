"""How much does a larger batch shorten the way from base to data, under each coupling?

    python studies/transport_cost.py --target lj13
    python studies/transport_cost.py --target lj55 --data samples.npy

The question of Klein et al. 2023 (figures 1c, 2d and 3b): mini-batch optimal transport can only match what a batch
holds, and where data have symmetries it matches far less than a coupling that knows them. Nothing is trained.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.answers.export import write_csv
from harness.answers.figure_changes import Curve, CurvePanel, draw_curves
from harness.answers.report import table
from harness.checkpoint import read_json, write_json
from harness.cli import conclude
from harness.identity import content_hash
from harness.launch import check_output
from harness.progress import Progress
from models.couplings import Coupling
from models.estimators import t_interval
from models.flows.prior import GaussianPrior
from models.objective_settings import coupling_of
from models.reference.published import read_rows
from models.reference.samples import reference_samples
from models.systems import CouplingName, System, system_of
from studies.coupling_plans import FOR_PARTICLES, PLAIN

FEWEST_BATCHES = 2
"""Of the largest size: an interval needs more than one."""
Piece = dict[str, list[float]]
"""Of every batch: the mean squared distance of its pairs, their mean distance, and the seconds that pairing took."""


@dataclass(frozen=True, kw_only=True)
class TransportCost:
    """How much does a larger batch shorten the way from base to data, under each coupling?"""

    target: str = "lj13"
    """gmm4, gmm40, dw4, lj13, lj55, ad2-classical, ad2-xtb, or module:function for a target of your own."""
    couplings: tuple[CouplingName, ...] = ()
    """Couplings to compare (default: all that suit the target)."""
    batches: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    """Batch sizes, rising."""
    pairs: int = 1024
    """Pairs that every batch size is measured on, as many batches as they make."""
    data: Path | None = None
    """Data points as a .npy file, its rows evenly spread (default: own reference samples)."""
    seed: int = 0
    """Of the base points."""
    output: Path = Path("results")
    """Folder of results; own reference samples are kept in it."""

    def execute(self) -> str:
        system = system_of(self.target)
        names = self.couplings or (FOR_PARTICLES if system.target.space.particles else PLAIN)
        self.check(system, names)
        x0_BD, x1_BD = self.points(system)
        folder, progress = self.folder(), Progress()
        pieces = {}
        for name in names:
            for batch in self.batches:
                progress.note(f"{name}, batches of {batch}")
                path = folder / "pieces" / f"{name}-{batch}.json"
                pieces[name, batch] = measured(path, coupling_of(name, system), x0_BD, x1_BD, batch)
        rows = cost_rows(pieces)
        write_csv(folder / "transport_cost.csv", rows)
        self.draw(folder / "transport_cost.png", names, rows)
        return f"{cost_table(names, self.batches, rows)}\n\nin {folder}:\n  transport_cost.csv\n  transport_cost.png"

    def check(self, system: System, names: tuple[CouplingName, ...]) -> None:
        """Raise ValueError for couplings, batches or pairs that make no sense together."""
        if list(self.batches) != sorted(set(self.batches)) or not self.batches or self.batches[0] < 1:
            raise ValueError(f"batch sizes rise from 1 on, got {list(self.batches)}; write --batches 16 64 256")
        if self.pairs < FEWEST_BATCHES * self.batches[-1]:
            raise ValueError(
                f"every size is measured on {FEWEST_BATCHES} batches at least, got --pairs {self.pairs} for batches of "
                f"{self.batches[-1]}; write --pairs {FEWEST_BATCHES * self.batches[-1]} or more"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"couplings differ, got {' '.join(names)}; write each once")
        for name in names:
            coupling_of(name, system)
        check_output(self.output)

    def points(self, system: System) -> tuple[Tensor, Tensor]:
        """Base and data points, (pairs, D) each, in float64.

        Raises:
            ValueError: where a file has fewer rows.
        """
        target = system.target
        if self.data is None:
            cache = self.output / "store" / "reference"
            rows_BD = reference_samples(target, n_train=2, n_validation=2, n_test=self.pairs, cache_dir=cache).test_BD
        else:
            rows_BD = read_rows(self.data, target.space, at_most=self.pairs)
            if len(rows_BD) < self.pairs:
                raise ValueError(
                    f"every pair has a data point of its own, got {len(rows_BD)} rows in {self.data} for "
                    f"{self.pairs} pairs; write --pairs {len(rows_BD)}"
                )
        x1_BD = target.space.project(rows_BD.double())
        prior = GaussianPrior(space=target.space, std=system.prior_std)
        return prior.sample(self.pairs, torch.Generator().manual_seed(self.seed), like=x1_BD), x1_BD

    def folder(self) -> Path:
        """The same question has the same folder."""
        asked = {key: value for key, value in vars(self).items() if key not in ("output", "couplings", "batches")}
        asked["data"] = None if self.data is None else str(self.data.resolve())
        return self.output / "transport_cost" / content_hash(asked)

    def draw(self, path: Path, names: tuple[CouplingName, ...], rows: list[dict[str, Any]]) -> None:
        def curve(name: str, quantity: str) -> Curve:
            held = [row for row in rows if row["coupling"] == name]
            y, lo, hi = ([row[f"{quantity}{end}"] for row in held] for end in ("", "_lo", "_hi"))
            return Curve(label=name, x=[row["batch"] for row in held], y=y, lo=lo, hi=hi)

        panels = [
            CurvePanel(title=title, xlabel="batch size", ylabel=label, curves=[curve(name, key) for name in names])
            for key, title, label in (
                ("squared_distance", "Transport cost", "mean squared distance / length unit squared"),
                ("milliseconds_a_row", "What pairing takes", "milliseconds a row, one thread"),
            )
        ]
        caption = f"{self.target}: {self.pairs} pairs of base and data points; 95 % t interval over batches."
        draw_curves(path, panels, caption=caption)


def measured(path: Path, coupling: Coupling, x0_BD: Tensor, x1_BD: Tensor, batch: int) -> Piece:
    """One coupling at one batch size: read where it was measured before."""
    known = read_json(path)
    if known is not None:
        return known
    piece: Piece = {"squared_distance": [], "distance": [], "seconds": []}
    for x0, x1 in zip(x0_BD.split(batch), x1_BD.split(batch), strict=True):
        if len(x0) < batch:
            break
        start = time.process_time()
        cost_B = coupling(x0, x1).cost_B
        piece["seconds"].append(time.process_time() - start)
        piece["squared_distance"].append(float(cost_B.mean()))
        piece["distance"].append(float(cost_B.sqrt().mean()))
    write_json(path, piece)
    return piece


def cost_rows(pieces: dict[tuple[CouplingName, int], Piece]) -> list[dict[str, Any]]:
    """A row for every coupling and batch size: means over batches with 95 % t intervals."""
    rows = []
    for (name, batch), piece in pieces.items():
        row: dict[str, Any] = {"coupling": name, "batch": batch}
        milliseconds = [1e3 * seconds / batch for seconds in piece["seconds"]]
        for key, values in (
            ("squared_distance", piece["squared_distance"]),
            ("distance", piece["distance"]),
            ("milliseconds_a_row", milliseconds),
        ):
            e = t_interval(values)
            row |= {key: e.value, f"{key}_lo": e.lo, f"{key}_hi": e.hi, "batches": e.n}
        rows.append(row)
    return rows


def cost_table(names: tuple[CouplingName, ...], batches: tuple[int, ...], rows: list[dict[str, Any]]) -> str:
    by_place = {(row["coupling"], row["batch"]): row for row in rows}

    def text(name: str, batch: int) -> str:
        row = by_place[name, batch]
        return f"{row['squared_distance']:.4g} [{row['squared_distance_lo']:.4g}, {row['squared_distance_hi']:.4g}]"

    lines = [[str(batch), *(text(name, batch) for name in names)] for batch in batches]
    legend = "mean squared distance of pairs, length units squared; [ ] 95 % t interval over batches"
    return f"{legend}\n{table(['batch', *names], lines)}"


if __name__ == "__main__":
    conclude(TransportCost)
