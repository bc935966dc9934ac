"""A trained plan found again by its folder: the segments that its stages ended in, and the records they left."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checkpoint import Store, read_json
from harness.contracts import Records
from harness.identity import Settings
from harness.plan import Branch, Phase, Plan, root_hash
from harness.worker import evaluation_key

UNTRAINED = "untrained"


@dataclass(frozen=True, kw_only=True)
class TrainedPlan:
    """What `study.json` and `stages.csv` of a plan's folder say.

    Attributes:
        problem: settings of the problem. stages: the phases in order. steps: by seed, of every stage.
        store: that the plan's segments and records are in.
    """

    folder: Path
    problem: Settings
    stages: tuple[Phase, ...]
    steps: Mapping[int, tuple[int, ...]]
    store: Store

    @staticmethod
    def read(folder: Path) -> TrainedPlan:
        """The plan of a folder OUTPUT/NAME/ID; its store is OUTPUT/store.

        Raises:
            ValueError: where the folder is not one of a plan that ran to its end.
        """
        told = read_json(folder / "study.json")
        if told is None or "stages" not in told["study"] or not (folder / "stages.csv").is_file():
            raise ValueError(
                f"a trained plan is a folder with study.json and stages.csv, got {folder}; write the folder that "
                "training the plan printed"
            )
        stages = tuple(Phase.from_plain(stage["phase"]) for stage in told["study"]["stages"])
        return TrainedPlan(
            folder=folder,
            problem=told["study"]["setting"]["problem"],
            stages=stages,
            steps=steps_by_seed(folder / "stages.csv", stages),
            store=Store(folder.resolve().parents[1] / "store"),
        )

    def stage(self, number: int | None) -> int:
        """A stage's number, counted from one, 0 for the untrained model; the last one for None.

        Raises:
            ValueError: for a stage that the plan does not have.
        """
        chosen = len(self.stages) if number is None else number
        if not 0 <= chosen <= len(self.stages):
            raise ValueError(
                f"a stage of {self.folder} is a number from 0 (untrained) to {len(self.stages)}, got {number}; "
                "leave it out for the last one"
            )
        return chosen

    def title(self, number: int) -> str:
        return self.stages[number - 1].name if number else UNTRAINED

    def segment(self, seed: int, number: int) -> str:
        """Hash of the segment that a stage ended in."""
        root = root_hash(self.problem["system"], seed)
        if number == 0:
            return Branch(parent=root, phase=self.stages[0], seed=seed).at(0).hash
        done = tuple(zip(self.stages, self.steps[seed], strict=True))[:number]
        return Plan(stages=done).segments(root=root, seed=seed)[-1].hash

    def records(self, seed: int, number: int) -> Records:
        """The per-sample records of a stage's end, as they were judged.

        Raises:
            ValueError: where the store has none.
        """
        segment = self.segment(seed, number)
        known = self.store.evaluation(segment, evaluation_key(self.problem))
        if known is None:
            raise ValueError(
                f"the stage must have been judged, got no records of segment {segment} in {self.store.folder}; "
                "run the command that trained the plan again"
            )
        return self.store.get_arrays(known["records"])


def steps_by_seed(file: Path, stages: tuple[Phase, ...]) -> dict[int, tuple[int, ...]]:
    """Steps of every stage, from a row for each seed and stage, the untrained model first.

    Raises:
        ValueError: where a seed lacks a stage.
    """
    with file.open(newline="") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    expected = [UNTRAINED, *(phase.name for phase in stages)]
    found: dict[int, tuple[int, ...]] = {}
    for seed in sorted({int(row["seed"]) for row in rows}):
        mine = [row for row in rows if int(row["seed"]) == seed]
        names = [row["stage"] for row in mine]
        if names != expected:
            raise ValueError(
                f"every seed of {file} must have the stages {', '.join(expected)}, got {', '.join(names)} for seed "
                f"{seed}; run the command that trained the plan again"
            )
        found[seed] = tuple(int(row["steps"]) for row in mine[1:])
    return found
