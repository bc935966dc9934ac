"""Responses of an EGNN's coordinates and features to a move of each particle, layer by layer.

Shapes: B batch, N particles, d spatial dimensions, H features, r rays. Among axes i, j, l are particles with an edge
i-j or j-l, k is the particle that is moved and e the coordinate it is moved in: x_Bkeid is the response of x_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.fields.egnn_linear import Edges, Nodes


@dataclass(frozen=True, kw_only=True)
class Tangents:
    """Responses of all particles to a move of particle k along coordinate e.

    Features of another particle i answer along a few rays: the sum over r of change_ki times direction_ki,e. After the
    first layer there is one, along x_i - x_k; from the second on there are d, along the axes.

    Attributes:
        x: of the coordinates. own: of the moved particle's own features.
        direction, change: of the others' features, zero for i = k.
    """

    x_Bkeid: Tensor
    own_BkeH: Tensor
    direction_Bkire: Tensor
    change_BkirH: Tensor

    def dense_BkeiH(self) -> Tensor:
        """The features' responses, all in one tensor."""
        others_BkieH = self.direction_Bkire.mT @ self.change_BkirH
        return others_BkieH.transpose(2, 3) + own_mask(self.own_BkeH) * self.own_BkeH.unsqueeze(3)

    @staticmethod
    def of_dense(x_Bkeid: Tensor, h_BkeiH: Tensor) -> Tangents:
        others_BkeiH = h_BkeiH * (1 - own_mask(h_BkeiH))
        b, n, d = h_BkeiH.shape[:3]
        axes_dd = torch.eye(d, dtype=h_BkeiH.dtype, device=h_BkeiH.device)
        return Tangents(
            x_Bkeid=x_Bkeid,
            own_BkeH=own_response(h_BkeiH),
            direction_Bkire=axes_dd.expand(b, n, n, d, d),
            change_BkirH=others_BkeiH.transpose(2, 3),
        )


def own_response(response_BkeiX: Tensor) -> Tensor:
    """The moved particle's own response, i = k: (B, k, e, X)."""
    return response_BkeiX.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def own_mask(like_Bk: Tensor) -> Tensor:
    """1 where k = i, (k, 1, i, 1)."""
    return torch.eye(like_Bk.shape[1], dtype=like_Bk.dtype, device=like_Bk.device)[:, None, :, None]


def with_own(block_Bikde: Tensor) -> Tensor:
    """All responses (B, k, e, i, d) from minus d x_i / d x_k of all pairs: moving all alike changes nothing."""
    own_Beid = block_Bikde.sum(dim=2).permute(0, 3, 1, 2)
    return own_mask(block_Bikde) * own_Beid.unsqueeze(1) - block_Bikde.permute(0, 2, 4, 1, 3)


def pair_blocks(edge: Edges, slope_BNN: Tensor) -> Tensor:
    """d (weight_ij (x_i - x_j)) / d x_i for a slope d weight / d squared distance, (B, N, N, d, d)."""
    eye_dd = torch.eye(edge.difference_BNNd.shape[-1], dtype=slope_BNN.dtype, device=slope_BNN.device)
    outer_BNNdd = edge.difference_BNNd.unsqueeze(-1) * edge.difference_BNNd.unsqueeze(-2)
    return edge.weight_BNN[..., None, None] * eye_dd + 2 * slope_BNN[..., None, None] * outer_BNNdd


# The first layer: constant features, one scalar an edge


def one_scalar(edge: Edges) -> tuple[Tensor, Tensor]:
    """dm/dr (B, N, N, H) of an edge whose two distances are the same, and d weight / dr (B, N, N)."""
    _, _, current_H, start_H = edge.columns
    message_BNNH = edge.response_to(current_H + start_H)
    strength_BNN = (edge.ask_BNNH * message_BNNH).sum(-1)
    return message_BNNH, strength_BNN * edge.inverse_BNN + edge.strength_BNN * edge.fall_BNN


