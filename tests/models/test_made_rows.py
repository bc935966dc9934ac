"""Rows made for a phase: resampling against its definition, what is refused, and what every source counts.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.contracts import Random, whole_batch
from models.controlled import ControlledSampler
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.diffusion import ProbabilityFlow, noise_prior
from models.flows.prior import GaussianPrior
from models.made_rows import finite_rows, made_rows_of, systematic_resample
from models.objectives.path_integral import PathIntegral
from models.schedules import Geometric
from models.targets import dw4, gmm4
from models.targets.gaussian_mixture import GaussianMixture

SCHEDULE = {"kind": "geometric", "sigma_min": 0.01, "sigma_max": 3.0}
ONE = GaussianMixture(name="one", means_KD=torch.zeros(1, 2), variance=0.25)


class GaussianScore(torch.nn.Module):
    """The exact score of a noised Gaussian of variance 1/4."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, tau: Tensor, x_BD: Tensor) -> Tensor:
        h = Geometric(sigma_min=0.01, sigma_max=3.0).h(tau.to(x_BD)).reshape(-1, 1)
        return -self.factor * x_BD / (0.25 + h)

    def with_divergence(self, tau: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        h = Geometric(sigma_min=0.01, sigma_max=3.0).h(tau.to(x_BD)).reshape(-1)
        return self(tau, x_BD), (-2.0 * self.factor / (0.25 + h)).expand(len(x_BD))


def score_flow() -> ContinuousFlow:
    schedule = Geometric(sigma_min=0.01, sigma_max=3.0)
    return ContinuousFlow(
        prior=noise_prior(ONE.space, schedule), field=ProbabilityFlow(score=GaussianScore(), schedule=schedule)
    )


def rows_of(flow: Any, n: int, **data: Any) -> tuple[Tensor, Any]:
    settings = {"from": "parent", "rows": n, "resampled": False, **data}
    sampling = made_rows_of({"kind": "flow_matching", "data": settings}, ONE)
    assert sampling is not None
    drawn = sampling.draw(flow, whole_batch(n, 3))
    batch, work = sampling.finish(drawn.tensors, seed=1)
    assert batch.force_BD is not None
    torch.testing.assert_close(batch.force_BD, ONE.score(batch.x_BD), rtol=1e-5, atol=1e-5)
    assert work.force_evaluations == len(batch.x_BD)
    return batch.x_BD, drawn.work


def test_every_row_is_drawn_as_often_as_its_weight_says() -> None:
    weights_B = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.3], dtype=torch.float64).repeat_interleave(20) / 20
    rows = systematic_resample(weights_B.log() + 7.0, seed=4)
    counts = torch.bincount(rows, minlength=100).double()
    assert counts.sum() == 100
    assert bool(((counts - 100 * weights_B).abs() < 1).all())
    assert torch.equal(rows, systematic_resample(weights_B.log(), seed=4))
    assert not torch.equal(rows, systematic_resample(weights_B.log(), seed=5))


def test_weights_that_are_no_numbers_count_nothing() -> None:
    weights = torch.tensor([float("nan"), 0.0, float("-inf"), float("inf"), 0.0])
    assert set(systematic_resample(weights, seed=0).tolist()) == {1, 4}
    with pytest.raises(ValueError, match=r"finite weight.*write|finite weight.*train"):
        systematic_resample(torch.full((3,), float("nan")), seed=0)


def test_few_lost_rows_are_dropped_and_many_are_told() -> None:
    x_BD = torch.zeros(10, 2)
    x_BD[3, 1] = float("nan")
    assert len(finite_rows(x_BD)) == 9
    x_BD[4:] = float("inf")
    with pytest.raises(ValueError, match=r"3 of 10.*train the stage before"):
        finite_rows(x_BD)


def test_the_reverse_process_and_the_probability_flow_draw_the_same_distribution() -> None:
    n = 4000
    by_process, spent = rows_of(score_flow(), n, sde={"steps": 200, "noise_scale": 1.0}, schedule=SCHEDULE)
    by_flow, called = rows_of(score_flow(), n, tolerance=1e-4)
    for x_BD in (by_process, by_flow):
        assert float(x_BD.var()) == pytest.approx(0.25, rel=0.08)
        assert float(x_BD.mean()) == pytest.approx(0.0, abs=0.03)
    assert (spent.field_evaluations, spent.energy_evaluations) == (200 * n, 0)
    assert called.field_evaluations % n == 0
    assert called.field_evaluations >= 6 * n


def test_resampling_turns_a_wrong_flow_into_the_target() -> None:
    n = 4000
    wide = ContinuousFlow(prior=GaussianPrior(space=ONE.space, std=0.8), field=MLPField(2, hidden=2, layers=1))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
    raw, _ = rows_of(wide, n, tolerance=1e-3)
    resampled, work = rows_of(wide, n, tolerance=1e-3, resampled=True)
    assert float(raw.var()) == pytest.approx(0.64, rel=0.08)
    assert float(resampled.var()) == pytest.approx(0.25, rel=0.08)
    assert work.energy_evaluations == n


def test_a_controlled_process_is_resampled_by_its_own_weights() -> None:
    n, process = 4000, PathIntegral(target=ONE, sigma=1.0, steps=20)
    control = MLPField(2, hidden=2, layers=1)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.zero_()
    sampler = ControlledSampler(space=ONE.space, process=process, control=control)
    raw, work = rows_of(sampler, n)
    resampled, _ = rows_of(sampler, n, resampled=True)
    assert float(raw.var()) == pytest.approx(1.0, rel=0.08)
    assert float(resampled.var()) == pytest.approx(0.25, rel=0.1)
    assert (work.field_evaluations, work.energy_evaluations) == (20 * n, n)


def test_rows_do_not_depend_on_how_workers_share_them() -> None:
    settings = {"from": "parent", "rows": 10, "resampled": True, "tolerance": 1e-6}
    sampling = made_rows_of({"kind": "flow_matching", "data": settings}, ONE)
    assert sampling is not None

    def share(start: int, stop: int) -> dict[str, Tensor]:
        random = Random(generator=torch.Generator().manual_seed(3), global_size=10, start=start, stop=stop)
        return dict(sampling.draw(score_flow(), random).tensors)

    whole, parts = share(0, 10), [share(0, 4), share(4, 10)]
    for name, tensor in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), tensor, rtol=1e-4, atol=1e-4)


def test_own_samples_of_particles_are_mean_free() -> None:
    target = dw4()
    flow = ContinuousFlow(prior=GaussianPrior(space=target.space), field=MLPField(8, hidden=2, layers=1))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    settings = {"from": "parent", "rows": 20, "resampled": False, "tolerance": 1e-2}
    sampling = made_rows_of({"data": settings}, target)
    assert sampling is not None
    batch, _ = sampling.finish(sampling.draw(flow, whole_batch(20, 1)).tensors, seed=0)
    target.space.check(batch.x_BD)


def test_a_training_set_needs_no_rows_and_unknown_sources_are_told() -> None:
    assert made_rows_of({"kind": "flow_matching"}, gmm4()) is None
    with pytest.raises(ValueError, match=r"none, prior, estimate, parent.*'thin air'.*write"):
        made_rows_of({"data": {"from": "thin air"}}, gmm4())
    both = {"from": "parent", "rows": 3, "resampled": True, "sde": {}}
    with pytest.raises(ValueError, match=r"resampled by weights.*leave one"):
        made_rows_of({"data": both}, gmm4())
