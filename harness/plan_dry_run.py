"""What compared plans would do and cost, before they do anything: no Ray, no tracker, a few timed steps at most."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from harness.budget import Cost
from harness.checkpoint import Store
from harness.dry_run import price_line
from harness.known_prices import known_prices, problem_of
from harness.plan import Branch, Segment
from harness.plan_study import PlanComparison, PlanStudy, Stage
from harness.split import Prices
from harness.until import Plateau
from harness.worker import evaluation_key

SHARES = 8
"""One of so many equal shares of an evaluation is timed, where none is on record."""


def describe_plans(study: PlanComparison, output: Path) -> str:
    """Stages, steps, cost, cores and expected minutes, of what the store lacks beside all there is, as text."""
    store, setting = Store(output / "store"), study.setting
    prices, measured_here = known_prices(setting, study.phases, store)
    where = "measured here by one worker" if measured_here else "on record"
    text = [f"study {study.name} {study.id}", f"plans: {len(study.plans)}; seeds: {len(setting.seeds)}"]
    text.append(f"step prices, {where}:")
    total = missing = Cost()
    judged = to_judge = 0
    evaluation = evaluation_key(setting.problem)
    for name, plan in study.plans.items():
        text += [name, *(stage_line(stage, prices) for stage in plan.stages)]
        for seed in setting.seeds:
            for number, (segment, ended) in enumerate(segments(plan, prices, store, seed)):
                steps = segment.steps - max([0, *store.finished_steps(segment.branch)])
                total += prices.cost(segment.branch.phase, segment.steps)
                missing += prices.cost(segment.branch.phase, max(0, steps))
                is_judged = number >= plan.first_judged
                judged += is_judged
                to_judge += is_judged and (not ended or store.evaluation(segment.hash, evaluation) is None)
    seconds = evaluation_seconds(study, store) if to_judge else 0.0
    workers = setting.placement.workers
    text += [
        f"training: {total.device_seconds:.0f} device-seconds, of which {missing.device_seconds:.0f} are to be done "
        f"(about {missing.device_seconds / workers / 60:.1f} min on {workers} workers)",
        f"evaluation, off the clock: {judged} models, {to_judge} to be judged, at least {to_judge * seconds:.0f} "
        f"device-seconds (about {to_judge * seconds / workers / 60:.1f} min)",
        f"a trial's cores: {workers * setting.placement.threads}, "
        f"GPUs: {workers * setting.placement.gpus_per_worker:g}",
    ]
    return "\n".join(text)


def stage_line(stage: Stage, prices: Prices) -> str:
    """What a step of a stage costs, how many it takes, and what these cost."""
    line = price_line(stage.phase, prices)
    if isinstance(stage.spend, Plateau):
        return f"{line}: until an octave gains less than {stage.spend.gain:g}, {stage.spend.at_most} steps at most"
    steps = stage.steps(prices, ())
    return f"{line}: {steps} steps, {prices.cost(stage.phase, steps).device_seconds:.0f} device-s"


def segments(plan: PlanStudy, prices: Prices, store: Store, seed: int) -> Iterator[tuple[Segment, bool]]:
    """The untrained model and the end of every stage, and whether the store holds it.

    A stage that ends by a rule counts as far as it is trained, and nothing is known of what comes after it.
    """
    parent = plan.setting.root(seed)
    for number, stage in enumerate(plan.stages):
        branch = Branch(parent=parent, phase=stage.phase, seed=seed)
        if number == 0:
            yield branch.at(0), store.segment(branch.at(0).hash) is not None
        if isinstance(stage.spend, Plateau) and stage.spend.next_stop(store.events(branch, up_to=stage.spend.at_most)):
            return
        end = branch.at(stage.steps(prices, store.events(branch, up_to=2**62)))
        yield end, store.segment(end.hash) is not None
        parent = end.hash


def evaluation_seconds(study: PlanComparison, store: Store) -> float:
    """Device-seconds of one evaluation of the untrained model, from a share of it that is timed here."""
    setting = study.setting
    problem = problem_of(setting, store)
    flow = problem.flow(setting.seeds[0], study.phases[0].objective)
    start = time.perf_counter()
    problem.evaluate(flow, rank=0, workers=SHARES)
    return SHARES * (time.perf_counter() - start)
