"""How a phase whose model makes its own rows begins with them, gets new ones, and learns what became of the old ones.

A refill is a function of (branch, step, weights) alone, made before the step that it is due at: a run that is resumed
at this step makes it again, bit for bit.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.collective import Collective, joined, share
from harness.identity import derived_seed
from models.contracts import Batch, Experience, LearnsFromExperience, Random, Work

MOST_BARREN = 20
"""Refills in a row of which no row could be used: the model then never fills its buffer."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The refills of one branch.

    Args:
        objective: generates rows. collective: shares them. seed: of the branch.
        every: steps between two refills, the objective's own unless something is to be measured without them.
    """

    objective: LearnsFromExperience
    collective: Collective
    seed: int
    every: int

    @staticmethod
    def of(objective: object, collective: Collective, seed: int) -> Renewal | None:
        """None where the objective takes its batches from the data."""
        if not isinstance(objective, LearnsFromExperience):
            return None
        return Renewal(objective=objective, collective=collective, seed=seed, every=objective.every)

    def begin(self, data: Batch) -> Experience:
        """What there is before the first step."""
        return self.objective.begin(data, seed=derived_seed("replay", self.seed))

    def is_due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0

    def brought_to(self, step: int, experience: Experience, flow: Any) -> tuple[Experience, Work]:
        """Refilled where it is due, and as often as it takes to be ready; this worker's work.

        Raises:
            ValueError: where the model's rows cannot be used.
        """
        work, made, barren = Work(), 0, 0
        while (made == 0 and self.is_due(step)) or not experience.ready:
            rows_before = len(experience)
            experience, further = self.refilled(experience, flow, step, made)
            work, made = work + further, made + 1
            barren = 0 if experience.ready or len(experience) > rows_before else barren + 1
            if barren == MOST_BARREN:
                raise ValueError(
                    f"the rows that a model makes must be usable, got none in {barren} refills of "
                    f"{self.objective.rows}; write settings under which they stay finite, such as smaller steps"
                )
        return experience, work

    def refilled(self, experience: Experience, flow: Any, step: int, made: int = 0) -> tuple[Experience, Work]:
        """With what all workers made, and this worker's work. `made`: refills before this one at the same step.

        Every rank sees the same rows, so that what all hold stays alike.
        """
        rows = self.objective.rows
        start, stop = share(rows, self.collective.rank, self.collective.workers)
        further = () if made == 0 else (made,)
        generator = torch.Generator().manual_seed(derived_seed("generation", self.seed, step, *further))
        random = Random(generator=generator, global_size=rows, start=start, stop=stop)
        mine = self.objective.generate(flow, experience, random)
        whole = {name: joined(tensor, rows, self.collective) for name, tensor in mine.tensors.items()}
        return self.objective.extended(experience, whole), mine.work

    def revised(self, experience: Experience, seen_B: Tensor | None, *, step: int, batch: int) -> Experience:
        """After a step: what its global batch showed, of which this worker saw its share."""
        whole_B = None if seen_B is None else joined(seen_B, batch, self.collective)
        return self.objective.revised(experience, whole_B, draw=step)


def restored(state: Mapping[str, Any], objective: object, *, like: Tensor) -> Experience:
    """The experience of a checkpoint.

    Raises:
        ValueError: where the objective has none.
    """
    if not isinstance(objective, LearnsFromExperience):
        raise ValueError(
            f"a checkpoint with a buffer belongs to an objective that fills one, got {type(objective).__name__}; "
            "write the objective of the phase that was saved"
        )
    return objective.restored(state, like=like)
