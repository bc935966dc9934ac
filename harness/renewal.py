"""How the replay buffer of a phase begins and is refilled by the model that is being trained.

A refill is a function of (branch, step, weights) alone, made before the step that it is due at: a run that is resumed
at this step makes it again, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.collective import Collective, joined, share
from harness.identity import derived_seed
from harness.replay import ReplayBuffer
from models.contracts import Batch, Random, SelfReplaying, Work


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The refills of one branch.

    Args:
        objective: generates rows. collective: shares them. seed: of the branch.
        every: steps between two refills, the objective's own unless something is to be measured without them.
    """

    objective: SelfReplaying
    collective: Collective
    seed: int
    every: int

    @staticmethod
    def of(objective: object, collective: Collective, seed: int) -> Renewal | None:
        """None where the objective takes its batches from the data."""
        if not isinstance(objective, SelfReplaying):
            return None
        return Renewal(objective=objective, collective=collective, seed=seed, every=objective.every)

    def begin(self, data: Batch) -> ReplayBuffer:
        """The buffer before the first step: the newest rows of the phase's data."""
        seed = derived_seed("replay", self.seed)
        return ReplayBuffer.of(data.x_BD, capacity=self.objective.capacity, seed=seed)

    def is_due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0

    def refilled(self, buffer: ReplayBuffer, flow: Any, step: int) -> tuple[ReplayBuffer, Work]:
        """The buffer with what all workers made, and this worker's work. Rows that are not finite are left out.

        Every rank sees the same rows and leaves out the same ones, so that all buffers stay alike.
        """
        rows = self.objective.rows
        start, stop = share(rows, self.collective.rank, self.collective.workers)
        generator = torch.Generator().manual_seed(derived_seed("generation", self.seed, step))
        random = Random(generator=generator, global_size=rows, start=start, stop=stop)
        mine_BD, work = self.objective.generate(flow, random, buffer.x_BD)
        made_BD = joined(mine_BD, rows, self.collective)
        usable_BD = made_BD[torch.isfinite(made_BD).all(dim=1)]
        return (buffer.add(usable_BD) if len(usable_BD) else buffer), work
