"""Trained plans found again by their folder: the segments that judged stages ended in, and the records they left."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checkpoint import DamagedObject, Store, read_json
from harness.contracts import Records
from harness.identity import Settings
from harness.worker import evaluation_key

UNTRAINED = "untrained"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """One plan trained with one seed.

    Attributes:
        plan: its name among those compared, "" where it is alone.
        segments: hashes of the segments that its judged stages ended in, by the number of the stage (0: untrained).
    """

    plan: str
    seed: int
    segments: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class TrainedPlan:
    """What `study.json` and `stages.csv` of a folder say of a plan, or of several that were compared.

    Attributes:
        problem: settings of the problem. stages: names of the phases, in order, the same for all plans.
        store: that the segments and records are in.
    """

    folder: Path
    problem: Settings
    stages: tuple[str, ...]
    models: tuple[TrainedModel, ...]
    store: Store

    @staticmethod
    def read(folder: Path) -> TrainedPlan:
        """The plan of a folder OUTPUT/NAME/ID; its store is OUTPUT/store.

        Raises:
            ValueError: where the folder is not one of a plan that ran to its end.
        """
        if not all((folder / name).is_file() for name in ("study.json", "stages.csv")):
            raise ValueError(
                f"a trained plan is a folder with study.json and stages.csv, got {folder}; write the folder that "
                "training the plan printed"
            )
        try:
            plan = described_plan(read_json(folder / "study.json"))
            stages = tuple(stage["phase"]["name"] for stage in plan["stages"])
            rows = table_rows(folder / "stages.csv")
            problem = plan["setting"]["problem"]
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration, csv.Error) as error:
            raise ValueError(
                f"study.json and stages.csv tell what was trained, got a damaged stages.csv or study.json in {folder} "
                f"({type(error).__name__}: {error}); run the plan's command again, or write the folder "
                "of a plan"
            ) from error
        return TrainedPlan(
            folder=folder,
            problem=problem,
            stages=stages,
            models=trained_models(rows, folder / "stages.csv", stages),
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

    def title(self, model: TrainedModel, number: int) -> str:
        stage = self.stages[number - 1] if number else UNTRAINED
        return ", ".join([*([model.plan] if model.plan else []), stage, f"seed {model.seed}"])

    def records(self, model: TrainedModel, number: int) -> Records:
        """The per-sample records of a stage's end, as they were judged.

        Raises:
            ValueError: where there are none.
        """
        segment = model.segments.get(number)
        known = None if segment is None else self.store.evaluation(segment, evaluation_key(self.problem))
        if known is None:
            raise ValueError(
                f"the stage must have been judged, got no records of {self.title(model, number)} in "
                f"{self.store.folder}; run the command that trained the plan again, without --judge-last"
            )
        try:
            return self.store.get_arrays(known["records"])
        except DamagedObject as error:
            raise ValueError(
                f"the records of {self.title(model, number)} are read from {self.store.folder}, but they cannot be "
                f"({error}); run the command that trained the plan again"
            ) from error


def described_plan(told: Any) -> Mapping[str, Any]:
    """The plain form of a plan, or of the first of those that were compared."""
    study = told["study"]
    return study if "stages" in study else next(iter(study["plans"].values()))


def table_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a table, their seeds as numbers."""
    with file.open(newline="") as stream:
        return [{**row, "seed": int(row["seed"]), "stage": row["stage"]} for row in csv.DictReader(stream)]


def trained_models(rows: Sequence[Mapping[str, Any]], file: Path, stages: tuple[str, ...]) -> tuple[TrainedModel, ...]:
    """The segments of a table with a row for each plan, seed and judged stage: the last ones, or all and the untrained.

    Raises:
        ValueError: where a seed lacks a stage, or the table does not name segments.
    """
    places = list(dict.fromkeys((row.get("plan") or "", row["seed"]) for row in rows))
    names, models = [UNTRAINED, *stages], []
    for plan, seed in places:
        mine = [row for row in rows if (row.get("plan") or "", row["seed"]) == (plan, seed)]
        found, first = [row["stage"] for row in mine], len(names) - len(mine)
        if first < 0 or found != names[first:] or not all(row.get("segment") for row in mine):
            raise ValueError(
                f"every seed of {file} must have the stages {', '.join(names)} or the last of them, with their "
                f"segments, got {', '.join(found)} for seed {seed}; run the command that trained the plan again"
            )
        segments = {first + k: row["segment"] for k, row in enumerate(mine)}
        models.append(TrainedModel(plan=plan, seed=seed, segments=segments))
    return tuple(models)
