"""Flow annealed importance sampling bootstrap (FAB): lower the alpha = 2 divergence int p^2 / q from energies alone.

Midgley et al. 2023. Its gradient is -E_g[grad log q] with g = p^2 / q, whose samples annealed importance sampling makes
from the flow itself: `generate`, the dear part, every so many steps; `FlowAnnealedBootstrap` and
`BufferedBootstrap` turn them into gradients.

Shapes: B batch, D coordinates, M intermediate densities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.annealed import AnnealedSamples, Annealing, Proposal, anneal
from models.contracts import Batch, GradientSum, Prepared, Prior, Random, Target, Work, parameter_gradients
from models.prioritised import PrioritisedBuffer, WeightedBatch

FIELD_EVALUATIONS_PER_SAMPLE = 2
"""One forward and one backward pass of the flow."""
STATE_KEYS = frozenset({"step_size", "buffer"})


@dataclass(frozen=True, kw_only=True, eq=False)
class BootstrapState:
    """What is carried from one generation to the next besides the flow. Fulfils Experience.

    Attributes:
        step_size_M: of the moves at each intermediate density, (M,) in float64.
        buffer: of weighted rows, None where every step makes its own.
    """

    step_size_M: Tensor
    buffer: PrioritisedBuffer | None = None

    def __len__(self) -> int:
        return 0 if self.buffer is None else len(self.buffer)

    @property
    def ready(self) -> bool:
        """Whether there are enough rows to draw from."""
        return self.buffer is not None and self.buffer.ready

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        held = {} if self.buffer is None else self.buffer.tensors
        return {"step_size": self.step_size_M, **held}

    def batch(self, start: int, stop: int, *, draw: int) -> WeightedBatch:
        """Rows [start, stop) of a draw from the buffer."""
        if self.buffer is None:
            raise ValueError(
                "batches are drawn from a buffer, got a state without; write BootstrapState(..., buffer=...)"
            )
        return self.buffer.sample(stop, draw=draw).rows(start, stop)

    def with_samples(self, samples: AnnealedSamples, annealing: Annealing) -> BootstrapState:
        """Step sizes adapted, usable rows added to the buffer.

        Over several workers `samples` are those of all of them, in order, so that all hold the same state.
        """
        buffer, usable_B = self.buffer, samples.usable_B
        if buffer is not None and bool(usable_B.any()):
            buffer = buffer.add(
                samples.x_BD[usable_B], log_w_B=samples.log_w_B[usable_B], log_q_B=samples.log_q_B[usable_B]
            )
        return BootstrapState(step_size_M=annealing.adapted(self.step_size_M, samples.acceptance_BM), buffer=buffer)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: everything that `from_state` needs."""
        return {
            "step_size": self.step_size_M.clone(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> BootstrapState:
        """The state that a dictionary was taken from."""
        if set(state) != STATE_KEYS:
            raise ValueError(
                f"the state of a bootstrap has {sorted(STATE_KEYS)}, got {sorted(state)}; write what state_dict() gave"
            )
        buffer = None if state["buffer"] is None else PrioritisedBuffer.from_state(state["buffer"])
        return BootstrapState(step_size_M=state["step_size"].clone(), buffer=buffer)


def generate(
    flow: Proposal, target: Target, state: BootstrapState, *, annealing: Annealing, random: Random, like: Tensor
) -> tuple[BootstrapState, AnnealedSamples]:
    """Anneal one row for each of the randomness from the flow as it is; the state with them, and the rows themselves.

    Args:
        random: made from the seed and the number of the generation alone, so that a resumed run goes on bit for bit.
        like: gives dtype and device.
    """
    samples = anneal(flow, target, random, like=like, settings=annealing, step_size_M=state.step_size_M)
    return state.with_samples(samples, annealing), samples


def fresh_batch(samples: AnnealedSamples) -> WeightedBatch:
    """Annealed rows as a batch. Rows that are not usable keep their place, with a weight of zero, at the origin."""
    usable_B = samples.usable_B
    return WeightedBatch(
        x_BD=torch.where(usable_B[:, None], samples.x_BD, 0.0),
        log_w_B=torch.where(usable_B, samples.log_w_B, -torch.inf),
        log_q_B=torch.where(usable_B, samples.log_q_B, 0.0),
    )


@dataclass(frozen=True, kw_only=True)
class FlowAnnealedBootstrap:
    """-sum_i softmax(log w)_i log q(x_i) over fresh annealed rows, as an Objective.

    The softmax runs over the global batch, before rows are shared out. A batch without a usable row has no gradient.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = True

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """Rows and their share in the batch, times the number of rows: on average one."""
        weighted = require_weights(batch)
        share_B = torch.softmax(weighted.log_w_B.double(), dim=0) * len(weighted.x_BD)
        share_B = torch.nan_to_num(share_B, nan=0.0).to(weighted.x_BD.dtype)
        return Prepared(tensors={"x": weighted.x_BD, "share": share_B})

    def gradient(self, flow: Proposal, prepared: Prepared) -> GradientSum:
        """Gradient of the weighted negative log density, summed over the prepared rows."""
        log_q_B = flow.log_prob(prepared["x"])
        # A share of zero stays zero wherever its row lies.
        loss_B = torch.where(prepared["share"] > 0.0, -prepared["share"] * log_q_B, 0.0)
        return _gradient_sum(loss_B, flow, prepared)


@dataclass(frozen=True, kw_only=True)
class BufferedBootstrap:
    """-mean_i clip(q_old(x_i) / q(x_i)) log q(x_i) over rows drawn from a prioritised buffer, as an Objective.

    Rows are drawn in proportion to weights for p^2 / q_old; the ratio, which is not differentiated, turns them into
    draws of p^2 / q.

    Args:
        ratio_clip: largest ratio, None for none.
    """

    needs_force: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False
    prepares_globally: ClassVar[bool] = False

    ratio_clip: float | None = 10.0

    def __post_init__(self) -> None:
        if self.ratio_clip is not None and not self.ratio_clip > 0.0:
            raise ValueError(f"the largest ratio is positive, got {self.ratio_clip}; write ratio_clip=10.0 or None")

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared:
        """Rows and the log density that their weights belong to."""
        weighted = require_weights(batch)
        return Prepared(tensors={"x": weighted.x_BD, "log_q_old": weighted.log_q_B.to(weighted.x_BD.dtype)})

    def gradient(self, flow: Proposal, prepared: Prepared) -> GradientSum:
        """Gradient of the corrected negative log density, summed over the prepared rows."""
        return self.gradient_and_density(flow, prepared)[0]

    def gradient_and_density(self, flow: Proposal, prepared: Prepared) -> tuple[GradientSum, Tensor]:
        """The gradient, and log q (B,) of the prepared rows, which `adjusted` takes without more work."""
        log_q_B = flow.log_prob(prepared["x"])
        ratio_B = (prepared["log_q_old"] - log_q_B.detach()).exp()
        if self.ratio_clip is not None:
            ratio_B = ratio_B.clamp_max(self.ratio_clip)
        return _gradient_sum(-ratio_B * log_q_B, flow, prepared), log_q_B.detach()


def adjusted(state: BootstrapState, batch: WeightedBatch, log_q_B: Tensor) -> BootstrapState:
    """The state with weights of the drawn rows brought to the flow as it is now."""
    if state.buffer is None or batch.row_B is None:
        raise ValueError(
            "only rows of a buffer are adjusted, got a state or a batch without; write state.buffer.sample(n, draw=...)"
        )
    return replace(state, buffer=state.buffer.adjusted(batch.row_B, log_q_B))


def require_weights(batch: Batch) -> WeightedBatch:
    """Raise ValueError unless rows have weights."""
    if not isinstance(batch, WeightedBatch):
        raise ValueError(
            f"bootstrapping needs rows with weights, got a {type(batch).__name__}; "
            "write fresh_batch(samples) or buffer.sample(n, draw=...)"
        )
    return batch


def _gradient_sum(loss_B: Tensor, flow: Any, prepared: Prepared) -> GradientSum:
    loss_sum, n = loss_B.sum(), len(prepared)
    return GradientSum(
        gradients=parameter_gradients(loss_sum, [p for p in flow.parameters() if p.requires_grad]),
        loss_sum=loss_sum.detach(),
        weight=float(n),
        work=prepared.work + Work(samples=n, field_evaluations=FIELD_EVALUATIONS_PER_SAMPLE * n),
    )
