"""A prioritised replay buffer: weighted rows of annealed importance sampling, drawn in proportion to their weights.

Schaul et al. 2016 in the form of Midgley et al. 2023: weights are for p^2 / q, and q moves while a row is kept, so each
row remembers the density that its weight belongs to.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contracts import Batch
from models.replay import require_capacity, require_rows

STATE_KEYS = frozenset({"x", "log_w", "log_q", "capacity", "minimum", "replacement", "seed", "added"})


@dataclass(frozen=True, kw_only=True)
class WeightedBatch(Batch):
    """Rows with importance weights.

    Attributes:
        log_w_B: log weights, for p^2 / q. log_q_B: log density of the flow that they belong to.
        row_B: where each row stands in the buffer that it was drawn from, None for rows of no buffer.
    """

    log_w_B: Tensor
    log_q_B: Tensor
    row_B: Tensor | None = None

    def rows(self, start: int, stop: int) -> WeightedBatch:
        """Rows [start, stop): one worker's share."""
        own = slice(start, stop)
        return replace(
            self,
            x_BD=self.x_BD[own],
            force_BD=None if self.force_BD is None else self.force_BD[own],
            log_w_B=self.log_w_B[own],
            log_q_B=self.log_q_B[own],
            row_B=None if self.row_B is None else self.row_B[own],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PrioritisedBuffer:
    """Up to `capacity` weighted rows, oldest first; adding more lets the oldest go.

    Draws depend on nothing but the seed, the number of the draw and the weights, so a buffer restored from its state
    goes on bit for bit, and every worker can find its own share.

    Args:
        x_BD: finite rows. log_w_B, log_q_B: finite, in float64, on the device of the rows.
        capacity: the most rows kept. minimum: the fewest that are drawn from.
        replacement: whether a draw may hold a row twice. With it, each row of a draw follows the weights exactly;
            without, one row of overwhelming weight cannot fill a draw.
        seed: of all draws. added: rows ever added, those that have gone with them.
    """

    x_BD: Tensor
    log_w_B: Tensor
    log_q_B: Tensor
    capacity: int
    minimum: int
    replacement: bool
    seed: int
    added: int

    def __post_init__(self) -> None:
        require_capacity(self.capacity)
        require_weighted(self.x_BD, self.log_w_B, self.log_q_B)
        if not 1 <= self.minimum <= self.capacity:
            raise ValueError(
                f"the minimum lies between 1 and capacity={self.capacity}, got {self.minimum}; write minimum=1000 or so"
            )
        if self.seed < 0 or not len(self.x_BD) <= min(self.capacity, self.added):
            raise ValueError(
                f"a buffer holds at most capacity={self.capacity} rows, all counted, and its seed is not negative, got "
                f"{len(self.x_BD)} rows, added={self.added}, seed={self.seed}; write PrioritisedBuffer.empty(...).add"
            )

    @staticmethod
    def empty(
        like: Tensor, *, dim: int, capacity: int, minimum: int, replacement: bool = False, seed: int
    ) -> PrioritisedBuffer:
        """A buffer without rows, in the dtype and on the device of `like`."""
        none_B = torch.zeros(0, dtype=torch.float64, device=like.device)
        return PrioritisedBuffer(
            x_BD=torch.zeros(0, dim, dtype=like.dtype, device=like.device),
            log_w_B=none_B,
            log_q_B=none_B.clone(),
            capacity=capacity,
            minimum=minimum,
            replacement=replacement,
            seed=seed,
            added=0,
        )

    def __len__(self) -> int:
        return len(self.x_BD)

    @property
    def ready(self) -> bool:
        """Whether there are enough rows to draw from."""
        return len(self) >= self.minimum

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"x": self.x_BD, "log_w": self.log_w_B, "log_q": self.log_q_B}

    def add(self, x_BD: Tensor, *, log_w_B: Tensor, log_q_B: Tensor) -> PrioritisedBuffer:
        """The buffer with more rows behind the ones that it has. All must be finite: drop unusable ones before."""
        require_weighted(x_BD, log_w_B, log_q_B)
        if x_BD.shape[1] != self.x_BD.shape[1]:
            raise ValueError(
                f"rows of a buffer are equally wide, got {x_BD.shape[1]} for {self.x_BD.shape[1]} coordinates; "
                "write samples of the same space"
            )
        pairs = ((self.x_BD, x_BD), (self.log_w_B, log_w_B), (self.log_q_B, log_q_B))
        rows_BD, weights_B, densities_B = (
            torch.cat([old, new.detach().to(old)])[-self.capacity :].clone() for old, new in pairs
        )
        return replace(self, x_BD=rows_BD, log_w_B=weights_B, log_q_B=densities_B, added=self.added + len(x_BD))

    def rows(self, n: int, *, draw: int) -> Tensor:
        """Indices (n,) of draw number `draw`; a shorter draw of the same number is the start of a longer one.

        Raises:
            ValueError: below the minimum, or for more rows than there are where none may be drawn twice.
        """
        if draw < 0:
            raise ValueError(f"draws are counted from 0, got draw={draw}; write the number of the step")
        if not self.ready or (n > len(self) and not self.replacement):
            raise ValueError(
                f"a draw needs {max(self.minimum, 0 if self.replacement else n)} rows, got {len(self)}; "
                "add more first, or write a smaller minimum or batch"
            )
        # A generator made from (seed, number) alone: Philox, Salmon et al. 2011.
        source = np.random.Generator(np.random.Philox(key=[self.seed, draw]))
        log_w_B = self.log_w_B.cpu().numpy()
        if self.replacement:
            edges_B = np.cumsum(np.exp(log_w_B - log_w_B.max()))
            found = np.searchsorted(edges_B, source.random(n) * edges_B[-1], side="right").clip(max=len(self) - 1)
        else:
            # The largest of log w + Gumbel noise is a draw by weight, the next ones are draws from what is left.
            found = np.argsort(-(log_w_B + source.gumbel(size=len(self))), kind="stable")[:n]
        return torch.from_numpy(found.astype(np.int64)).to(self.x_BD.device)

    def sample(self, n: int, *, draw: int) -> WeightedBatch:
        """n rows in proportion to their weights."""
        row_B = self.rows(n, draw=draw)
        return WeightedBatch(
            x_BD=self.x_BD[row_B], log_w_B=self.log_w_B[row_B], log_q_B=self.log_q_B[row_B], row_B=row_B
        )

    def adjusted(self, row_B: Tensor, log_q_B: Tensor) -> PrioritisedBuffer:
        """Weights for the flow as it is now: log w += log q_old - log q, q_old <- q, at the given rows.

        Rows that are given twice are adjusted once; a density that is not finite leaves its row as it was.
        """
        if row_B.shape != log_q_B.shape:
            raise ValueError(
                f"every row has one log density, got {tuple(row_B.shape)} rows and {tuple(log_q_B.shape)} densities; "
                "write those of the rows that were drawn"
            )
        row_n, first_n = np.unique(row_B.cpu().numpy(), return_index=True)
        where_B = torch.from_numpy(row_n).to(self.log_q_B.device)
        new_B = log_q_B.detach().to(self.log_q_B)[torch.from_numpy(first_n).to(self.log_q_B.device)]
        usable_B = torch.isfinite(new_B)
        where_B, new_B = where_B[usable_B], new_B[usable_B]
        weights_B, densities_B = self.log_w_B.clone(), self.log_q_B.clone()
        weights_B[where_B] += densities_B[where_B] - new_B
        densities_B[where_B] = new_B
        return replace(self, log_w_B=weights_B, log_q_B=densities_B)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: everything that `from_state` needs."""
        return {
            "x": self.x_BD.clone(),
            "log_w": self.log_w_B.clone(),
            "log_q": self.log_q_B.clone(),
            "capacity": self.capacity,
            "minimum": self.minimum,
            "replacement": self.replacement,
            "seed": self.seed,
            "added": self.added,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> PrioritisedBuffer:
        """The buffer that a state was taken from."""
        if set(state) != STATE_KEYS:
            raise ValueError(
                f"the state of a buffer has {sorted(STATE_KEYS)}, got {sorted(state)}; write what state_dict() gave"
            )
        return PrioritisedBuffer(
            x_BD=state["x"].clone(),
            log_w_B=state["log_w"].clone(),
            log_q_B=state["log_q"].clone(),
            capacity=state["capacity"],
            minimum=state["minimum"],
            replacement=state["replacement"],
            seed=state["seed"],
            added=state["added"],
        )


def require_weighted(x_BD: Tensor, log_w_B: Tensor, log_q_B: Tensor) -> None:
    """Raise ValueError unless rows are finite and each has a finite log weight and log density."""
    require_rows(x_BD)
    shapes = [tuple(log_w_B.shape), tuple(log_q_B.shape)]
    if shapes != [(len(x_BD),)] * 2:
        raise ValueError(f"each of {len(x_BD)} rows has a log weight and a log density, got {shapes}; write one a row")
    bad = int((~torch.isfinite(log_w_B) | ~torch.isfinite(log_q_B)).sum())
    if bad:
        raise ValueError(
            f"log weights and densities are finite, got {bad} of {len(x_BD)} that are not; drop those rows"
        )
