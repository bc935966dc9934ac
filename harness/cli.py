"""One command line for every study: the options that all share, and how their texts are read."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from harness.answers.question import Question
from harness.budget import Budget
from harness.identity import Settings
from harness.room import NoRoom
from harness.session import Setting, StudyFailed
from harness.split import SplitPhases
from harness.study import Study
from harness.told import check_paths, one_line
from harness.trial import Placement
from harness.tuning import Tuning

MOST_BUDGETS = 64
MOST_SEEDS = 1000
"""That a count may ask for."""
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options that every study takes."""

    seeds: str = "3"
    """How many seeds, or a list such as 3,5,8. A claim needs at least five."""
    workers: int = 2
    """Data-parallel workers of a trial."""
    threads: int = 1
    """Threads of a worker."""
    gpus_per_worker: float = 0.0
    """GPUs (or a share of one) of a worker."""
    concurrent: int | None = None
    """Most trials at once (default: as many as fit)."""
    runner: Literal["ray", "inline"] = "ray"
    """ray: workers under Ray Train. inline: one worker in this process."""
    address: str | None = None
    """A running Ray cluster (default: $RAY_ADDRESS, or else a local Ray that starts and stops with the study)."""
    output: Path = Path("results")
    """Folder of results, checkpoints and records."""
    tracking_uri: str | None = None
    """An MLflow server (default: an SQLite file under --output)."""
    memory_cap_gib: float | None = None
    """Most memory that a step may take on a worker (weights, optimiser and all that the step makes): larger steps are
    cut into micro-batches, and budgets compared at equal memory."""
    checkpoint_seconds: float = 20.0
    """Longest training between two checkpoints: what a kill can cost."""

    def setting(self, *, build: str, problem: Settings) -> Setting:
        """What all trials of the study share. The inline runner has one worker."""
        if not self.checkpoint_seconds >= 0:
            raise ValueError(
                f"checkpoints are some seconds apart, got {self.checkpoint_seconds}; "
                "write for example --checkpoint-seconds 20"
            )
        workers = 1 if self.runner == "inline" else self.workers
        return Setting(
            build=build,
            problem=problem,
            seeds=parse_seeds(self.seeds),
            placement=Placement(workers=workers, threads=self.threads, gpus_per_worker=self.gpus_per_worker),
            checkpoint_seconds=self.checkpoint_seconds,
            memory_cap_bytes=None if self.memory_cap_gib is None else self.memory_cap_gib * 2**30,
        )


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(StudyOptions):
    """Options of studies that split budgets."""

    budget: str | None = None
    """The largest budget: 60s, 2h (device-seconds of all workers) or 3e13flop (default: what suits the target)."""
    budgets: str = "4"
    """How many budgets, each half of the next, or a list with units: 1s,3s,10s."""
    splits: int = 5
    """Trunk checkpoints that tails start from, besides the untrained model; at least 2."""
    shares: str | None = None
    """Instead of --splits: the trunk's shares of the largest budget, for example 0.05,0.2,0.5."""
    place: Literal["study", "seed", "branch"] = "study"
    """What one worker group trains: all, a seed's tree, or (on a cluster) a branch. The numbers are the same."""
    tune: int = 0
    """Settings tried for each phase before the study (0: none)."""
    search: Literal["tpe", "grid"] = "tpe"
    """How settings are proposed: Optuna's TPE, or a grid."""

    dry_run: bool = False
    """Print what would be done and what it would cost, and stop."""

    def split_study(
        self, *, name: str, question: Question, setting: Setting, phases: SplitPhases, budget: str
    ) -> Study:
        """The study of these options. `budget` is the largest one where the user gave none."""
        return Study(
            name=name,
            question=question,
            setting=setting,
            phases=phases,
            budgets=parse_budgets(budget if self.budget is None else self.budget, self.budgets),
            splits=self.splits,
            shares=None if self.shares is None else parse_shares(self.shares),
            one_trial_a=self.place,
            tuning=Tuning(trials=self.tune) if self.tune else None,
        )


def parse_budgets(largest: str, budgets: str) -> tuple[Budget, ...]:
    """A count ("4": each half of the next, up to `largest`) or a list ("1s,3s,10s")."""
    if not budgets.strip().isdecimal():
        return tuple(Budget.parse(text) for text in budgets.split(","))
    top, count = Budget.parse(largest), int(budgets)
    if not 1 <= count <= MOST_BUDGETS:
        raise ValueError(
            f"a study needs at least one budget and at most {MOST_BUDGETS}, each half of the next, got --budgets "
            f"{budgets}; write for example --budgets 4"
        )
    amounts = [top.amount / 2**k for k in reversed(range(count))]
    return tuple(Budget(amount=amount, currency=top.currency) for amount in amounts)


def parse_shares(text: str) -> tuple[float, ...]:
    """ "0.05,0.2,0.5": shares of the largest budget, each in (0, 1), rising."""
    example = "write for example --shares 0.05,0.2,0.5"
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"shares are numbers between 0 and 1, got {text!r}; {example}") from None
    if len(set(shares)) < 2 or not all(0 < share < 1 for share in shares):
        raise ValueError(f"at least two shares are needed, each inside (0, 1), got {text!r}; {example}")
    return tuple(sorted(set(shares)))


def parse_seeds(text: str) -> tuple[int, ...]:
    """A count ("3": 0, 1, 2) or a list ("3,5,8")."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"seeds are a count or a list of whole numbers, got {text!r}; write --seeds 3 or 3,5,8"
        ) from None
    counted = "," not in text
    if min(numbers) < 0 or (counted and numbers[0] == 0):
        raise ValueError(
            f"at least one seed is needed, none of them negative, got {text!r}; write for example --seeds 3"
        )
    if max(numbers) > LARGEST_SEED or (counted and numbers[0] > MOST_SEEDS):
        raise ValueError(
            f"seeds are a count up to {MOST_SEEDS} or numbers up to {LARGEST_SEED}, got {text!r}; write --seeds 3"
        )
    return tuple(range(numbers[0])) if counted else numbers


def conclude(kind: type[Any]) -> None:
    """Parse the command line and run what it asks for. The whole program of a study's file.

    Args:
        kind: a dataclass of options with `execute() -> str`, the text to print.
    """
    options = tyro.cli(kind)
    try:
        check_paths(options)
        print(options.execute())
    except (ValueError, StudyFailed, NoRoom) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        text = f"a study reads and writes files, got {error}; mend that, or write another path, and run it again"
        print(f"error: {one_line(text)}", file=sys.stderr)
        raise SystemExit(2) from error
