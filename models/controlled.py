"""A controlled process as a model: it draws weighted samples, and knows no density.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from models.contracts import Batch, Prepared, Prior, Random, Space
from models.flows.prior import GaussianPrior
from models.objectives.path_integral import Control, ControlledPath


class Process(Protocol):
    """Noise, and the paths that a control makes of it; the path objectives are such processes."""

    @property
    def sigma(self) -> float: ...

    @property
    def steps(self) -> int: ...

    def prepare(self, prior: Prior, batch: Batch, random: Random) -> Prepared: ...

    def paths(self, control: Control, prepared: Prepared) -> ControlledPath: ...


class ControlledSampler(nn.Module):
    """A control (its field) and the process that it steers.

    Its `prior` is the reference N(0, sigma^2); no path needs to start there.
    """

    field: Control

    def __init__(self, *, space: Space, process: Process, control: Control) -> None:
        super().__init__()
        self.prior = GaussianPrior(space=space, std=process.sigma)
        self.process = process
        self.field = control

    @property
    def space(self) -> Space:
        return self.prior.space

    @torch.no_grad()
    def draw(self, random: Random, *, like: Tensor) -> ControlledPath:
        """This worker's share of paths; their weights stand for the target exp(-energy)."""
        rows = like.new_zeros(random.stop - random.start, self.space.dim)
        return self.process.paths(self.field, self.process.prepare(self.prior, Batch(x_BD=rows), random))
