"""How do quality, cost and throughput scale, and is the law of budgets to be trusted beyond them?

    python studies/scaling.py --parts law --target gmm4 --budget 2e11flop --seeds 5
    python studies/scaling.py --parts workers --target lj13 --workers 2
    python studies/scaling.py --parts size --sizes dw4 lj13 lj55 --quality results/train_plan/ID
    python studies/scaling.py --parts sharing --target lj13 --trials-per-gpu 4

law: fits on six budgets or more over two decades up to --budget, writes down the best split and the quality that it
foretells at --beyond times as much, then trains that, the same share as before, and both ends. workers: throughput and
efficiency of data-parallel training, one batch shared (strong) or a batch that grows (weak). size: what steps cost over
systems, and what finished plans reached. rates: what steps cost on every kind of device on record. sharing: whether
small trials that share one GPU get more done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from harness.answers.throughput import throughput_table
from harness.checkpoint import Store
from harness.cli import conclude
from harness.exchange_rates import rates_on_record, rates_table
from harness.extrapolate import Beyond, extrapolate
from harness.measure import Measured, Measurement, run_measurement
from harness.plan import Phase
from harness.session import Setting
from harness.split import LARGEST_FORK
from harness.study import Study
from harness.trial import Placement
from models.systems import DivergenceName, system_of
from studies.budget_split import BudgetSplit
from studies.scaling_report import Size, quality_table, size_table

Part = Literal["law", "workers", "size", "rates", "sharing"]


@dataclass(frozen=True, kw_only=True)
class Scaling(BudgetSplit):
    """How do quality, cost and throughput scale, and is the law of budgets to be trusted beyond them?"""

    parts: tuple[Part, ...] = ("law", "workers", "size", "rates", "sharing")
    """What to measure."""
    budgets: str = "8"
    """How many budgets, each half of the next, or a list with units. A law needs six over two decades at least."""
    beyond: float = 4.0
    """The law is tried at so many times the largest budget."""
    also: tuple[float, ...] = (LARGEST_FORK,)
    """Shares of that budget to run beside the foretold one, the guess and both ends: the first phase alone is the best
    of its trunk and of refinements that start there."""
    sizes: tuple[str, ...] = ("dw4", "lj13", "lj55")
    """Systems whose steps are compared."""
    rows: int = 4
    """Rows of a batch in that comparison."""
    quality: tuple[Path, ...] = ()
    """Folders of finished plans, whose quality stands beside the cost."""
    trials_per_gpu: int = 4
    """Most trials that share one GPU."""

    @property
    def experiment(self) -> str:
        return f"scaling {self.target}"

    def study(self) -> Study:
        """The budget split that laws are fitted on. Starts nothing."""
        return replace(BudgetSplit.study(self), name="scaling")

    def placed(self, part: str, placement: Placement, phases: tuple[Phase, ...]) -> Measurement:
        """A measurement of this system by these workers, whatever the runner."""
        setting: Setting = replace(self.problem_setting(), placement=placement)
        return Measurement(name="scaling", part=part, setting=setting, phases=phases)

    def law(self) -> str:
        return extrapolate(self.study(), self, Beyond(factor=self.beyond, also=self.also), experiment=self.experiment)

    def measured(self, part: str, placement: Placement) -> Measured:
        """Flow matching and path gradients at every number of workers."""
        trunk, second, _ = self.phases().all
        study = self.placed(part, placement, (trunk, second))
        return run_measurement(study, self, experiment=self.experiment)[0]

    def over_workers(self) -> str:
        placement = Placement(workers=self.workers, threads=self.threads, gpus_per_worker=self.gpus_per_worker)
        measured = self.measured("workers", placement)
        who = "\n".join(f"{rank}: {text}" for rank, text in measured.workers.items())
        return "\n".join([throughput_table(measured.timings), who])

    def over_sizes(self) -> str:
        """One worker, equal rows and solver steps, the fields that suit each system."""
        found = []
        for target in self.sizes:
            own = replace(self, target=target)
            study = own.placed("size", Placement(workers=1, threads=self.threads), own.priced_phases())
            measured, _ = run_measurement(study, own, experiment="scaling sizes")
            found.append(Size(system=system_of(target), measured=measured))
        tables = [size_table(found, rows=self.rows)]
        return "\n\n".join([*tables, *([quality_table(self.quality)] if self.quality else [])])

    def priced_phases(self) -> tuple[Phase, ...]:
        """Flow matching, and path gradients with either divergence."""

        def path_gradient(divergence: DivergenceName) -> Phase:
            phases = replace(self, divergence=divergence, pg_batch=self.rows).phases()
            return replace(phases.second, name=f"pg {divergence}")

        trunk = replace(self, fm_batch=self.rows).phases().trunk
        return (trunk, path_gradient("hutchinson"), path_gradient("exact"))

    def rates(self) -> str:
        study = self.study()
        rates = rates_on_record(Store(self.output / "store"), study.setting.problem["system"], study.phases)
        return rates_table(rates, study.question.first_title)

    def sharing(self) -> str:
        """Trials of one worker that take fractions of one GPU."""
        if not torch.cuda.is_available():
            return (
                "whether small trials gain by sharing a GPU is measured on a GPU, and this machine has none; studies "
                "take fractions with --gpus-per-worker 0.25 --concurrent 4"
            )
        placement = Placement(
            workers=self.trials_per_gpu, threads=self.threads, gpus_per_worker=1 / self.trials_per_gpu
        )
        measured = self.measured("sharing", placement)
        return throughput_table([t for t in measured.timings if t.way in ("alone", "apart")])

    def execute(self) -> str:
        parts = {
            "law": self.law,
            "workers": self.over_workers,
            "size": self.over_sizes,
            "rates": self.rates,
            "sharing": self.sharing,
        }
        if self.dry_run:
            return self.law()
        return "\n\n".join(f"# {part}\n\n{parts[part]()}" for part in parts if part in self.parts)


if __name__ == "__main__":
    conclude(Scaling)
