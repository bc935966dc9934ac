"""Can a run decide by itself when to leave flow matching for path gradients? Its regret against the best fixed split.

    python studies/online_switch.py --target gmm4 --budget 8e11flop --budgets 8 --seeds 5 \\
        --online-budgets 5e10flop,1e11flop,2e11flop,4e11flop

At octaves of FM, a run forks a short probe of PG, and where it would leave also one of FM's refinement at equal cost;
both count to its budget. It never sees test points or another run. The surface of `budget_split.py` with the same
options is trained where the store lacks it, and tells the best split that was fixed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.budget import Budget
from harness.cli import conclude
from harness.contracts import Records
from harness.launch import launch_online
from harness.online_rule import Array, SwitchRule
from harness.online_study import OnlineStudy, TermsOf
from models.estimators.likelihood import divergence_terms
from models.problem_settings import evaluation_settings
from models.systems import System, system_of
from studies.budget_split import BudgetSplit


@dataclass(frozen=True, kw_only=True)
class OnlineSwitch(BudgetSplit):
    """Can a run decide by itself when to leave flow matching (FM) for path gradients (PG)? And at which regret?"""

    online_budgets: str | None = None
    """Budgets of online runs, such as 1e11flop,2e11flop (default: those of the surface)."""
    greedy: bool = False
    """Leave as soon as PG gains more than FM's refinement for the same cost, whatever more FM would still bring."""
    first_share: float = SwitchRule.first_share
    """Share of a budget that FM takes before the first look."""
    probe_share: float = SwitchRule.probe_share
    """Most of a budget that a probe takes, unless its fewest steps cost more."""
    fewest_probe_steps: int = SwitchRule.fewest_probe_steps
    """Steps that a probe of PG takes in any case, a power of two."""
    most_probe_share: float = SwitchRule.most_probe_share
    """Where the fewest steps cost more than this share of a budget, PG is not tried."""
    look_samples: int | None = None
    """Validation points that probes are judged on (default: those of the evaluation)."""
    look_tolerance: float = 1e-3
    """Tolerance of dopri5 when probes are judged."""

    def online_study(self) -> OnlineStudy:
        """The study that the options ask for. Starts nothing."""
        surface = self.study()
        samples = self.evaluation_samples if self.look_samples is None else self.look_samples
        return OnlineStudy(
            name="online_switch",
            surface=surface,
            budgets=surface.budgets if self.online_budgets is None else parse_list(self.online_budgets),
            rule=SwitchRule(
                first_share=self.first_share,
                probe_share=self.probe_share,
                fewest_probe_steps=self.fewest_probe_steps,
                most_probe_share=self.most_probe_share,
                waits=not self.greedy,
            ),
            looking=evaluation_settings(
                self.target, samples=samples, tolerance=self.look_tolerance, validation_only=True
            ),
        )

    def execute(self) -> str:
        return launch_online(
            self.online_study(),
            self,
            terms_of=terms_of(system_of(self.target)),
            experiment=f"online_switch {self.target}",
            surface_experiment=f"budget_split {self.target}",
        )


def parse_list(text: str) -> tuple[Budget, ...]:
    """ "1e11flop,2e11flop": budgets with their unit.

    Raises:
        ValueError: for one that is not a budget, or given twice.
    """
    budgets = tuple(Budget.parse(part) for part in text.split(","))
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"budgets of online runs must differ, got {text!r}; write each once")
    return budgets


def terms_of(system: System) -> TermsOf:
    """On validation points: of the forward KL where log Z is known, of the negative log-likelihood elsewhere."""
    log_z = system.target.log_z

    def terms(records: Records) -> Array:
        log_q_n = np.asarray(records["validation/log_q"], dtype=np.float64)
        if log_z is None:
            return -log_q_n
        return divergence_terms(log_q_n + records["validation/energy"] + log_z)

    return terms


if __name__ == "__main__":
    conclude(OnlineSwitch)
