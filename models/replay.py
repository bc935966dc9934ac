"""A replay buffer: the newest rows that a model made, as a plain value, drawn from by a counter instead of a state.

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

STATE_KEYS = frozenset({"x", "capacity", "seed", "added"})


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayBuffer:
    """Up to `capacity` rows, oldest first; adding more lets the oldest go. Fulfils Experience.

    Draws are uniform with replacement and depend on nothing but the seed, the number of the draw and how many rows
    there are, so a buffer restored from its state goes on bit for bit, and every worker can find its own share.

    Args:
        x_BD: finite rows, at least one and at most `capacity`. capacity: the most rows kept. seed: of all draws.
        added: rows ever added, those that have gone with them.
    """

    x_BD: Tensor
    capacity: int
    seed: int
    added: int

    def __post_init__(self) -> None:
        require_rows(self.x_BD)
        if not 1 <= len(self.x_BD) <= self.capacity:
            raise ValueError(
                f"a buffer holds 1 to capacity={self.capacity} rows, got {len(self.x_BD)}; "
                "write ReplayBuffer.of(x, capacity=..., seed=...), which keeps the newest"
            )
        if self.seed < 0 or self.added < len(self.x_BD):
            raise ValueError(
                "the seed is not negative and added counts every row, "
                f"got seed={self.seed}, added={self.added} for {len(self.x_BD)} rows; write ReplayBuffer.of(x, ...)"
            )

    @staticmethod
    def of(x_BD: Tensor, *, capacity: int, seed: int) -> ReplayBuffer:
        """A buffer that starts with the newest `capacity` of the given rows."""
        require_capacity(capacity)
        return ReplayBuffer(x_BD=x_BD.detach()[-capacity:].clone(), capacity=capacity, seed=seed, added=len(x_BD))

    def __len__(self) -> int:
        return len(self.x_BD)

    @property
    def ready(self) -> bool:
        """A buffer never is without rows."""
        return True

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"x": self.x_BD}

    def add(self, x_BD: Tensor) -> ReplayBuffer:
        """The buffer with more rows behind the ones that it has, in its dtype and on its device."""
        require_rows(x_BD)
        if x_BD.shape[1] != self.x_BD.shape[1]:
            raise ValueError(
                f"rows of a buffer are equally wide, got {x_BD.shape[1]} for {self.x_BD.shape[1]} coordinates; "
                "write samples of the same space"
            )
        rows_BD = torch.cat([self.x_BD, x_BD.detach().to(self.x_BD)])[-self.capacity :].clone()
        return replace(self, x_BD=rows_BD, added=self.added + len(x_BD))

    def rows(self, n: int, *, draw: int) -> Tensor:
        """Indices (n,) of draw number `draw`; a shorter draw of the same number is the start of a longer one."""
        if draw < 0:
            raise ValueError(f"draws are counted from 0, got draw={draw}; write the number of the step")
        # A generator made from (seed, number) alone: Philox, Salmon et al. 2011.
        source = np.random.Generator(np.random.Philox(key=[self.seed, draw]))
        uniform_n = source.random(n)
        return torch.from_numpy((uniform_n * len(self)).astype(np.int64)).to(self.x_BD.device)

    def sample(self, n: int, *, draw: int) -> Batch:
        """n rows, uniformly and with replacement."""
        return Batch(x_BD=self.x_BD[self.rows(n, draw=draw)])

    def batch(self, start: int, stop: int, *, draw: int) -> Batch:
        """Rows [start, stop) of a draw."""
        return Batch(x_BD=self.x_BD[self.rows(stop, draw=draw)[start:]])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and integers: everything that `from_state` needs."""
        return {"x": self.x_BD.clone(), "capacity": self.capacity, "seed": self.seed, "added": self.added}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> ReplayBuffer:
        """The buffer that a state was taken from."""
        if set(state) != STATE_KEYS:
            raise ValueError(
                f"the state of a buffer has {sorted(STATE_KEYS)}, got {sorted(state)}; write what state_dict() gave"
            )
        return ReplayBuffer(
            x_BD=state["x"].clone(), capacity=state["capacity"], seed=state["seed"], added=state["added"]
        )


def require_capacity(capacity: int) -> None:
    """Raise ValueError unless there is room for a row."""
    if capacity < 1:
        raise ValueError(f"a buffer has room for at least one row, got capacity={capacity}; write 10_000 or so")


def require_rows(x_BD: Tensor) -> None:
    """Raise ValueError unless x is a finite floating (B, D) tensor."""
    if x_BD.ndim != 2 or not x_BD.dtype.is_floating_point:
        raise ValueError(f"rows are a floating (B, D) tensor, got {tuple(x_BD.shape)} of {x_BD.dtype}; write x.float()")
    bad = int((~torch.isfinite(x_BD)).any(dim=1).sum())
    if bad:
        raise ValueError(f"rows of a buffer are finite, got {bad} of {len(x_BD)} with NaN or infinity; drop those rows")
