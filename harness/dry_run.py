"""What a study would do and cost, before it does anything: no Ray, no tracker, at most a few timed steps here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.budget import Cost, Currency
from harness.checkpoint import Store
from harness.collective import Alone
from harness.known_prices import known_prices
from harness.plan import Branch, Phase
from harness.split import Prices, SeedPlan
from harness.study import Study
from harness.trial import TrialSpec
from harness.worker import evaluation_key, run_trial


def describe(study: Study, output: Path) -> str:
    """Segments, steps, cost, cores and expected minutes (training beside evaluation), as text."""
    store = Store(output / "store")
    prices, measured_here = known_prices(study.setting, study.phases.all, store)
    plans = study.seed_plans(study.phases, prices)
    evaluation = evaluation_seconds(study, store, plans)
    return "\n".join(lines(study, prices, plans, evaluation, measured_here))


def evaluation_seconds(study: Study, store: Store, plans: Sequence[SeedPlan]) -> float:
    """Device-seconds of one evaluation: the mean on record for these cells, or else of the untrained model, here."""
    evaluation = evaluation_key(study.setting.problem)
    records = (store.evaluation(cell.segment, evaluation) for plan in plans for cell in plan.cells)
    seconds = [record["device_seconds"] for record in records if record is not None]
    if seconds:
        return sum(seconds) / len(seconds)
    with tempfile.TemporaryDirectory() as folder:
        work = plans[0].tree.works[0]
        spec = TrialSpec(
            name="dry run",
            build=study.setting.build,
            problem=study.setting.problem,
            store=folder,
            seed=study.setting.seeds[0],
            works=(replace(work, stops=work.stops[:1]),),
            placement=replace(study.setting.placement, workers=1),
        )
        reference = (store.folder / "reference").resolve()
        reference.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "reference").symlink_to(reference)
        return sum(event.values.get("evaluation_device_seconds", 0.0) for event in run_trial(spec, Alone()))


def lines(study: Study, prices: Prices, plans: Sequence[SeedPlan], evaluation: float, measured_here: bool) -> list[str]:
    where = "measured here by one worker" if measured_here else "on record"
    text = [f"study {study.name} {study.id}", f"step prices ({where}):"]
    text += [price_line(phase, prices) for phase in study.phases.all]
    text.append(f"budgets: {', '.join(str(budget) for budget in study.budgets)}; seeds: {len(study.setting.seeds)}")
    text.append("one seed's tree:")
    for work in plans[0].tree:
        stops = ", ".join(str(stop.steps) for stop in work.stops)
        text.append(
            f"  {work.branch.phase.name:8} from {parent_name(plans[0], work.branch):16} evaluated after {stops}"
        )
    total = total_cost(prices, plans)
    cells = sum(len(plan.cells) for plan in plans)
    segments = sum(len(plan.tree.segments) for plan in plans)
    steps = sum(plan.tree.steps for plan in plans)
    placement = study.setting.placement
    workers = placement.workers
    text += [
        f"segments: {segments}, evaluated: {cells}, training steps: {steps}",
        f"training: {total.device_seconds:.0f} device-seconds, {total.flops:.3g} flop "
        f"(about {total.device_seconds / workers / 60:.1f} min on {workers} workers)",
        f"evaluation, off the clock: at least {cells * evaluation:.0f} device-seconds "
        f"(about {cells * evaluation / workers / 60:.1f} min)",
        f"a trial's cores: {workers * placement.threads}, GPUs: {workers * placement.gpus_per_worker:g}",
    ]
    if study.tuning is not None:
        text.append(f"before that, tuning: {study.tuning.trials} settings for each of three phases")
    return text


def price_line(phase: Phase, prices: Prices) -> str:
    price = prices.of(phase)
    step = price.per_step
    memory = f"{step.peak_memory_bytes / 2**20:.3g} MiB" if step.peak_memory_bytes else "memory not measured"
    rows = f", {price.microbatch} rows at a time" if price.microbatch else ""
    spread = f"{price.device_seconds_lo * 1e3:.3g} to {price.device_seconds_hi * 1e3:.3g}"
    return (
        f"  {phase.name:8} {step.amount(Currency.DEVICE_SECONDS) * 1e3:8.3g} device-ms a step "
        f"(quartiles {spread}, n = {price.timed_steps}), {step.flops:.3g} flop, {memory} a worker, "
        f"batch {phase.batch}{rows}"
    )


def parent_name(plan: SeedPlan, branch: Branch) -> str:
    for segment in plan.tree.segments:
        if segment.hash == branch.parent:
            return f"{segment.branch.phase.name} {segment.steps}"
    return "untrained"


def total_cost(prices: Prices, plans: Sequence[SeedPlan]) -> Cost:
    costs = (prices.cost(work.branch.phase, work.stops[-1].steps) for plan in plans for work in plan.tree if work.stops)
    return sum(costs, Cost())
