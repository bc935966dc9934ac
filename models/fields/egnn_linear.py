"""An EGNN layer on all pairs with its derivatives in closed form: what the structured divergence is made of.

A message depends on its edge alone, so its Jacobian M = dm/dz (z: input of the message network's first activation) is
the product of a few diagonals, one weight matrix and the rank-one part that attention adds.

Shapes: B batch, N particles, d spatial dimensions, H features, X tangents of one particle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from models.fields.egnn import EGNNLayer

DISTANCE_SOFTENING = 1e-8
"""Added under the square root of a distance, in squared length units: keeps its derivative finite at contact."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """A layer's feature update, linearised: dh' = dh + push(own(dh) + gathered(sum of dm))."""

    slope_BNH: Tensor
    own_HH: Tensor
    gathered_HH: Tensor
    out_HH: Tensor

    def push(self, gathered_BNXH: Tensor, own_BNXH: Tensor | None = None) -> Tensor:
        """Change of h_i, without its residual part, (B, N, X, H)."""
        inner = functional.linear(gathered_BNXH, self.gathered_HH)
        if own_BNXH is not None:
            inner = inner + functional.linear(own_BNXH, self.own_HH)
        return functional.linear(inner * self.slope_BNH.unsqueeze(2), self.out_HH)

    def pull(self, y_BNXH: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose of `push`: sensitivities to the gathered messages and to h_i itself."""
        inner = (y_BNXH @ self.out_HH) * self.slope_BNH.unsqueeze(2)
        return inner @ self.gathered_HH, inner @ self.own_HH


@dataclass(frozen=True, kw_only=True)
class Edges:
    """One layer on all ordered pairs, with what its derivatives need.

    Attributes:
        difference: x_i - x_j. inverse: 1 / (distance + 1). fall: d inverse / d squared distance.
        strength: the coordinate network's value. weight: strength * inverse, zero for i = j.
        first, second: slopes of the message network's two activations. gate: attention, zero for i = j.
        message: m before its gate. ask: d strength / d message.
    """

    layer: EGNNLayer
    difference_BNNd: Tensor
    inverse_BNN: Tensor
    fall_BNN: Tensor
    strength_BNN: Tensor
    weight_BNN: Tensor
    first_BNNH: Tensor
    second_BNNH: Tensor
    gate_BNN1: Tensor
    message_BNNH: Tensor
    ask_BNNH: Tensor

    def response(self, dz: Tensor) -> Tensor:
        """M dz: change of every message, (B, N, N, H), or (B, N, N, X, H) for X tangents an edge."""
        first, second, gate, seen = self.first_BNNH, self.second_BNNH, self.gate_BNN1, self.seen_BNNH
        if dz.ndim == 5:
            first, second, gate, seen = (each.unsqueeze(3) for each in (first, second, gate, seen))
        return self._gated(functional.linear(dz * first, self.layer.e2.weight) * second, gate, seen)

    def response_to(self, weight_H: Tensor) -> Tensor:
        """M w for one direction w that all edges share, (B, N, N, H)."""
        inner_BNNH = functional.linear(self.first_BNNH, self.layer.e2.weight * weight_H) * self.second_BNNH
        return self._gated(inner_BNNH, self.gate_BNN1, self.seen_BNNH)

    def _gated(self, inner: Tensor, gate: Tensor, seen: Tensor) -> Tensor:
        return torch.addcmul(gate * inner, seen, functional.linear(inner, self.layer.att.weight))

    def pull(self, y_BNNH: Tensor) -> Tensor:
        """M^T y for one sensitivity an edge."""
        logit_BNN1 = (self.seen_BNNH * y_BNNH).sum(-1, keepdim=True)
        inner_BNNH = torch.addcmul(self.gate_BNN1 * y_BNNH, logit_BNN1, self.layer.att.weight) * self.second_BNNH
        return (inner_BNNH @ self.layer.e2.weight) * self.first_BNNH

    @cached_property
    def seen_BNNH(self) -> Tensor:
        """d message / d attention logit."""
        return (self.gate_BNN1 - self.gate_BNN1.square()) * self.message_BNNH

    @cached_property
    def row_BNNH(self) -> Tensor:
        """d attention logit / d z."""
        return (self.second_BNNH @ (self.layer.att.weight.t() * self.layer.e2.weight)) * self.first_BNNH

    @cached_property
    def gated_BNNH(self) -> Tensor:
        """Slope of the message network's second activation, times attention."""
        return self.gate_BNN1 * self.second_BNNH

    @cached_property
    def summed_BNHH(self) -> Tensor:
        """The Jacobians of all messages that a particle gathers, summed."""
        return torch.addcmul(
            self.seen_BNNH.mT @ self.row_BNNH, self.layer.e2.weight, self.gated_BNNH.mT @ self.first_BNNH
        )

    @cached_property
    def to_current_BNNH(self) -> Tensor:
        """Change of a message with its squared distance."""
        return self.response_to(self.columns[2])

    @cached_property
    def to_start_BNNH(self) -> Tensor:
        """Change of a message with its squared distance at the network's input."""
        return self.response_to(self.columns[3])

    @cached_property
    def pull_BNNd(self) -> Tensor:
        """Displacement of i for a unit change of the strength of its edge with j: (x_i - x_j) / (distance + 1)."""
        return self.difference_BNNd * self.inverse_BNN.unsqueeze(-1)

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The message network's first weights by what they act on: h_i, h_j (H, H), r_ij, r0_ij (H,)."""
        weight, width = self.layer.e1.weight, self.layer.hidden
        return weight[:, :width], weight[:, width : 2 * width], weight[:, 2 * width], weight[:, 2 * width + 1]


