"""Iterated denoising energy matching: the clean rows are what the model's own reverse process made (iDEM).

Akhound-Sadegh et al. 2024. When the buffer is refilled is up to the training loop; here is what goes into it.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.contracts import Batch, GradientSum, Prepared, Prior, Random
from models.flows.diffusion import ReverseSDE
from models.objectives.denoising_energy_matching import DenoisingEnergyMatching
from models.replay import ReplayBuffer
from models.sde_noise import sde_rows


@dataclass(frozen=True, kw_only=True)
class ReplayedEnergyMatching:
    """Denoising energy matching on a replay buffer of samples. Fulfils Objective and LearnsFromExperience.

    Args:
        matching: the loss, with start="batch". sde: makes new rows with the current score.
        capacity: most rows of the buffer. every: steps between two refills. rows: made at each.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    matching: DenoisingEnergyMatching
    sde: ReverseSDE
    capacity: int
    every: int
    rows: int

    def __post_init__(self) -> None:
        if self.matching.start != "batch":
            raise ValueError(
                f"a replay buffer gives the clean rows, got start={self.matching.start!r}; write start='batch'"
            )
        if min(self.capacity, self.every, self.rows) < 1:
            raise ValueError(
                "a replay buffer has room, and is refilled with rows now and then, "
                f"got capacity={self.capacity}, every={self.every}, rows={self.rows}; write 10_000, 100 and 1000"
            )

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """As `DenoisingEnergyMatching` prepares the rows of the buffer."""
        return self.matching.prepare(prior, batch, random)

    def gradient(self, flow: Any, prepared: Prepared) -> GradientSum:
        """Gradient of the regression, summed over the prepared rows."""
        return self.matching.gradient(flow, prepared)

    def begin(self, data: Batch, *, seed: int) -> ReplayBuffer:
        """The newest rows of the phase's data."""
        return ReplayBuffer.of(data.x_BD, capacity=self.capacity, seed=seed)

    def restored(self, state: Mapping[str, Any], *, like: Tensor) -> ReplayBuffer:
        """The buffer that a state was taken from, on the device of `like`."""
        return ReplayBuffer.from_state({**state, "x": state["x"].to(like.device)})

    def generate(self, flow: Any, experience: ReplayBuffer, random: Random) -> Prepared:
        """This worker's rows x (B, D) of the reverse process under the flow's score."""
        x_BD, work = sde_rows(self.sde, flow.field.score, random, like=experience.x_BD)
        return Prepared(tensors={"x": x_BD}, work=work)

    def extended(self, experience: ReplayBuffer, made: Mapping[str, Tensor]) -> ReplayBuffer:
        """The buffer with the finite ones of some rows."""
        usable_BD = made["x"][torch.isfinite(made["x"]).all(dim=1)]
        return experience.add(usable_BD) if len(usable_BD) else experience

    def revised(self, experience: ReplayBuffer, seen_B: Tensor | None, *, draw: int) -> ReplayBuffer:
        """The buffer as it is: all of its rows count alike."""
        return experience