def trace_of_one_layer(edge: Edges) -> Tensor:
    """The trace of d x / d x after a layer that is first and last, (B,)."""
    _, slope_BNN = one_scalar(edge)
    particles, d = edge.difference_BNNd.shape[1], edge.difference_BNNd.shape[-1]
    squared_BNN = edge.difference_BNNd.square().sum(-1)
    return particles * d + (d * edge.weight_BNN + 2 * slope_BNN * squared_BNN).sum(dim=(1, 2))


def first_tangents(edge: Edges, node: Nodes) -> Tangents:
    """Responses after the first layer: rank one for every pair."""
    message_BikH, slope_BNN = one_scalar(edge)
    x_Bkeid = identity_like(slope_BNN, edge.difference_BNNd) + with_own(pair_blocks(edge, slope_BNN))
    change_BikH = 2 * node.push(message_BikH)
    return Tangents(
        x_Bkeid=x_Bkeid,
        own_BkeH=edge.difference_BNNd.mT @ change_BikH,
        direction_Bkire=-edge.difference_BNNd.transpose(1, 2).unsqueeze(3),
        change_BkirH=change_BikH.transpose(1, 2).unsqueeze(3),
    )


def identity_like(slope_BNN: Tensor, difference_BNNd: Tensor) -> Tensor:
    """d x_i / d x_k of the input, (1, k, e, i, d)."""
    n, d = slope_BNN.shape[1], difference_BNNd.shape[-1]
    return torch.eye(n * d, dtype=slope_BNN.dtype, device=slope_BNN.device).view(1, n, d, n, d)


# Later layers


def moved(edge: Edges, tangents: Tangents, start_BNNd: Tensor) -> Tensor:
    """Responses of the coordinates after a layer, (B, k, e, i, d).

    Args:
        start_BNNd: differences of the coordinates at the network's input.
    """
    own_HH, neighbour_HH, current_H, start_H = edge.columns
    wanted_BijH = edge.pull(edge.ask_BNNH)
    slope_BNN = (wanted_BijH @ current_H) * edge.inverse_BNN + edge.strength_BNN * edge.fall_BNN
    through_BPP = with_own(pair_blocks(edge, slope_BNN)).flatten(3).flatten(1, 2)
    x_BPP = tangents.x_Bkeid.flatten(3).flatten(1, 2)
    carried_Bkeid = (x_BPP + x_BPP @ through_BPP).view_as(tangents.x_Bkeid)
    start_BNNd1 = 2 * (start_BNNd * (wanted_BijH @ start_H).unsqueeze(-1)).unsqueeze(-2)
    started_Bkeid = with_own(edge.pull_BNNd.unsqueeze(-1) * start_BNNd1)
    by_own_Bkeid = moved_by_own_features(edge, tangents, wanted_BijH @ own_HH)
    by_neighbour_Bkeid = moved_by_neighbours_features(edge, tangents, wanted_BijH @ neighbour_HH)
    return carried_Bkeid + started_Bkeid + by_own_Bkeid + by_neighbour_Bkeid


def moved_by_own_features(edge: Edges, tangents: Tangents, wanted_BijH: Tensor) -> Tensor:
    """Response of x_i to that of h_i, (B, k, e, i, d); `wanted` is d strength_ij / d h_i."""
    force_BiHd = wanted_BijH.mT @ edge.pull_BNNd
    own_Bked = tangents.own_BkeH @ force_BiHd
    rays_Bikrd = (tangents.change_BkirH.transpose(1, 2).flatten(2, 3) @ force_BiHd).unflatten(
        2, (own_Bked.shape[1], -1)
    )
    others_Bkeid = (tangents.direction_Bkire.unsqueeze(-1) * rays_Bikrd.transpose(1, 2).unsqueeze(-2)).sum(3)
    return others_Bkeid.transpose(2, 3) + own_mask(own_Bked) * own_Bked.unsqueeze(3)