def linearise(
    layer: EGNNLayer, x_BNd: Tensor, h_BNH: Tensor, start_BNN: Tensor
) -> tuple[Edges, Nodes | None, Tensor, Tensor]:
    """A layer's derivatives, and coordinates and features after it (features and their derivative but for the last)."""
    others_NN = 1 - torch.eye(x_BNd.shape[1], dtype=x_BNd.dtype, device=x_BNd.device)
    difference_BNNd = x_BNd.unsqueeze(2) - x_BNd.unsqueeze(1)
    squared_BNN = difference_BNNd.square().sum(-1)
    width = layer.hidden
    own_BNH = functional.linear(h_BNH, layer.e1.weight[:, :width], layer.e1.bias)
    neighbour_BNH = functional.linear(h_BNH, layer.e1.weight[:, width : 2 * width])
    pair_BNNH = functional.linear(torch.stack([squared_BNN, start_BNN], dim=-1), layer.e1.weight[:, 2 * width :])
    inner_BNNH, first_BNNH = silu_with_slope(pair_BNNH + own_BNH.unsqueeze(2) + neighbour_BNH.unsqueeze(1))
    message_BNNH, second_BNNH = silu_with_slope(layer.e2(inner_BNNH))
    gate_BNN1 = torch.sigmoid(layer.att(message_BNNH)) * others_NN.unsqueeze(-1)
    gated_BNNH = gate_BNN1 * message_BNNH
    active_BNNH, slope_BNNH = silu_with_slope(layer.c1(gated_BNNH))
    bounded_BNN1 = torch.tanh(layer.c2(active_BNNH))
    strength_BNN = layer.coordinate_range * bounded_BNN1.squeeze(-1)
    ask_BNNH = (
        layer.coordinate_range * (1 - bounded_BNN1.square()) * (slope_BNNH @ (layer.c2.weight.t() * layer.c1.weight))
    )
    distance_BNN = torch.sqrt(squared_BNN + DISTANCE_SOFTENING)
    inverse_BNN = 1 / (distance_BNN + 1)
    weight_BNN = strength_BNN * inverse_BNN * others_NN
    edges = Edges(
        layer=layer,
        difference_BNNd=difference_BNNd,
        inverse_BNN=inverse_BNN,
        fall_BNN=-inverse_BNN.square() / (2 * distance_BNN),
        strength_BNN=strength_BNN,
        weight_BNN=weight_BNN,
        first_BNNH=first_BNNH,
        second_BNNH=second_BNNH,
        gate_BNN1=gate_BNN1,
        message_BNNH=message_BNNH,
        ask_BNNH=ask_BNNH,
    )
    x_BNd = x_BNd + (weight_BNN.unsqueeze(-1) * difference_BNNd).sum(dim=2)
    if layer.is_last:
        return edges, None, x_BNd, h_BNH
    inner_BNH, slope_BNH = silu_with_slope(layer.n1(torch.cat([h_BNH, gated_BNNH.sum(dim=2)], dim=-1)))
    nodes = Nodes(
        slope_BNH=slope_BNH,
        own_HH=layer.n1.weight[:, :width],
        gathered_HH=layer.n1.weight[:, width:],
        out_HH=layer.n2.weight,
    )
    return edges, nodes, x_BNd, h_BNH + layer.n2(inner_BNH)


def silu_with_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    sigmoid = torch.sigmoid(z)
    value = z * sigmoid
    return value, torch.addcmul(sigmoid + value, value, sigmoid, value=-1)
