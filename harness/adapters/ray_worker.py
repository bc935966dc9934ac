"""What runs inside the cluster: the function that drives a trial, and the one that every Train worker runs."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.placement_group import get_current_placement_group
from ray.util.queue import Queue

from harness.adapters.failure import one_line
from harness.address import resolve
from harness.collective import Alone, Collective, ProcessGroup
from harness.trial import Event, Placement, TrialSpec

REPORT_SECONDS = 2.0
ERROR = "error"
"""The key of a driver's result under which it says what went wrong, "" if nothing did."""

HOPELESS = (ValueError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError, AssertionError)
"""Errors of settings or programs: they would come again, so a worker group is not restarted for them."""


def drive_trial(
    config: dict[str, Any], *, events: Queue, worker: str, folder: Path, max_failures: int
) -> dict[str, str]:
    """Run one trial's workers to the end: the function that Tune places. Its workers may die and are replaced.

    Args:
        config: {"spec": the TrialSpec as JSON}. events: where reports go. worker: address of the trial's work.
        folder: where Train keeps its state. max_failures: how often a worker group is restarted.
    """
    spec = TrialSpec.from_json(config["spec"])
    trial_id = ray.tune.get_context().get_trial_id()
    trainer = TorchTrainer(
        work,
        train_loop_config={"spec": config["spec"], "worker": worker},
        torch_config=TorchConfig(backend=process_group_backend(spec.placement)),
        scaling_config=scaling(spec.placement),
        run_config=RunConfig(
            name=f"train-{trial_id}",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[Forwarder(trial_id, events)],  # type: ignore[list-item]
            worker_runtime_env={  # type: ignore[call-arg]
                "env_vars": {"OMP_NUM_THREADS": str(spec.placement.threads)}
            },
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return {ERROR: cause(error)}
    return {ERROR: ""}


def scaling(placement: Placement) -> ScalingConfig:
    resources: dict[str, float] = {"CPU": placement.threads}
    if placement.gpus_per_worker > 0:
        resources["GPU"] = placement.gpus_per_worker
    return ScalingConfig(
        num_workers=placement.workers, use_gpu=placement.gpus_per_worker > 0, resources_per_worker=resources
    )


def process_group_backend(placement: Placement) -> str:
    """NCCL wants a GPU for each worker alone; gloo reduces the tensors of CPUs and of shared GPUs."""
    return "nccl" if placement.gpus_per_worker >= 1 else "gloo"


def work(config: dict[str, Any]) -> None:
    """One rank of a trial. `ray.train.report` is collective, so all ranks report at the same events.

    The first report says which resources the workers hold, so that the study can free them if the driver is lost.
    """
    spec = TrialSpec.from_json(config["spec"])
    if spec.placement.gpus_per_worker > 0:
        torch.cuda.set_device(get_device())
    ray.train.report({"events": [], "group": get_current_placement_group()})
    collective: Collective = ProcessGroup() if spec.placement.workers > 1 else Alone()
    batch: list[Event] = []
    reported_at = -math.inf
    for event in resolve(config["worker"])(spec, collective):
        batch.append(event)
        if collective.broadcast(time.monotonic() - reported_at > REPORT_SECONDS):
            ray.train.report({"events": batch})
            batch, reported_at = [], time.monotonic()
    ray.train.report({"events": batch})


class Forwarder(UserCallback):
    """In Train's controller: passes rank 0's reports on to the study, and ends trials that would only fail again.

    Tune's own callback hands reports to a queue of length one that the driver empties only when Tune asks for the next
    result; a report that is still there when the driver returns blocks it for good. Hence a queue of our own.
    """

    def __init__(self, trial_id: str, events: Queue) -> None:
        self.trial_id = trial_id
        self.events = events

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Ray waits for this, so a trial that has ended has all its events in the queue."""
        self.events.put_nowait((self.trial_id, metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in map(innermost, worker_exceptions.values()):
            if isinstance(error, HOPELESS):
                raise error


def innermost(error: BaseException) -> BaseException:
    """The worker's own error, out of the layers that Ray wraps around it."""
    for layer in ("controller_failure", "_base_exc", "health_check_failure", "cause"):
        inner = getattr(error, layer, None)
        if isinstance(inner, BaseException) and inner is not error:
            return innermost(inner)
    return error


def cause(error: TrainingFailedError) -> str:
    """One line about a failed trial: the error of the worker that failed first, rather than of those that lost it."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return one_line(innermost(error))
    errors = {rank: innermost(failure) for rank, failure in sorted(failures.items())}
    rank, first = min(errors.items(), key=lambda item: (not isinstance(item[1], HOPELESS), item[0]))
    return f"{one_line(first)} (worker {rank})"
