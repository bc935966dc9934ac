"""What every coupling must do; a member subclasses this and says which coupling and space it tests.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Space
from models.couplings import Coupling

BRUTE_FORCE_BATCH = 6


class CouplingLaws:
    """Laws of one coupling: the base stays, the data are only rearranged, nothing is random."""

    space = Space(dim=2)

    def make(self) -> Coupling:
        raise AssertionError("a member of CouplingLaws must say which coupling it tests: define make()")

    def same_configuration(self, a_BD: Tensor, b_BD: Tensor) -> bool:
        """Equal up to the coupling's symmetry."""
        return torch.equal(a_BD, b_BD)

    def draw(self, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x0_BD, x1_BD = torch.randn((2, batch, self.space.dim), generator=generator, dtype=torch.float64)
        return self.space.project(x0_BD), self.space.project(1.5 * x1_BD)

    @pytest.mark.parametrize("batch", [1, 2, 7, 33])
    def test_base_is_unchanged_and_data_are_rearranged(self, batch: int) -> None:
        x0_BD, x1_BD = self.draw(batch)
        pairs = self.make()(x0_BD, x1_BD)
        assert torch.equal(pairs.x0_BD, x0_BD)
        assert sorted(pairs.permutation_B.tolist()) == list(range(batch))
        assert self.same_configuration(pairs.x1_BD, x1_BD[pairs.permutation_B])

    def test_cost_is_the_squared_distance_of_the_pairs_and_no_more_than_that_of_chance(self) -> None:
        x0_BD, x1_BD = self.draw(24)
        pairs = self.make()(x0_BD, x1_BD)
        torch.testing.assert_close(pairs.cost_B, (pairs.x1_BD - pairs.x0_BD).square().sum(dim=1))
        assert pairs.cost_B.sum() <= (x1_BD - x0_BD).square().sum() + 1e-9

    def test_the_same_batch_is_paired_the_same_way(self) -> None:
        x0_BD, x1_BD = self.draw(16)
        first, second = self.make()(x0_BD, x1_BD), self.make()(x0_BD, x1_BD)
        assert torch.equal(first.x1_BD, second.x1_BD)

    def test_reordering_both_batches_reorders_the_pairs(self) -> None:
        x0_BD, x1_BD = self.draw(12)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
        expected = self.make()(x0_BD, x1_BD).x1_BD[order]
        torch.testing.assert_close(self.make()(x0_BD[order], x1_BD[order]).x1_BD, expected, rtol=0, atol=1e-12)

    def test_duplicated_rows_are_each_used_once(self) -> None:
        x0_BD, x1_BD = self.draw(4)
        pairs = self.make()(x0_BD.repeat(3, 1), x1_BD.repeat(3, 1))
        assert sorted(pairs.permutation_B.tolist()) == list(range(12))

    def test_single_precision_stays_and_nothing_carries_a_gradient(self) -> None:
        x0_BD, x1_BD = self.draw(5)
        pairs = self.make()(x0_BD.float(), x1_BD.float())
        assert pairs.x1_BD.dtype == torch.float32
        assert not pairs.x1_BD.requires_grad

    def test_flops_are_declared_and_grow_with_the_batch(self) -> None:
        coupling = self.make()
        assert 0 <= coupling.declared_flops(8, self.space.dim) <= coupling.declared_flops(16, self.space.dim)

    def test_batches_of_different_size_are_refused(self) -> None:
        x0_BD, x1_BD = self.draw(5)
        with pytest.raises(ValueError, match="one shape"):
            self.make()(x0_BD, x1_BD[:4])


class OptimalCouplingLaws(CouplingLaws):
    """Couplings that minimise: the assignment of rows is the best of all there are."""

    @pytest.mark.parametrize("batch", [2, 4, BRUTE_FORCE_BATCH])
    def test_no_assignment_of_rows_is_cheaper(self, batch: int) -> None:
        x0_BD, x1_BD = self.draw(batch, seed=batch)
        alone = self.make()
        cost_BB = np.array([[alone(a[None], b[None]).cost_B.item() for b in x1_BD] for a in x0_BD])
        best = min(cost_BB[np.arange(batch), list(order)].sum() for order in permutations(range(batch)))
        assert self.make()(x0_BD, x1_BD).cost_B.sum().item() == pytest.approx(best, rel=1e-12)

    def test_the_order_of_the_data_does_not_matter(self) -> None:
        x0_BD, x1_BD = self.draw(12)
        torch.testing.assert_close(
            self.make()(x0_BD, x1_BD.flip(0)).x1_BD, self.make()(x0_BD, x1_BD).x1_BD, rtol=0, atol=1e-12
        )
