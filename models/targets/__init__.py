"""Targets: one energy a file. A user's own target is any object that fulfils `models.contracts.Target`."""

from models.targets.double_well import DoubleWell, dw4
from models.targets.gaussian_mixture import GaussianMixture, gmm4, gmm40
from models.targets.lennard_jones import LennardJones, lj13, lj55
from models.targets.of_energy import TargetOfEnergy
from models.targets.rescaled import Rescaled

__all__ = [
    "DoubleWell",
    "GaussianMixture",
    "LennardJones",
    "Rescaled",
    "TargetOfEnergy",
    "dw4",
    "gmm4",
    "gmm40",
    "lj13",
    "lj55",
]
