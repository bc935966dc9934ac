"""Laws that every objective obeys: its gradient is a sum over samples, in the order of the flow's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.contracts import Batch, GradientSum, Objective, Prepared, Random


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """One worker's part of a batch."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: None if rows is None else rows[start:stop] for name, rows in columns.items()})


def shared_random(size: int, start: int, stop: int) -> Random:
    """What one of several workers draws: the same global numbers, its own rows."""
    return Random(generator=torch.Generator().manual_seed(21), global_size=size, start=start, stop=stop)


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([g.flatten() for g in gradients])


def gradient_of(objective: Objective, flow: Any, batch: Batch, random: Random) -> GradientSum:
    """Both parts of an objective, one after the other."""
    return objective.gradient(flow, objective.prepare(flow.prior, batch, random))


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
        return gradient_of(self.make_objective(), flow, batch, shared_random(size, 0, size))

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
        again = gradient_of(self.make_objective(), flow, batch, shared_random(size, 0, size))
        assert torch.equal(flat(again.gradients), flat(whole.gradients))
        assert torch.equal(again.loss_sum, whole.loss_sum)

    def test_workers_sum_to_the_whole_batch(self, flow: nn.Module, whole: GradientSum) -> None:
        if not self.additive:
            return
        batch = self.make_batch()
        size = len(batch.x_BD)
        cuts = [(0, size // 3), (size // 3, size)]
        parts = [
            gradient_of(self.make_objective(), flow, rows(batch, a, b), shared_random(size, a, b)) for a, b in cuts
        ]
        total = sum((flat(part.gradients) for part in parts[1:]), flat(parts[0].gradients))
        torch.testing.assert_close(total, flat(whole.gradients), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(parts[0].loss_sum + parts[1].loss_sum, whole.loss_sum, rtol=1e-10, atol=1e-10)
        assert sum(part.weight for part in parts) == whole.weight
        assert parts[0].work + parts[1].work == whole.work

    def prepared(self, flow: Any) -> Prepared:
        batch = self.make_batch()
        size = len(batch.x_BD)
        return self.make_objective().prepare(flow.prior, batch, shared_random(size, 0, size))

    def test_what_is_prepared_has_a_row_a_sample_and_no_graph(self, flow: Any) -> None:
        prepared = self.prepared(flow)
        assert len(prepared) == len(self.make_batch().x_BD)
        assert all(len(tensor) == len(prepared) for tensor in prepared.tensors.values())
        assert not any(tensor.requires_grad for tensor in prepared.tensors.values())

    def test_the_weights_change_nothing_that_is_prepared(self, flow: Any) -> None:
        before = self.prepared(flow)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(1.0)
        after = self.prepared(flow)
        assert before.tensors.keys() == after.tensors.keys()
        assert all(torch.equal(before[name], after[name]) for name in before.tensors)

    def test_all_randomness_is_in_what_is_prepared(self, flow: Any) -> None:
        objective, prepared = self.make_objective(), self.prepared(flow)
        torch.manual_seed(1)
        first = objective.gradient(flow, prepared)
        torch.manual_seed(2)
        second = objective.gradient(flow, prepared)
        assert torch.equal(flat(first.gradients), flat(second.gradients))

    @pytest.mark.parametrize("size", [1, 4, 6, 100])
    def test_slices_sum_to_all_rows_and_preparing_is_charged_once(
        self, flow: nn.Module, whole: GradientSum, size: int
    ) -> None:
        parts = [self.make_objective().gradient(flow, part) for part in self.prepared(flow).slices(size)]
        total = sum(parts[1:], parts[0])
        assert len(parts) == -(-int(whole.weight) // size)
        torch.testing.assert_close(flat(total.gradients), flat(whole.gradients), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(total.loss_sum, whole.loss_sum, rtol=1e-10, atol=1e-10)
        assert total.weight == whole.weight
        assert total.work == whole.work
