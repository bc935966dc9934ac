"""Monte Carlo within a number of evaluations: never more, counted right, and right where there are enough."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.contracts import Space
from models.reference.within import chain_ends, evaluations
from models.targets import dw4, gmm4


class Counting:
    """A Gaussian of width 0.5 around 3 that counts what it is asked."""

    name, space, log_z, energy_flops = "gaussian", Space(dim=2), None, 1

    def __init__(self) -> None:
        self.calls = 0

    def energy(self, x_BD: Tensor) -> Tensor:
        self.calls += len(x_BD)
        return 2.0 * (x_BD - 3.0).square().sum(dim=1)

    def score(self, x_BD: Tensor) -> Tensor:
        self.calls += len(x_BD)
        return -4.0 * (x_BD - 3.0)


@pytest.mark.parametrize("most", [64, 100, 1000, 5000])
def test_no_more_is_called_than_allowed_and_all_of_it_is_counted(most: int) -> None:
    target = Counting()
    ends = chain_ends(target, chains=16, most_evaluations=most, start_scale=1.0, seed=0)
    assert target.calls == evaluations(ends.work) <= most
    assert most - evaluations(ends.work) < 16 * (3 * 16 // 2 + 2)
    assert ends.transitions >= 1
    assert ends.x_CD.shape == (16, 2)


def test_chains_end_in_the_target_where_they_are_long_enough() -> None:
    ends = chain_ends(Counting(), chains=2000, most_evaluations=2000 * 600, start_scale=1.0, seed=0)
    error = 0.5 / math.sqrt(2000)
    assert (ends.x_CD.mean(dim=0) - 3.0).abs().max() < 4 * error
    assert ends.x_CD.var(dim=0).tolist() == pytest.approx([0.25, 0.25], rel=0.15)
    assert 0.6 < ends.acceptance < 0.95


def test_the_same_seed_gives_the_same_chains_and_another_others() -> None:
    one, same, other = (
        chain_ends(gmm4(), chains=8, most_evaluations=800, start_scale=1.0, seed=seed).x_CD for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_particles_that_overlap_slide_apart_within_the_same_count() -> None:
    ends = chain_ends(dw4(), chains=8, most_evaluations=8 * 300, start_scale=1.0, seed=0)
    assert evaluations(ends.work) <= 8 * 300
    assert torch.isfinite(dw4().energy(ends.x_CD)).all()
    assert ends.x_CD.unflatten(1, (4, 2)).mean(dim=1).abs().max() < 1e-5


def test_too_few_evaluations_are_told() -> None:
    with pytest.raises(ValueError, match=r"8 chains need 32 evaluations at least, got 31; run fewer chains"):
        chain_ends(gmm4(), chains=8, most_evaluations=31, start_scale=1.0, seed=0)
