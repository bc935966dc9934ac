"""A user's own target: imported from the folder that the study was started in, and held against the laws of targets.

Shapes: B batch, D coordinates, N particles, d spatial dimensions.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.contracts import SampledTarget, Space, Target

ROWS = 8
"""Base samples that the laws are tried on."""
DRAWS = 2000
"""Own draws of a target whose virial is tried."""
STEP = 1e-5
"""Of central differences, in units of the base's width."""
SCORE_TOLERANCE = 1e-3
ROUNDING = 1e-9
"""Relative differences of energies that float64 may leave where they ought to be the same."""
STANDARD_ERRORS = 6.0


def import_from_here(address: str) -> Callable[[], Any]:
    """The function at "module:function"; modules of the current folder come after installed ones.

    Raises:
        ImportError, AttributeError: where there is no such module or function.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    module_name, _, function_name = address.partition(":")
    return getattr(importlib.import_module(module_name), function_name)


def check_target(target: Target, address: str, *, prior_std: float) -> None:
    """Hold a target against the laws, in float64, on samples of its base.

    Args:
        address: that messages call it by. prior_std: width of the base.

    Raises:
        ValueError: for the first law that it breaks.
    """
    laws = Laws(target, address, prior_std)
    laws.check_description()
    energy_B = laws.check_energies()
    laws.check_rows(energy_B)
    laws.check_scores(energy_B)
    if target.space.particles is not None:
        laws.check_symmetries(energy_B)
    if isinstance(target, SampledTarget):
        laws.check_draws()


class Laws:
    """The laws for one target. Arguments as for `check_target`."""

    def __init__(self, target: Target, address: str, prior_std: float) -> None:
        self.target, self.address, self.prior_std = target, address, prior_std

    def broken(self, rule: str, got: str, instead: str) -> ValueError:
        return ValueError(f"{rule}, but {self.address} has {got}; {instead}")

    def noise(self, *shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    @property
    def points(self) -> Tensor:
        """Samples of the base, half of them at half its width."""
        wide_B1 = torch.tensor([1.0, 0.5], dtype=torch.float64).repeat(ROWS // 2)[:, None]
        return self.target.space.project(self.prior_std * wide_B1 * self.noise(ROWS, self.target.space.dim, seed=0))

    def call(self, what: str, x_BD: Tensor) -> Tensor:
        """`energy` or `score` of rows, as studies call it: without a graph. Its shape and its dtype are checked."""
        try:
            with torch.no_grad():
                found = getattr(self.target, what)(x_BD)
        except Exception as error:
            raise self.broken(
                f"a target's {what} takes rows of shape {tuple(x_BD.shape)}, also under torch.no_grad",
                f"one that {failure(error)}",
                "write it for (batch, dim); a score by autograd needs torch.enable_grad, as models.targets."
                "TargetOfEnergy has it",
            ) from error
        shape = (len(x_BD),) if what == "energy" else tuple(x_BD.shape)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            instead = "write one number a row, without a last axis" if what == "energy" else "write one row for each"
            raise self.broken(f"a target's {what} of rows of shape {tuple(x_BD.shape)} has shape {shape}", got, instead)
        if found.dtype != x_BD.dtype:
            instead = "make its constants with dtype=x.dtype, and convert nothing"
            raise self.broken(f"a target's {what} keeps the dtype of {x_BD.dtype} rows", f"{found.dtype}", instead)
        return found

    def check_description(self) -> None:
        target = self.target
        if not isinstance(target.space, Space):
            kind = type(target.space).__name__
            raise self.broken("a target's space is a Space", f"a {kind}", "write models.contracts.Space(dim=...)")
        if not (isinstance(target.name, str) and target.name):
            raise self.broken("a target's name is a text", f"{target.name!r}", 'write for example name="ring"')
        if target.log_z is not None and not (isinstance(target.log_z, float) and math.isfinite(target.log_z)):
            raise self.broken(
                "a target's log_z is a finite float, or None", f"{target.log_z!r}", "write None where it is not known"
            )
        if not (isinstance(target.energy_flops, int) and target.energy_flops > 0):
            raise self.broken(
                "a target's energy_flops counts operations",
                f"{target.energy_flops!r}",
                "write a whole number from 1 on",
            )

    def check_energies(self) -> Tensor:
        """Energies of the points: finite, of the right shape in either precision, and the same each time."""
        x_BD = self.points
        energy_B = self.call("energy", x_BD)
        if not bool(torch.isfinite(energy_B).all()):
            lost = int((~torch.isfinite(energy_B)).sum())
            raise self.broken(
                f"energies of samples of the base (a Gaussian of width {self.prior_std:g}) are finite",
                f"{lost} of {ROWS} that are not",
                "cap the energy where it diverges, or return a System with another prior_std",
            )
        self.call("energy", x_BD.float())
        if self.target.energy(x_BD).requires_grad:
            raise self.broken(
                "energies of plain rows carry no graph", "one whose constants want a gradient", "detach these"
            )
        if not torch.equal(self.call("energy", x_BD), energy_B):
            raise self.broken(
                "the energy of a row is the same each time", "one that changes", "draw nothing at random in it"
            )
        return energy_B

    def check_rows(self, energy_B: Tensor) -> None:
        alone_B = torch.cat([self.call("energy", row_D[None]) for row_D in self.points])
        if difference(alone_B, energy_B) > ROUNDING:
            raise self.broken(
                "rows do not see each other",
                f"energies that change by {difference(alone_B, energy_B):.2g} of their size when rows are alone",
                "reduce over coordinates (dim=1) only",
            )

    def check_scores(self, energy_B: Tensor) -> None:
        """The score along random directions against central differences of the energy, row by row."""
        x_BD, space = self.points, self.target.space
        score_BD = self.call("score", x_BD)
        self.call("score", x_BD.float())
        if not bool(torch.isfinite(score_BD).all()):
            lost = int((~torch.isfinite(score_BD)).any(dim=1).sum())
            raise self.broken(
                "scores of samples of the base are finite", f"{lost} of {ROWS} that are not", "cap the energy's slope"
            )
        step = STEP * self.prior_std
        for seed in range(1, 4):
            way_BD = space.project(self.noise(*x_BD.shape, seed=seed))
            way_BD = way_BD / way_BD.norm(dim=1, keepdim=True)
            up_B, down_B = (self.call("energy", x_BD + sign * step * way_BD) for sign in (1, -1))
            slope_B, along_B = -(up_B - down_B) / (2 * step), (score_BD * way_BD).sum(dim=1)
            noise_B = 8 * torch.finfo(torch.float64).eps * energy_B.abs().clamp_min(1.0) / step
            allowed_B = SCORE_TOLERANCE * torch.maximum(slope_B.abs(), score_BD.norm(dim=1)) + noise_B
            worst = int(((slope_B - along_B).abs() / allowed_B).argmax())
            if bool((slope_B - along_B).abs()[worst] > allowed_B[worst]):
                raise self.broken(
                    "a target's score is minus the gradient of its energy",
                    f"{along_B[worst]:.6g} along a direction in which the energy falls by {slope_B[worst]:.6g}",
                    "write the derivative of the energy, or let models.targets.TargetOfEnergy find it",
                )

    def check_symmetries(self, energy_B: Tensor) -> None:
        """Particles of a type are alike, space has no direction, and nothing pulls at the centre of mass."""
        space, x_BD = self.target.space, self.points
        assert space.particles is not None
        x_BNd = x_BD.unflatten(1, (space.particles, space.spatial_dim))
        order = exchanged(space)
        turn_dd = torch.linalg.qr(self.noise(space.spatial_dim, space.spatial_dim, seed=1)).Q
        images = {"permuted": x_BNd[:, order], "rotated": x_BNd @ turn_dd.T, "reflected": x_BNd * mirror(x_BNd)}
        for name, image_BNd in images.items():
            changed = difference(self.call("energy", image_BNd.flatten(1)), energy_B)
            if changed > ROUNDING:
                raise self.broken(
                    "energies of particles stay what they are when these are permuted, rotated or reflected",
                    f"one that changes by {changed:.2g} of its size for {name} ones",
                    "write it by their distances, give Space(types=...), or Space(dim=...) without particles",
                )
        score_BD = self.call("score", x_BD)
        if difference(space.project(score_BD), score_BD) > ROUNDING:
            raise self.broken(
                "forces on particles sum to zero, as their centre of mass is fixed",
                f"a sum of {float((score_BD - space.project(score_BD)).abs().max()):.2g} a particle",
                "write the energy by positions relative to the centre, or Space(dim=...) without particles",
            )

    def check_draws(self) -> None:
        """E[-x . score] is the number of degrees of freedom, by partial integration."""
        target, space = self.target, self.target.space
        assert isinstance(target, SampledTarget)
        try:
            drawn_BD = target.sample(DRAWS, torch.Generator().manual_seed(0)).double()
            space.check(drawn_BD, name="a draw")
        except Exception as error:
            text = "write sample(n, generator) that returns (n, dim) rows, or leave it out"
            raise self.broken(
                "a target that can be sampled draws rows", f"a sample that fails ({error})", text
            ) from error
        if len(drawn_BD) != DRAWS:
            raise self.broken(f"sample({DRAWS}, generator) draws as many", f"{len(drawn_BD)} rows", "return (n, dim)")
        virial_B = -(drawn_BD * self.call("score", drawn_BD)).sum(dim=1)
        mean, deviation = float(virial_B.mean()), float(virial_B.std()) / DRAWS**0.5
        if not abs(mean - space.degrees_of_freedom) <= STANDARD_ERRORS * deviation:
            raise self.broken(
                f"draws of a target fulfil <-x . score> = {space.degrees_of_freedom}",
                f"{mean:.4g} with a standard error of {deviation:.2g}",
                "draw from exp(-energy), or leave sample out: reference samples are then made by HMC",
            )


def failure(error: BaseException) -> str:
    """What went wrong, in one line."""
    return f"fails with {type(error).__name__}: {' '.join(str(error).split())}"


def exchanged(space: Space) -> Tensor:
    """An order of the particles in which those of each type have changed places, (N,)."""
    assert space.particles is not None
    label_N = torch.tensor(space.types or (0,) * space.particles)
    order_N = torch.arange(space.particles)
    for label in label_N.unique():
        alike = (label_N == label).nonzero().flatten()
        order_N[alike] = alike[torch.randperm(len(alike), generator=torch.Generator().manual_seed(0))].roll(1)
    return order_N


def mirror(x_BNd: Tensor) -> Tensor:
    """Signs that turn the first direction of space around."""
    signs_d = torch.ones(x_BNd.shape[-1], dtype=x_BNd.dtype)
    signs_d[0] = -1.0
    return signs_d


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value (of one where all are smaller)."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))
