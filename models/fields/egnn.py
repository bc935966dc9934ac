"""An E(d)-equivariant graph network as a vector field on N particles, with its exact divergence.

Shapes: B batch, N particles, M = N - 1 neighbours of each, d spatial dimensions, D = N d, H features.
Neighbour m of particle i is particle i + 1 + m, counted cyclically, so no pair of a particle with itself is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.fields.egnn_linear import DISTANCE_SOFTENING
from models.fields.egnn_trace import in_structured_form
from models.fields.sweeps import by_sweeps

STRUCTURED_FROM = 4
"""Particles from which on the structured divergence is cheaper than one sweep a coordinate."""


class EGNNLayer(nn.Module):
    """One message-passing layer on all ordered pairs of particles (Klein et al. 2023).

    Parameters by role: e1, e2 message network; att its gate; c1, c2 coordinate network; n1, n2 feature network.
    """

    def __init__(self, hidden: int, coordinate_range: float, *, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.hidden = hidden
        self.coordinate_range = coordinate_range
        self.e1 = nn.Linear(2 * hidden + 2, hidden)
        self.e2 = nn.Linear(hidden, hidden)
        self.att = nn.Linear(hidden, 1)
        self.c1 = nn.Linear(hidden, hidden)
        self.c2 = nn.Linear(hidden, 1, bias=False)
        self.n1 = nn.Linear(2 * hidden, hidden)
        self.n2 = nn.Linear(hidden, hidden)
        # A field that starts near zero: the flow starts as the identity.
        nn.init.xavier_uniform_(self.c2.weight, gain=0.001)

    def forward(self, x_BNd: Tensor, h_BNH: Tensor, start_BNM: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (B, N, d) and features (B, N, H) after the layer; `start` are squared distances at the input."""
        difference_BNMd, squared_BNM = pair_differences(x_BNd)
        message_BNMH = self._messages(h_BNH, squared_BNM, start_BNM)
        message_BNMH = torch.sigmoid(self.att(message_BNMH)) * message_BNMH
        x_BNd = x_BNd + self._displacement(message_BNMH, difference_BNMd, squared_BNM)
        # Nothing reads the features that leave the last layer.
        return x_BNd, (h_BNH if self.is_last else h_BNH + self._feature_update(h_BNH, message_BNMH))

    def _messages(self, h_BNH: Tensor, squared_BNM: Tensor, start_BNM: Tensor) -> Tensor:
        # e1 acts on [h_i, h_j, r_ij, r0_ij]; nodes are projected before they are paired, which avoids that large copy.
        width = self.hidden
        weight = self.e1.weight
        own_BNH = functional.linear(h_BNH, weight[:, :width], self.e1.bias)
        neighbour_BNH = functional.linear(h_BNH, weight[:, width : 2 * width])
        edge_BNMH = functional.linear(torch.stack([squared_BNM, start_BNM], dim=-1), weight[:, 2 * width :])
        first_BNMH = functional.silu(edge_BNMH + own_BNH.unsqueeze(2) + neighbours(neighbour_BNH))
        return functional.silu(self.e2(first_BNMH))

    def _displacement(self, message_BNMH: Tensor, difference_BNMd: Tensor, squared_BNM: Tensor) -> Tensor:
        strength_BNM = torch.tanh(self.c2(functional.silu(self.c1(message_BNMH)))).squeeze(-1) * self.coordinate_range
        weight_BNM = strength_BNM / (torch.sqrt(squared_BNM + DISTANCE_SOFTENING) + 1.0)
        return (weight_BNM.unsqueeze(-1) * difference_BNMd).sum(dim=2)

    def _feature_update(self, h_BNH: Tensor, message_BNMH: Tensor) -> Tensor:
        return self.n2(functional.silu(self.n1(torch.cat([h_BNH, message_BNMH.sum(dim=2)], dim=-1))))


