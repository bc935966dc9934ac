"""Laws that every noise schedule obeys: h is the integral of g^2, increases, and can be inverted.

Noise time tau: 0 at the data, 1 at the noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from itertools import product

import pytest
import torch
from torch import Tensor

from models.schedules import Schedule


class ScheduleLaws(ABC):
    """Subclass and give a schedule."""

    @abstractmethod
    def make(self) -> Schedule: ...

    @pytest.fixture
    def schedule(self) -> Schedule:
        return self.make()

    @pytest.fixture
    def tau(self) -> Tensor:
        return torch.linspace(0.02, 0.98, 25, dtype=torch.float64)

    def test_no_noise_at_the_data_and_the_total_at_the_end(self, schedule: Schedule) -> None:
        ends = schedule.h(torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert float(ends[0]) == 0.0
        assert float(ends[1]) == pytest.approx(schedule.total_variance, rel=1e-12)

    def test_noise_only_grows(self, schedule: Schedule) -> None:
        h = schedule.h(torch.linspace(0, 1, 101, dtype=torch.float64))
        assert bool((h.diff() > 0).all())

    def test_the_slope_of_h_is_g_squared_by_autograd(self, schedule: Schedule, tau: Tensor) -> None:
        tau = tau.requires_grad_()
        (slope,) = torch.autograd.grad(schedule.h(tau).sum(), tau)
        torch.testing.assert_close(schedule.g(tau).square().detach(), slope, rtol=1e-12, atol=0)

    def test_the_slope_of_h_is_g_squared_by_differences(self, schedule: Schedule, tau: Tensor) -> None:
        step = 1e-5
        slope = (schedule.h(tau + step) - schedule.h(tau - step)) / (2 * step)
        torch.testing.assert_close(schedule.g(tau).square(), slope, rtol=1e-5, atol=1e-9 * schedule.total_variance)

    def test_g_is_finite_and_not_negative_up_to_the_ends(self, schedule: Schedule) -> None:
        g = schedule.g(torch.linspace(0, 1, 101, dtype=torch.float64))
        assert bool(torch.isfinite(g).all())
        assert bool((g >= 0).all())

    def test_time_of_inverts_h(self, schedule: Schedule, tau: Tensor) -> None:
        torch.testing.assert_close(schedule.time_of(schedule.h(tau)), tau, rtol=0, atol=1e-12)
        variance = schedule.total_variance * torch.linspace(0, 1, 11, dtype=torch.float64)
        torch.testing.assert_close(schedule.h(schedule.time_of(variance)), variance, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(), (3,), (3, 1)])
    def test_shapes_and_dtypes_are_kept(self, schedule: Schedule, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        tau = torch.full(shape, 0.3, dtype=dtype)
        for found in (schedule.h(tau), schedule.g(tau), schedule.time_of(schedule.h(tau))):
            assert (found.shape, found.dtype, found.device) == (tau.shape, dtype, tau.device)

    def test_every_corner_of_the_search_ranges_is_a_schedule(self, schedule: Schedule) -> None:
        ranges = type(schedule).search_ranges()
        assert set(ranges) == {field.name for field in fields(schedule)}  # type: ignore[arg-type]
        assert all(0.0 < low < high for low, high, _ in ranges.values())
        corners = list(product(*((low, high) for low, high, _ in ranges.values())))
        assert len(corners) == 2 ** len(ranges)
        for corner in corners:
            made = type(schedule)(**dict(zip(ranges, corner, strict=True)))
            assert bool(torch.isfinite(made.h(torch.linspace(0, 1, 5, dtype=torch.float64))).all())

    def test_it_is_a_frozen_value(self, schedule: Schedule) -> None:
        assert schedule == self.make()
        assert hash(schedule) == hash(self.make())
        with pytest.raises(AttributeError):
            schedule.total_variance = 2.0  # type: ignore[misc]