def moved_by_neighbours_features(edge: Edges, tangents: Tangents, wanted_BijH: Tensor) -> Tensor:
    """Response of x_i to that of h_j, (B, k, e, i, d); `wanted` is d strength_ij / d h_j."""
    b, n, d = edge.difference_BNNd.shape[0], edge.difference_BNNd.shape[1], edge.difference_BNNd.shape[-1]
    wanted_BjiH = wanted_BijH.transpose(1, 2)
    rays_Bjikr = (wanted_BjiH @ tangents.change_BkirH.transpose(1, 2).flatten(2, 3).mT).unflatten(3, (n, -1))
    along_Bjike = (rays_Bjikr.unsqueeze(-1) * tangents.direction_Bkire.transpose(1, 2).unsqueeze(2)).sum(4)
    along_BijP = along_Bjike.transpose(1, 2).flatten(3)
    others_BPid = (along_BijP.mT @ edge.pull_BNNd).transpose(1, 2)
    own_Bkei = tangents.own_BkeH @ wanted_BjiH.mT
    own_Bkeid = own_Bkei.unsqueeze(-1) * edge.pull_BNNd.transpose(1, 2).unsqueeze(2)
    return others_BPid.reshape(b, n, d, n, d) + own_Bkeid


def middle_tangents(edge: Edges, node: Nodes, tangents: Tangents, start_BNNd: Tensor) -> Tangents:
    """Responses after a layer that is neither the first nor one of the last two."""
    own_HH, neighbour_HH, _, _ = edge.columns
    h_BPiH = tangents.dense_BkeiH().flatten(1, 2)
    b, p, n, width = h_BPiH.shape
    # All message Jacobians, (B, i, H, j, H): one product with the neighbours' features serves every tangent.
    left_BiHj = edge.gated_BNNH.transpose(2, 3)
    jacobian_BiHjH = left_BiHj.unsqueeze(-1) * edge.layer.e2.weight.unsqueeze(1) * edge.first_BNNH.unsqueeze(2)
    jacobian_BiHjH = jacobian_BiHjH + edge.seen_BNNH.transpose(2, 3).unsqueeze(-1) * edge.row_BNNH.unsqueeze(2)
    neighbours_BPN = (h_BPiH @ neighbour_HH.t()).flatten(2)
    gathered_BPiH = (neighbours_BPN @ jacobian_BiHjH.flatten(3).flatten(1, 2).mT).view(b, p, n, width)
    h_BiPH = h_BPiH.transpose(1, 2)
    own_BiPH = (h_BiPH @ own_HH.t()) @ edge.summed_BNHH.mT
    current_BiPH = squared_change(edge, tangents.x_Bkeid) @ edge.to_current_BNNH
    start_BiPH = start_change(start_BNNd) @ edge.to_start_BNNH
    h_BiPH = h_BiPH + node.push(gathered_BPiH.transpose(1, 2) + own_BiPH + current_BiPH + start_BiPH, h_BiPH)
    h_BkeiH = h_BiPH.transpose(1, 2).reshape(*tangents.own_BkeH.shape[:3], n, width)
    return Tangents.of_dense(moved(edge, tangents, start_BNNd), h_BkeiH)


def squared_change(edge: Edges, x_Bkeid: Tensor) -> Tensor:
    """Change of every squared distance, (B, i, P, j) with P = (k, e)."""
    x_BiPd = x_Bkeid.flatten(1, 2).transpose(1, 2)
    by_i = x_BiPd @ edge.difference_BNNd.mT
    by_j = x_BiPd @ edge.difference_BNNd.transpose(1, 2).mT
    return 2 * (by_i - by_j.transpose(1, 3))


def start_change(start_BNNd: Tensor) -> Tensor:
    """Change of every squared distance at the input, (B, i, P, j): 2 (x_i - x_j)_e, with a sign, where k is i or j."""
    eye_NN = torch.eye(start_BNNd.shape[1], dtype=start_BNNd.dtype, device=start_BNNd.device)
    sign_ikj = eye_NN.unsqueeze(2) - eye_NN.unsqueeze(0)
    change_Bikej = 2 * sign_ikj.unsqueeze(2) * start_BNNd.permute(0, 1, 3, 2).unsqueeze(2)
    return change_Bikej.flatten(2, 3)
