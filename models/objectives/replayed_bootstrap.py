"""Flow annealed bootstrap as a phase: the loss, and the weighted rows that the flow makes and keeps for itself.

Midgley et al. 2023. When new rows are made is up to the training loop; here is what is made and what becomes of it.

Shapes: B batch, D coordinates, M intermediate densities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from models.annealed import AnnealedSamples, Annealing, Proposal, anneal
from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Target, Work
from models.objectives.flow_annealed_bootstrap import BootstrapState, BufferedBootstrap
from models.prioritised import PrioritisedBuffer


@dataclass(frozen=True, kw_only=True)
class ReplayedBootstrap:
    """The alpha = 2 divergence on a prioritised buffer. Fulfils Objective and LearnsFromExperience.

    Args:
        target: gives energies and forces to annealing. loss: on drawn rows.
        capacity: most rows of the buffer. minimum: fewest that are drawn from, annealed before the first step.
        every: steps between two generations. rows: annealed at each.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    target: Target
    annealing: Annealing
    loss: BufferedBootstrap
    capacity: int
    minimum: int
    every: int
    rows: int

    def __post_init__(self) -> None:
        if min(self.every, self.rows) < 1 or not 1 <= self.minimum <= self.capacity:
            raise ValueError(
                "a buffer is drawn from when it holds its minimum, has room for it, and gets rows now and then, "
                f"got minimum={self.minimum}, capacity={self.capacity}, every={self.every}, rows={self.rows}; "
                "write 2048, 16384, 8 and 512"
            )

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """As `BufferedBootstrap` prepares the rows of the buffer."""
        return self.loss.prepare(prior, batch, random)

    def gradient(self, flow: Proposal, prepared: Prepared) -> GradientSum:
        """Gradient of the corrected negative log density, summed over the prepared rows; seen: log q of each."""
        found, log_q_B = self.loss.gradient_and_density(flow, prepared)
        return replace(found, seen_B=log_q_B)

    def begin(self, data: Batch, *, seed: int) -> BootstrapState:
        """No rows yet, in the dtype and on the device of the data, whose rows are not looked at."""
        buffer = PrioritisedBuffer.empty(
            data.x_BD, dim=data.x_BD.shape[1], capacity=self.capacity, minimum=self.minimum, seed=seed
        )
        return BootstrapState(step_size_M=self.annealing.first_step_sizes(), buffer=buffer)

    def restored(self, state: Mapping[str, Any], *, like: Tensor) -> BootstrapState:
        """The state that a dictionary was taken from, with its buffer on the device of `like`."""
        buffer = {name: _moved(value, like) for name, value in state["buffer"].items()}
        return BootstrapState.from_state({**state, "buffer": buffer})

    def generate(self, flow: Proposal, experience: BootstrapState, random: Random) -> Prepared:
        """This worker's rows, annealed from the flow as it is: x, log_w, log_q, and acceptance (B, M)."""
        assert experience.buffer is not None
        like = experience.buffer.x_BD
        made = anneal(flow, self.target, random, like=like, settings=self.annealing, step_size_M=experience.step_size_M)
        tensors = {"x": made.x_BD, "log_w": made.log_w_B, "log_q": made.log_q_B, "acceptance": made.acceptance_BM}
        return Prepared(tensors=tensors, work=replace(made.work, samples=0))

    def extended(self, experience: BootstrapState, made: Mapping[str, Tensor]) -> BootstrapState:
        """Usable rows in the buffer, step sizes adapted to the acceptance of all."""
        samples = AnnealedSamples(
            x_BD=made["x"],
            log_q_B=made["log_q"],
            log_w_B=made["log_w"],
            acceptance_BM=made["acceptance"],
            work=Work(),
        )
        return experience.with_samples(samples, self.annealing)

    def revised(self, experience: BootstrapState, seen_B: Tensor | None, *, draw: int) -> BootstrapState:
        """The rows of a draw, weighted for the flow that the gradient was taken of."""
        if seen_B is None or experience.buffer is None:
            return experience
        row_B = experience.buffer.rows(len(seen_B), draw=draw)
        return replace(experience, buffer=experience.buffer.adjusted(row_B, seen_B))


def _moved(value: Any, like: Tensor) -> Any:
    return value.to(like.device) if isinstance(value, Tensor) else value
