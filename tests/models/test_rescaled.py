"""A target in other units: the target laws, and its normaliser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.contracts import Target
from models.targets import Rescaled, dw4, gmm4, gmm40
from tests.laws.target_laws import TargetLaws


class TestRescaled(TargetLaws):
    def target(self) -> Target:
        return Rescaled(target=gmm40(), scale=50.0)

    def points(self) -> Tensor:
        return 0.4 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def test_the_normaliser_follows_the_volume(self) -> None:
        """Integral of exp(-E(50 x)) of four modes on a grid."""
        target = Rescaled(target=gmm4(), scale=50.0)
        axis = torch.linspace(-0.15, 0.15, 401, dtype=torch.float64)
        grid_BD = torch.cartesian_prod(axis, axis)
        log_z = torch.logsumexp(-target.energy(grid_BD), dim=0) + 2 * math.log(float(axis[1] - axis[0]))
        assert target.log_z == pytest.approx(float(log_z), abs=1e-9)
        assert Rescaled(target=dw4(), scale=2.0).log_z is None


def test_a_scale_is_positive() -> None:
    with pytest.raises(ValueError, match=r"got -1.0; write"):
        Rescaled(target=gmm4(), scale=-1.0)
