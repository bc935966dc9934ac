"""A coupling flow: a prior carried to the data by layers that each move half of the coordinates, given the other half.

Its density costs one network pass a layer instead of an integration, which is what annealed importance sampling needs.

Shapes: B batch, D coordinates of the space, K degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from zuko.flows import GeneralCouplingTransform
from zuko.lazy import LazyComposedTransform
from zuko.transforms import MonotonicRQSTransform

from models.contracts import FlowSamples, Space
from models.flows.prior import GaussianPrior

Kind = Literal["spline", "affine"]


class CouplingFlow(nn.Module):
    """x1 = f(x0) with x0 from the prior, f a stack of affine or rational-quadratic spline couplings.

    RealNVP of Dinh et al. 2017, neural spline flow of Durkan et al. 2019, both by zuko. Layers work on coordinates in
    units of the prior's standard deviation, so a target as wide as 40 wants a prior as wide; splines bend within five
    of them. Every layer starts as the identity, the untrained flow as the prior.

    On a mean-free space the layers act on coordinates of an orthonormal basis of the subspace: densities are those on
    the subspace, but the flow is neither permutation nor rotation equivariant.

    Args:
        prior: the base. layers: couplings; consecutive ones move complementary halves. hidden: widths of the network
            in each coupling. kind: of couplings. bins: of a spline.
    """

    def __init__(
        self,
        *,
        prior: GaussianPrior,
        layers: int = 8,
        hidden: tuple[int, ...] = (64, 64),
        kind: Kind = "spline",
        bins: int = 8,
    ) -> None:
        super().__init__()
        coordinates = prior.space.degrees_of_freedom
        _require(coordinates, layers, kind, bins)
        self.prior = prior
        univariate = {
            "spline": {
                "univariate": partial(MonotonicRQSTransform, slope=1e-3),
                "shapes": [(bins,), (bins,), (bins - 1,)],
            },
            "affine": {},
        }[kind]
        # From data to base, zuko's direction: the density is what is asked for most.
        couplings = [
            GeneralCouplingTransform(coordinates, mask=mask_K, hidden_features=hidden, activation=nn.SiLU, **univariate)
            for mask_K in _masks(coordinates, layers)
        ]
        for coupling in couplings:
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
        self.couplings = LazyComposedTransform(*couplings)
        self._basis_DK = subspace_basis(prior.space)

    @property
    def space(self) -> Space:
        return self.prior.space

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> FlowSamples:
        """n draws from the flow with their normalised log densities."""
        return self.push(self.prior.sample(n, generator, like=next(self.parameters())))

    @torch.no_grad()
    def push(self, x0_BD: Tensor) -> FlowSamples:
        """Carry given base points (B, D) to data space. Lengths as in `pull`."""
        self.space.check(x0_BD, name="x0")
        to_base = self.couplings()
        y_BK = to_base.inv(self._coordinates(x0_BD))
        return self._samples(x0_BD, self._points(y_BK), -to_base.call_and_ladj(y_BK)[1])

    @torch.no_grad()
    def pull(self, x1_BD: Tensor) -> FlowSamples:
        """Carry given data points (B, D) back to the base.

        There is no path in between: `length_B` is the distance from x0 to x1, the shortest that a path could be, and
        not to be compared with lengths of continuous flows.
        """
        self.space.check(x1_BD, name="x1")
        z_BK, ladj_B = self.couplings().call_and_ladj(self._coordinates(x1_BD))
        return self._samples(self._points(z_BK), x1_BD, -ladj_B)

    def log_prob(self, x1_BD: Tensor) -> Tensor:
        """Normalised log density (B,) of data points, on the mean-free subspace where there is one.

        Differentiable in x and in the parameters. Points are not checked: NaN in, NaN out.
        """
        z_BK, ladj_B = self.couplings().call_and_ladj(self._coordinates(x1_BD))
        return ladj_B - 0.5 * z_BK.square().sum(dim=1) - self.prior.log_normaliser

    def _coordinates(self, x_BD: Tensor) -> Tensor:
        """In the basis, in units of the prior's standard deviation."""
        return (x_BD if self._basis_DK is None else x_BD @ self._basis_DK.to(x_BD)) / self.prior.std

    def _points(self, z_BK: Tensor) -> Tensor:
        return self.prior.std * (z_BK if self._basis_DK is None else z_BK @ self._basis_DK.to(z_BK).t())

    def _samples(self, x0_BD: Tensor, x1_BD: Tensor, logdet_B: Tensor) -> FlowSamples:
        return FlowSamples(
            x0_BD=x0_BD,
            x1_BD=x1_BD,
            log_q_B=self.prior.log_prob(x0_BD) - logdet_B,
            logdet_B=logdet_B,
            length_B=(x1_BD - x0_BD).norm(dim=1),
        )


def subspace_basis(space: Space) -> Tensor | None:
    """Orthonormal columns (D, K) that span the mean-free subspace, float64; None where the space is all of R^D.

    Column n of each spatial direction sets particle n + 1 against the mean of those before it (Helmert).
    """
    if space.particles is None:
        return None
    helmert = torch.zeros(space.particles, space.particles - 1, dtype=torch.float64)
    for n in range(1, space.particles):
        helmert[:n, n - 1] = 1.0 / math.sqrt(n * (n + 1))
        helmert[n, n - 1] = -n / math.sqrt(n * (n + 1))
    return torch.kron(helmert, torch.eye(space.spatial_dim, dtype=torch.float64))


def _masks(coordinates: int, layers: int) -> Iterator[Tensor]:
    """What each coupling leaves in place: a half, then the other half; another split for every two couplings."""
    for layer in range(layers):
        order_K = torch.randperm(coordinates, generator=torch.Generator().manual_seed(layer // 2))
        half_K = order_K < coordinates // 2
        yield half_K if layer % 2 == 0 else ~half_K


def _require(coordinates: int, layers: int, kind: str, bins: int) -> None:
    if coordinates < 2:
        raise ValueError(f"a coupling needs two degrees of freedom, got {coordinates}; write a space with dim >= 2")
    if layers < 2:
        raise ValueError(f"at least two couplings move every coordinate, got layers={layers}; write layers=8")
    if kind not in ("spline", "affine"):
        raise ValueError(f"couplings are 'spline' or 'affine', got kind={kind!r}; write kind='spline'")
    if bins < 2:
        raise ValueError(f"a spline has at least two bins, got bins={bins}; write bins=8")
