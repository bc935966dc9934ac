"""Targets that no study may be started with; the table of refusals names them by their addresses."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from models.contracts import Space
from models.targets import TargetOfEnergy
from tests.studies.harmonic import Harmonic

PLANE = Space(dim=2)


def raises() -> Any:
    raise OSError("no such\nforce field")


def quits() -> Any:
    sys.exit(0)


def text() -> Any:
    return "gmm4"


def plane(energy: Any, **fields: Any) -> TargetOfEnergy:
    return TargetOfEnergy(**{"name": "plane", "space": PLANE, "energy_of": energy, **fields})


def not_a_number() -> TargetOfEnergy:
    return plane(lambda x_BD: x_BD.sum(dim=1) * float("nan"))


def single() -> TargetOfEnergy:
    return plane(lambda x_BD: x_BD.float().square().sum(dim=1))


def random() -> TargetOfEnergy:
    return plane(lambda x_BD: x_BD.square().sum(dim=1) + torch.rand(len(x_BD), dtype=x_BD.dtype))


def nameless() -> TargetOfEnergy:
    return plane(lambda x_BD: x_BD.square().sum(dim=1), name="")


def slow_to_say() -> TargetOfEnergy:
    return plane(lambda x_BD: x_BD @ torch.ones(3, dtype=x_BD.dtype))


class Uphill(Harmonic):
    """A score of the wrong sign."""

    def score(self, x_BD: Tensor) -> Tensor:
        return -super().score(x_BD)


def uphill() -> Uphill:
    return Uphill()


class Pinned(Harmonic):
    """An energy that tells the first particle from the others."""

    def energy(self, x_BD: Tensor) -> Tensor:
        return super().energy(x_BD) + x_BD[:, 0].square()

    def score(self, x_BD: Tensor) -> Tensor:
        return super().score(x_BD) - 2 * x_BD * torch.eye(6, dtype=x_BD.dtype)[0]


def pinned() -> Pinned:
    return Pinned()


def climbs_out() -> Harmonic:
    """A name that would lead out of the folder where its forces, so dear that they are kept, go."""
    return Harmonic(name="../../../escaped", energy_flops=10**9)
