"""Laws that every objective obeys: its gradient is a sum over samples, in the order of the flow's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, GradientSum, Objective, Random


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """One worker's part of a batch."""
    force_BD = None if batch.force_BD is None else batch.force_BD[start:stop]
    return Batch(x_BD=batch.x_BD[start:stop], force_BD=force_BD)


def shared_random(size: int, start: int, stop: int) -> Random:
    """What one of several workers draws: the same global numbers, its own rows."""
    return Random(generator=torch.Generator().manual_seed(21), global_size=size, start=start, stop=stop)


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([g.flatten() for g in gradients])


class ObjectiveLaws(ABC):
    """Subclass and give an objective, a small flow in float64 and a batch of six rows for it.

    `additive` is False for objectives that couple the samples of a local batch (optimal transport pairings).
    """

    additive = True

    @abstractmethod
    def make_objective(self) -> Objective: ...

    @abstractmethod
    def make_flow(self) -> nn.Module: ...

    @abstractmethod
    def make_batch(self) -> Batch: ...

    @pytest.fixture
    def flow(self) -> nn.Module:
        torch.manual_seed(5)
        return self.make_flow().double()

    @pytest.fixture
    def whole(self, flow: nn.Module) -> GradientSum:
        batch = self.make_batch()
        size = len(batch.x_BD)
        return self.make_objective().gradient(flow, batch, shared_random(size, 0, size))

    def test_one_gradient_for_each_parameter_in_order(self, flow: nn.Module, whole: GradientSum) -> None:
        shapes = [p.shape for p in flow.parameters() if p.requires_grad]
        assert [g.shape for g in whole.gradients] == shapes
        assert all(g.dtype == torch.float64 and bool(torch.isfinite(g).all()) for g in whole.gradients)
        assert float(flat(whole.gradients).norm()) > 0.0

    def test_gradients_carry_no_graph_and_touch_no_grad(self, flow: nn.Module, whole: GradientSum) -> None:
        assert not any(g.requires_grad for g in (*whole.gradients, whole.loss_sum))
        assert all(p.grad is None for p in flow.parameters())

    def test_weight_and_work_count_the_samples(self, whole: GradientSum) -> None:
        size = len(self.make_batch().x_BD)
        assert whole.weight == size
        assert whole.work.samples == size
        assert whole.work.field_evaluations >= size
        assert whole.loss_sum.shape == ()
        assert bool(torch.isfinite(whole.loss_sum))

    def test_the_same_randomness_gives_the_same_gradient(self, flow: nn.Module, whole: GradientSum) -> None:
        batch = self.make_batch()
        size = len(batch.x_BD)
        again = self.make_objective().gradient(flow, batch, shared_random(size, 0, size))
        assert torch.equal(flat(again.gradients), flat(whole.gradients))
        assert torch.equal(again.loss_sum, whole.loss_sum)

    def test_workers_sum_to_the_whole_batch(self, flow: nn.Module, whole: GradientSum) -> None:
        if not self.additive:
            return
        batch = self.make_batch()
        size = len(batch.x_BD)
        cuts = [(0, size // 3), (size // 3, size)]
        parts = [self.make_objective().gradient(flow, rows(batch, a, b), shared_random(size, a, b)) for a, b in cuts]
        total = sum((flat(part.gradients) for part in parts[1:]), flat(parts[0].gradients))
        torch.testing.assert_close(total, flat(whole.gradients), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(parts[0].loss_sum + parts[1].loss_sum, whole.loss_sum, rtol=1e-10, atol=1e-10)
        assert sum(part.weight for part in parts) == whole.weight
        assert parts[0].work + parts[1].work == whole.work
