"""From options to a running study: checks first, then the tools that the options name.

Tools are imported inside functions, so that a dry run or a wrong option never waits for them.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.address import resolve
from harness.checkpoint import write_json
from harness.cli import BudgetOptions, StudyOptions
from harness.contracts import Choice, FloatRange, IntRange, Runner, Search, SearchSpace
from harness.dashboard import HOST, PORT
from harness.identity import plain
from harness.plan import Phase
from harness.plan_run import PlanCells, PlanStudyRun
from harness.plan_study import PlanComparison, PlanStudy
from harness.session import Setting
from harness.study import Study, StudyRun
from harness.sweep import Sweep
from harness.sweep_again import Again
from harness.sweep_points import Meaning
from harness.sweep_run import Loss, SweepRun
from harness.trial import Placement
from harness.view import View, plan_view, split_view, sweep_view

if TYPE_CHECKING:
    from harness.adapters.mlflow_recorder import MlflowRecorder

PACKAGES = ("torch", "torchdyn", "pot", "ray", "optuna", "mlflow", "numpy", "scipy")

Conclude = Callable[[PlanStudyRun, PlanCells], str]
"""Writes the files of a run of plans from its judged cells; the text to print."""


def launch_split(study: Study, options: BudgetOptions, *, experiment: str) -> str:
    """Run, resume or only describe a budget study; the text to print. Records go to the tracker's `experiment`."""
    check_output(options.output)
    if options.dry_run:
        from harness.dry_run import describe

        return describe(study, options.output)
    check_machine(study.setting.placement, options)
    check_problem(study.setting, study.phases.all, options.output)
    from harness.conclusion import conclude_study

    folder = options.output / study.name / study.id
    with runner_of(options, folder) as runner, recorder_of(study, options, experiment) as recorder:
        run = StudyRun(
            study,
            output=options.output,
            runner=runner,
            recorder=recorder,
            make_search=search_factory(options, study.setting.seeds[0], folder),
        )
        return f"{conclude_study(run, run.run())}\n{where_to_look(recorder, options)}"


def launch_plan(study: PlanStudy, options: StudyOptions, *, experiment: str) -> str:
    """Run or resume one plan; the text to print. Records go to the tracker's `experiment`."""
    from harness.plan_report import conclude_plan

    return run_plans(study, options, experiment=experiment, conclude=conclude_plan)


def launch_comparison(
    study: PlanComparison, options: StudyOptions, *, experiment: str, conclude: Conclude, dry_run: bool
) -> str:
    """Run, resume or only describe several plans side by side; the text to print, which `conclude` writes."""
    if dry_run:
        check_output(options.output)
        check_problem(study.setting, study.phases, options.output)
        from harness.plan_dry_run import describe_plans

        return describe_plans(study, options.output)
    return run_plans(study, options, experiment=experiment, conclude=conclude)


def run_plans(study: PlanStudy | PlanComparison, options: StudyOptions, *, experiment: str, conclude: Conclude) -> str:
    """Run or resume; what `conclude` says of the run and of its judged cells."""
    check_output(options.output)
    check_machine(study.setting.placement, options)
    check_problem(study.setting, study.phases, options.output)
    folder = options.output / study.name / study.id
    with runner_of(options, folder) as runner, recorder_of(study, options, experiment) as recorder:
        run = PlanStudyRun(study, output=options.output, runner=runner, recorder=recorder)
        return f"{conclude(run, run.run())}\n{where_to_look(recorder, options)}"


def launch_sweep(
    sweep: Sweep,
    options: StudyOptions,
    *,
    meaning: Meaning,
    loss: Loss,
    experiment: str,
    resamples: int,
    again: Again | None = None,
) -> str:
    """Run or resume a sweep; the text to print. Arguments as for a SweepRun and its report."""
    check_output(options.output)
    check_machine(sweep.setting.placement, options)
    check_problem(sweep.setting, list(meaning.phases()), options.output)
    from harness.adapters.optuna_importance import fanova
    from harness.adapters.optuna_search import OptunaSearch
    from harness.sweep_report import conclude_sweep

    folder = options.output / sweep.name / sweep.id
    search = OptunaSearch(
        name=sweep.name,
        space=sweep.space,
        trials=sweep.trials,
        seed=sweep.setting.seeds[0],
        storage=folder / "search.journal",
        pruner=sweep.pruner,
        n_startup=sweep.startup,
        ladder=sweep.ladder,
        acts=sweep.acts if sweep.conditional else None,
        first=sweep.first,
    )
    with runner_of(options, folder) as runner, recorder_of(sweep, options, experiment) as recorder:
        run = SweepRun(
            sweep,
            meaning=meaning,
            loss=loss,
            search=search,
            output=options.output,
            runner=runner,
            recorder=recorder,
        )
        text = conclude_sweep(run, run.run(), share=fanova, resamples=resamples, again=again)
        return f"{text}\n{where_to_look(recorder, options)}"