class EGNN(nn.Module):
    """v(t, x): rotation-, reflection- and permutation-equivariant, translation-invariant, mean-free.

    With the defaults of Klein et al. 2023 it has their number of parameters: 22,468 for (4, 2, 32, 3) and
    (13, 3, 32, 3), 146,438 for (55, 3, 64, 5). `emb_out` and the last layer's n1, n2 never reach the velocity; they are
    kept because published counts and checkpoints contain them, and their gradient is None.

    Args:
        particles, spatial_dim: N and d. hidden, layers: width H and depth.
        types: one label per particle (equal labels may be exchanged), or None where all are alike.
        coords_range: bound on the sum over layers of one pair's displacement, in length units.
    """

    types_NC: Tensor

    def __init__(
        self,
        particles: int,
        spatial_dim: int,
        hidden: int = 32,
        layers: int = 3,
        types: tuple[int, ...] | None = None,
        coords_range: float = 15.0,
    ) -> None:
        super().__init__()
        if particles < 2 or min(spatial_dim, hidden, layers) < 1:
            raise ValueError(
                f"an EGNN needs two particles and positive sizes, got {particles=}, {spatial_dim=}, {hidden=}, "
                f"{layers=}; write particles >= 2 and at least 1 for the others"
            )
        if types is not None and (len(types) != particles or min(types) < 0):
            raise ValueError(
                f"types must hold one label >= 0 for each of {particles} particles, got {types}; fix types"
            )
        self.particles, self.spatial_dim, self.hidden = particles, spatial_dim, hidden
        one_hot_NC = torch.zeros(particles, 0) if types is None else functional.one_hot(torch.tensor(types)).float()
        self.register_buffer("types_NC", one_hot_NC, persistent=False)
        features = one_hot_NC.shape[1] + 1
        self.emb = nn.Linear(features, hidden)
        self.emb_out = nn.Linear(hidden, features)
        self.layers = nn.ModuleList(
            EGNNLayer(hidden, coords_range / layers, is_last=layer == layers - 1) for layer in range(layers)
        )

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """t: scalar or (B,), x: (B, N d) -> mean-free velocity (B, N d)."""
        x_BNd = start_BNd = x_BD.unflatten(1, (self.particles, self.spatial_dim))
        h_BNH = self.initial_features(t, x_BD)
        squared_BNM = pair_differences(x_BNd)[1]
        for layer in self.layers:
            x_BNd, h_BNH = layer(x_BNd, h_BNH, squared_BNM)
        v_BNd = x_BNd - start_BNd
        return (v_BNd - v_BNd.mean(dim=1, keepdim=True)).flatten(1)

    def with_divergence(self, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, D) and exact trace of dv/dx (B,); differentiable, or graph-free where gradients are off.

        In structured form where that is cheaper, else by one sweep a coordinate; both agree to rounding.
        """
        if self.particles >= STRUCTURED_FROM:
            return in_structured_form(self, t, x_BD)
        return by_sweeps(self, t, x_BD)

    def blocks(self) -> list[EGNNLayer]:
        """The layers in order."""
        return [layer for layer in self.layers if isinstance(layer, EGNNLayer)]

    def initial_features(self, t: Tensor, x_BD: Tensor) -> Tensor:
        time_BN1 = t.to(x_BD.dtype).reshape(-1, 1, 1).expand(len(x_BD), self.particles, 1)
        types_BNC = self.types_NC.to(x_BD.dtype).expand(len(x_BD), -1, -1)
        return self.emb(torch.cat([types_BNC, time_BN1], dim=-1))


def neighbours(values_BNF: Tensor) -> Tensor:
    """Each particle's neighbours' values, (B, N, F) -> (B, N, N - 1, F), as a view into the cyclic sequence."""
    particles = values_BNF.shape[1]
    cycle_BCF = torch.cat([values_BNF[:, 1:], values_BNF[:, :-1]], dim=1)
    return cycle_BCF.unfold(1, particles - 1, 1).transpose(2, 3)


def pair_differences(x_BNd: Tensor) -> tuple[Tensor, Tensor]:
    """x_i - x_j (B, N, N - 1, d) and their squared lengths (B, N, N - 1)."""
    difference_BNMd = x_BNd.unsqueeze(2) - neighbours(x_BNd)
    return difference_BNMd, difference_BNMd.square().sum(dim=-1)
