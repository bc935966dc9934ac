"""A finished study found again by its folder: the models that it judged, the best of them, and any kept segment."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.answers.question import MetricChoice
from harness.checkpoint import Store, read_json
from harness.identity import Settings
from harness.plan import root_hash
from harness.trained_plan import TrainedPlan
from harness.tuning import TUNING_SEED

DESCRIPTION = "study.json"
STAGES = "stages.csv"
TABLES = (STAGES, "surface.csv", "trials.csv")
"""Of trained plans, of budget splits, and of sweeps: where their judged models are listed."""
AGAIN = "again.csv"
"""Of sweeps whose best points were trained again with fresh seeds."""
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, csv.Error)
"""What reading a table or a description raises that was cut, overwritten, or is something else."""
MOST_NAMED = 6
"""Names that an error lists."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A judged model of a study.

    Attributes:
        loss: by which the study compares, on validation points, smaller is better; infinite where it has none.
    """

    segment: str
    seed: int
    title: str
    loss: float = math.inf

    def __str__(self) -> str:
        return f"{self.title} (--segment {self.segment})"


@dataclass(frozen=True, kw_only=True)
class FinishedStudy:
    """What a folder OUTPUT/NAME/ID says of a study that ran to its end; its store is OUTPUT/store.

    Attributes:
        build, problem: what makes its Problem. seeds: that it may have trained with.
        contenders: the models that it would choose among; of a plan, those of its last stage.
    """

    folder: Path
    build: str
    problem: Settings
    seeds: tuple[int, ...]
    contenders: tuple[Contender, ...]
    store: Store

    @staticmethod
    def read(folder: Path) -> FinishedStudy:
        """The study of a folder; the end of its name may be left out.

        Raises:
            ValueError: where there is none, several fit, or it has not ended with models.
        """
        folder = study_folder(folder)
        told = read_json(folder / DESCRIPTION)
        if not isinstance(told, dict) or not isinstance(told.get("study"), dict):
            raise ValueError(
                f"a study's folder holds a {DESCRIPTION} that can be read, got a damaged one in {folder}; "
                "run the study's command again, which writes it anew"
            )
        study = told["study"]
        # Plans that are compared share setting and question.
        plans = study.get("plans")
        plan = next(iter(plans.values()), study) if isinstance(plans, dict) else study
        table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
        if table is None or not isinstance(plan, dict) or "setting" not in plan:
            raise ValueError(
                f"a study with models ends with one of {', '.join(TABLES)}, got none in {folder}; let the study's "
                "command run to its end, or write the folder of another study"
            )
        trained = TrainedPlan.read(folder) if table.name == STAGES else None
        try:
            contenders = tuple(contenders_of(folder, table.name, plan, trained))
            setting = plan["setting"]
            seeds = (*setting["seeds"], *(contender.seed for contender in contenders), TUNING_SEED)
            build, problem = setting["build"], setting["problem"]
        except DAMAGED as error:
            raise ValueError(
                f"{DESCRIPTION} and the tables of a study name its models, got a damaged {table.name} or "
                f"{DESCRIPTION} in {folder} ({type(error).__name__}: {error}); run the study's command again, which "
                "writes them anew"
            ) from error
        return FinishedStudy(
            folder=folder,
            build=build,
            problem=problem,
            seeds=tuple(dict.fromkeys(seeds)),
            contenders=contenders,
            store=Store(folder.resolve().parents[1] / "store"),
        )

    def winner(self) -> Contender:
        """The contender with the smallest loss.

        Raises:
            ValueError: where there is none, or several that cannot be compared.
        """
        if not self.contenders:
            raise ValueError(
                f"a study's winner is a model that it judged to the end, got none in {self.folder}; "
                "write --segment with the start of a segment's hash, or let the study run to its end"
            )
        best = min(self.contenders, key=lambda one: one.loss)
        if math.isfinite(best.loss) or len(self.contenders) == 1:
            return best
        names = "; ".join(str(one) for one in self.contenders[:MOST_NAMED])
        raise ValueError(
            f"a winner needs a judged metric, got {len(self.contenders)} models without one in {self.folder}; "
            f"write one of: {names}"
        )

    def model(self, start: str) -> Contender:
        """The one model whose segment's hash starts so: a contender, or anything that the store keeps of this study.

        Raises:
            ValueError: where none or several do.
        """
        example = "write more of the hash, as stages.csv, surface.csv or trials.csv have it"
        if not start or not set(start) <= set("0123456789abcdef"):
            raise ValueError(f"a segment's hash has the digits 0-9 and a-f, got {start!r}; {example}")
        known = {one.segment: one for one in self.contenders if one.segment.startswith(start)}
        for path in sorted((self.store.folder / "segments").glob(f"{start}*.json")):
            seed = self._seed_of(path.stem)
            if seed is not None and path.stem not in known:
                known[path.stem] = Contender(segment=path.stem, seed=seed, title=self._title(path.stem, seed))
        if len(known) == 1:
            return next(iter(known.values()))
        found = ", ".join(list(known)[:MOST_NAMED]) if known else "none"
        raise ValueError(f"--segment names one segment of {self.folder}, got {found} for {start!r}; {example}")

    def _seed_of(self, segment: str) -> int | None:
        """The seed of a segment of this study; None where it grew from another root."""
        roots = {root_hash(self.problem["system"], seed): seed for seed in self.seeds}
        parent: str | None = segment
        while parent is not None and parent not in roots:
            parent = (self.store.segment(parent) or {}).get("parent")
        return None if parent is None else roots[parent]

    def _title(self, segment: str, seed: int) -> str:
        known = self.store.segment(segment) or {}
        name = known.get("phase", {}).get("name", "segment")
        return f"{name}, {known.get('steps', '?')} steps, seed {seed}"


def study_folder(folder: Path) -> Path:
    """The folder of one study: the one given, or the only one whose name starts so, or the only one inside.

    Raises:
        ValueError: where none or several fit.
    """
    if (folder / DESCRIPTION).is_file():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}")) if folder.is_dir() else []
    beside = sorted(path.parent for path in folder.parent.glob(f"*/{DESCRIPTION}")) if folder.name else []
    found = inside or [path for path in beside if path.name.startswith(folder.name)]
    if len(found) == 1:
        return found[0]
    got = ", ".join(path.name for path in found[:MOST_NAMED]) if found else "none"
    raise ValueError(
        f"a study's folder is OUTPUT/NAME/ID with a {DESCRIPTION}, got {got} for {folder}; "
        "write the folder that the study printed"
    )


def contenders_of(
    folder: Path, table: str, study: Mapping[str, Any], trained: TrainedPlan | None
) -> Iterator[Contender]:
    """The models of a study's table.

    Args:
        study: the plain form of it, or of one of the plans that it compared. trained: the plans, where there are.
    """
    with (folder / table).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    metric = MetricChoice(**{**study["question"]["metric"], "log": False})
    if trained is not None:
        yield from last_stages(trained, rows, metric)
    elif table == "surface.csv":
        yield from judged_cells(rows, metric)
    elif (folder / AGAIN).is_file():
        with (folder / AGAIN).open(newline="") as stream:
            yield from points_trained_again(list(csv.DictReader(stream)))
    else:
        yield from swept_points(rows, study["setting"]["seeds"])


def last_stages(plan: TrainedPlan, rows: Sequence[Mapping[str, str]], metric: MetricChoice) -> Iterator[Contender]:
    last, by_segment = plan.stage(None), {row["segment"]: row for row in rows}
    for model in plan.models:
        segment = model.segments[last]
        loss = metric.loss(number(by_segment[segment].get(f"validation_{metric.name}")))
        yield Contender(segment=segment, seed=model.seed, title=plan.title(model, last), loss=loss)


def judged_cells(rows: Sequence[Mapping[str, str]], metric: MetricChoice) -> Iterator[Contender]:
    for row in rows:
        tail = f", {row['tail']} {row['tail_steps']} steps" if row["tail"] else ""
        title, diverged = f"trunk {row['fork_steps']} steps{tail}, seed {row['seed']}", row["diverged"] == "true"
        loss = math.inf if diverged else metric.loss(number(row.get(f"validation_{metric.name}")))
        yield Contender(segment=row["segment"], seed=int(row["seed"]), title=title, loss=loss)


def swept_points(rows: Sequence[Mapping[str, str]], seeds: Sequence[int]) -> Iterator[Contender]:
    """Models of finished points at their last rung. Their loss is the mean over seeds, by which points are chosen."""
    last = {row["point"]: row for row in rows if row["state"] == "finished" and row["segments"]}
    for point, row in last.items():
        for seed, segment in zip(seeds, row["segments"].split(), strict=True):
            title = f"point {point}, {row['steps']} steps, seed {seed}"
            yield Contender(segment=segment, seed=seed, title=title, loss=number(row["loss"]))


def points_trained_again(rows: Sequence[Mapping[str, str]]) -> Iterator[Contender]:
    """Models of fresh seeds, by the mean loss of their point, which no choice has flattered."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row["point"], []).append(number(row["loss"]))
    for row in rows:
        loss, title = sum(losses[row["point"]]) / len(losses[row["point"]]), f"point {row['point']} trained again"
        yield Contender(segment=row["segment"], seed=int(row["seed"]), title=f"{title}, seed {row['seed']}", loss=loss)


def number(text: str | None) -> float:
    """A number of a table, infinite where the field is empty."""
    return float(text) if text else math.inf