def check_output(output: Path) -> None:
    """Raise ValueError unless files can be written under `output`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"the output folder must be writable, got {output} ({error.strerror}); write --output with another folder"
        ) from error


def check_problem(setting: Setting, phases: Sequence[Phase], output: Path) -> None:
    """Make every objective and model, and (or read) training data where a phase wants them: what is cheap comes first.

    Raises:
        ValueError: for settings of which one of these cannot be made, or a batch that leaves workers without a sample.
    """
    problem = resolve(setting.build)(setting.problem, cache=output / "store" / "reference")
    for phase in phases:
        problem.objective(phase.objective)
        if phase.batch < setting.placement.workers:
            raise ValueError(
                f"a batch must hold a sample for each worker, got a batch of {phase.batch} of {phase.name} for "
                f"{setting.placement.workers} workers; write a larger batch, or fewer --workers"
            )
    for phase in phases:
        problem.flow(setting.seeds[0], phase.objective)
    if any(problem.sampling(phase.objective) is None for phase in phases):
        problem.training_data(setting.seeds[0])


def check_machine(placement: Placement, options: StudyOptions) -> None:
    """Refuse workers that this machine cannot hold. What a cluster holds is only known once it answers.

    Raises:
        ValueError: if cores or GPUs are too few.
    """
    if options.runner == "inline":
        return
    from harness.adapters.ray_cluster import check_cores, too_much
    from harness.adapters.ray_session import starts_locally

    if not starts_locally(options.address):
        return
    check_cores(placement)
    need, have = placement.workers * placement.gpus_per_worker, torch.cuda.device_count()
    if need > have:
        raise too_much(placement, "GPU", need, have)


@contextmanager
def recorder_of(
    study: Study | PlanStudy | PlanComparison | Sweep, options: StudyOptions, experiment: str
) -> Iterator[MlflowRecorder]:
    """The tracker, with a view of the study, and study.json: everything needed to repeat the study."""
    from harness.adapters.mlflow_recorder import MlflowRecorder

    write_json(options.output / study.name / study.id / "study.json", described(study))
    recorder = MlflowRecorder(
        database=None if options.tracking_uri else options.output / "mlflow.db",
        tracking_uri=options.tracking_uri,
        artifacts=options.output / "artifacts",
        study=study.id,
        experiment=experiment,
    )
    try:
        recorder.arrange(view_of(study))
        yield recorder
    finally:
        recorder.close()


def view_of(study: Study | PlanStudy | PlanComparison | Sweep) -> View:
    """What the study's page shows when it is opened."""
    if isinstance(study, Study):
        return split_view(study.question, study.currency)
    if isinstance(study, Sweep):
        always = tuple(name for name in study.space if name not in study.acts)
        return sweep_view(study.question.metric, tuple(study.space), always=always, costs=bool(study.rung_names))
    return plan_view(study.question)


def where_to_look(recorder: MlflowRecorder, options: StudyOptions) -> str:
    """How to open the study's page."""
    if options.tracking_uri is not None:
        return f"records: {recorder.page(options.tracking_uri)}"
    command = f"python -m harness.dashboard --output {options.output}"
    return f"records: {command}, then {recorder.page(f'http://{HOST}:{PORT}')}"


@contextmanager
def runner_of(options: StudyOptions, folder: Path) -> Iterator[Runner]:
    """What runs trials; Ray starts once for all that a study asks of it."""
    if options.runner == "inline":
        from harness.adapters.inline_runner import InlineRunner

        yield InlineRunner()
        return
    from harness.adapters.ray_runner import RayRunner

    runner = RayRunner(address=options.address, concurrent=options.concurrent, folder=folder / "ray")
    try:
        with runner:
            yield runner
    finally:
        if runner.logs.is_dir():
            print(f"Ray's logs: {runner.logs}", file=sys.stderr)


def search_factory(options: BudgetOptions, seed: int, folder: Path) -> Callable[[str, SearchSpace], Search]:
    """Makes the search for one phase's settings; every search has a file of its own and can be resumed."""

    def make(name: str, space: SearchSpace) -> Search:
        if options.search == "grid":
            from harness.grid_search import GridSearch, grid

            return GridSearch(points=grid(choices(space, options.tune)), storage=folder / f"search-{name}.json")
        from harness.adapters.optuna_search import OptunaSearch

        return OptunaSearch(
            name=name,
            space=space,
            trials=options.tune,
            seed=seed,
            storage=folder / f"search-{name}.journal",
            pruner="median",
        )

    return make


def choices(space: SearchSpace, count: int) -> dict[str, Choice]:
    """Evenly spread choices (in the logarithm where the range asks for it) in place of ranges."""

    def spread(domain: FloatRange | IntRange | Choice) -> Choice:
        if isinstance(domain, Choice):
            return domain
        values = (np.geomspace if domain.log else np.linspace)(domain.low, domain.high, count)
        if isinstance(domain, IntRange):
            return Choice(options=tuple(sorted({round(float(value)) for value in values})))
        return Choice(options=tuple(float(value) for value in values))

    return {name: spread(domain) for name, domain in space.items()}


def described(study: Study | PlanStudy | PlanComparison | Sweep) -> dict[str, Any]:
    """A study's values, the command, and the versions that it ran on."""
    return {
        "id": study.id,
        "study": plain(study),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
    }
