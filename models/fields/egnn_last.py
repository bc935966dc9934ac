"""The last two layers of an EGNN, as far as the trace of its Jacobian sees them.

Only particle k's displacement under a move of particle k counts. So what the last layer asks of a neighbour's features
is one vector a pair (k, j), which is pulled back through the layer before it and meets the tangents there.

Shapes: B batch, N particles, d spatial dimensions, H features, r rays. Among axes i, j, l are particles with an edge
i-j or j-l, k is the particle that is moved and e the coordinate it is moved in: x_Bkeid is the response of x_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.fields.egnn_linear import Edges, Nodes
from models.fields.egnn_tangents import Tangents, own_response


@dataclass(frozen=True, kw_only=True)
class Last:
    """What the trace asks of everything before the last layer. A pair (k, j) stands for the moved particle's edge.

    Attributes:
        direction: (x_k - x_j) / (distance + 1), along which a change of strength displaces k.
        of_own, of_neighbour: d strength / d h_k and d strength / d h_j.
        of_squared, of_start: d strength / d r_kj and d strength / d r0_kj.
    """

    edge: Edges
    direction_Bkje: Tensor
    of_own_BkjH: Tensor
    of_neighbour_BkjH: Tensor
    of_squared_Bkj: Tensor
    of_start_Bkj: Tensor

    @staticmethod
    def of(edge: Edges) -> Last:
        own_HH, neighbour_HH, current_H, start_H = edge.columns
        wanted_BNNH = edge.pull(edge.ask_BNNH)
        return Last(
            edge=edge,
            direction_Bkje=edge.pull_BNNd,
            of_own_BkjH=wanted_BNNH @ own_HH,
            of_neighbour_BkjH=wanted_BNNH @ neighbour_HH,
            of_squared_Bkj=wanted_BNNH @ current_H,
            of_start_Bkj=wanted_BNNH @ start_H,
        )

    @property
    def own_BkeH(self) -> Tensor:
        """d trace / d h_k of the moved particle, for every direction of the move."""
        return self.direction_Bkje.mT @ self.of_own_BkjH

    def asked_of_positions(self, x_Bkeid: Tensor, start_BNNd: Tensor) -> Tensor:
        """The trace as far as it goes through coordinates, (B,)."""
        edge = self.edge
        own_Bked = own_response(x_Bkeid)
        relative_Bkejd = own_Bked.unsqueeze(3) - x_Bkeid
        diagonal_Bke = own_Bked.diagonal(dim1=2, dim2=3)
        parallel_Bkej = relative_Bkejd.diagonal(dim1=2, dim2=4)  # (B, k, j, e)
        along_Bkej = (edge.difference_BNNd.unsqueeze(2) * relative_Bkejd).sum(-1)
        turned_Bkj = (along_Bkej.transpose(2, 3) * edge.difference_BNNd).sum(-1)
        slope_Bkj = self.of_squared_Bkj * edge.inverse_BNN + edge.strength_BNN * edge.fall_BNN
        start_Bkj = self.of_start_Bkj * (self.direction_Bkje * start_BNNd).sum(-1)
        pairs_Bkj = edge.weight_BNN * parallel_Bkej.sum(-1) + 2 * (slope_Bkj * turned_Bkj + start_Bkj)
        return diagonal_Bke.sum(dim=(1, 2)) + pairs_Bkj.sum(dim=(1, 2))

    def asked_of_features(self, tangents: Tangents) -> Tensor:
        """The trace as far as it goes through features whose responses are known, (B,)."""
        own_B = (self.own_BkeH * tangents.own_BkeH).sum(dim=(1, 2, 3))
        return own_B + (self.of_neighbour_BkjH * along(self.direction_Bkje, tangents)).sum(dim=(1, 2, 3))

    def asked_through(self, before: Edges, node: Nodes, tangents: Tangents, start_BNNd: Tensor) -> Tensor:
        """The same through the features that `before` and `node` make of given tangents, (B,)."""
        neighbour_BklrH = functional.linear(tangents.change_BkirH, before.columns[1])
        own_BkeH = own_after(before, node, tangents, neighbour_BklrH, start_BNNd)
        own_B = (self.own_BkeH * own_BkeH).sum(dim=(1, 2, 3))
        return own_B + Asked.of(self, node).total(before, tangents, neighbour_BklrH, start_BNNd)


def along(direction_Bkje: Tensor, tangents: Tangents) -> Tensor:
    """Response of h_j, j not k, to a move of k along the direction of the pair, (B, k, j, H)."""
    steer_Bkj1r = direction_Bkje.unsqueeze(3) @ tangents.direction_Bkire.mT
    return (steer_Bkj1r @ tangents.change_BkirH).squeeze(3)


def own_after(edge: Edges, node: Nodes, tangents: Tangents, neighbour_BklrH: Tensor, start_BNNd: Tensor) -> Tensor:
    """The moved particle's own response of features after a layer, (B, k, e, H)."""
    relative_Bkeld = own_response(tangents.x_Bkeid).unsqueeze(3) - tangents.x_Bkeid
    squared_Bkel = 2 * (edge.difference_BNNd.unsqueeze(2) * relative_Bkeld).sum(-1)
    gathered_BkeH = functional.linear(tangents.own_BkeH, edge.columns[0]) @ edge.summed_BNHH.mT
    gathered_BkeH = gathered_BkeH + squared_Bkel @ edge.to_current_BNNH
    gathered_BkeH = gathered_BkeH + 2 * start_BNNd.mT @ edge.to_start_BNNH
    rays_BkeX = tangents.direction_Bkire.flatten(2, 3).mT
    gathered_BkeH = gathered_BkeH + rays_BkeX @ edge.response(neighbour_BklrH).flatten(2, 3)
    return tangents.own_BkeH + node.push(gathered_BkeH, tangents.own_BkeH)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the last layer asks of its neighbours j, pulled back through their feature update: one vector a pair.

    Attributes:
        of_messages: of the sum of messages that j gathers. of_features: of h_j before the update.
    """

    direction_Bkje: Tensor
    of_messages_BjkH: Tensor
    of_features_BjkH: Tensor

    @staticmethod
    def of(last: Last, node: Nodes) -> Asked:
        asked_BjkH = last.of_neighbour_BkjH.transpose(1, 2)
        of_messages_BjkH, through_BjkH = node.pull(asked_BjkH)
        return Asked(
            direction_Bkje=last.direction_Bkje,
            of_messages_BjkH=of_messages_BjkH,
            of_features_BjkH=asked_BjkH + through_BjkH,
        )

    def total(self, edge: Edges, tangents: Tangents, neighbour_BklrH: Tensor, start_BNNd: Tensor) -> Tensor:
        """Everything that is asked, answered by the tangents before `edge`, (B,)."""
        along_BjkH = along(self.direction_Bkje, tangents).transpose(1, 2)
        steer_Bkljr = self.direction_Bkje.unsqueeze(2) @ tangents.direction_Bkire.mT
        carried_B = (self.of_features_BjkH * along_BjkH).sum(dim=(1, 2, 3))
        return (
            carried_B
            + self._by_own(edge, along_BjkH)
            + self._by_moved(edge, tangents.own_BkeH)
            + self._by_distances(edge, tangents.x_Bkeid, start_BNNd)
            + self._by_gates(edge, neighbour_BklrH, steer_Bkljr)
            + self._by_messages(edge, neighbour_BklrH, steer_Bkljr)
        )

    def _by_own(self, edge: Edges, along_BjkH: Tensor) -> Tensor:
        """Through h_j in the messages that j gathers: their Jacobians are summed before they are applied."""
        by_own_BjkH = self.of_messages_BjkH @ edge.summed_BNHH
        return (by_own_BjkH * functional.linear(along_BjkH, edge.columns[0])).sum(dim=(1, 2, 3))

    def _by_moved(self, edge: Edges, own_BkeH: Tensor) -> Tensor:
        """Through h_k in the message of edge j-k."""
        asked_BkjH = (edge.pull(self.of_messages_BjkH) @ edge.columns[1]).transpose(1, 2)
        return (asked_BkjH * (self.direction_Bkje @ own_BkeH)).sum(dim=(1, 2, 3))

    def _by_distances(self, edge: Edges, x_Bkeid: Tensor, start_BNNd: Tensor) -> Tensor:
        """Through the two distances of edge j-l."""
        asked_Bjkl = self.of_messages_BjkH @ edge.to_current_BNNH.mT
        n = x_Bkeid.shape[1]
        x_Bjkld = (self.direction_Bkje @ x_Bkeid.flatten(3)).unflatten(3, (n, -1)).transpose(1, 2)
        own_Bjk1d = x_Bjkld.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).unsqueeze(3)
        squared_Bjkl = 2 * ((own_Bjk1d - x_Bjkld) * edge.difference_BNNd.unsqueeze(2)).sum(-1)
        asked_Bjk = (self.of_messages_BjkH * edge.to_start_BNNH).sum(-1)
        start_Bjk = -2 * (start_BNNd * self.direction_Bkje.transpose(1, 2)).sum(-1)
        return (asked_Bjkl * squared_Bjkl).sum(dim=(1, 2, 3)) + (asked_Bjk * start_Bjk).sum(dim=(1, 2))

    def _by_gates(self, edge: Edges, neighbour_BklrH: Tensor, steer_Bkljr: Tensor) -> Tensor:
        """Through h_l, l not k, in the attention of edge j-l."""
        asked_Bjkl = self.of_messages_BjkH @ edge.seen_BNNH.mT
        n = asked_Bjkl.shape[1]
        change_BljX = edge.row_BNNH.transpose(1, 2) @ neighbour_BklrH.transpose(1, 2).flatten(2, 3).mT
        change_Blkj = (change_BljX.unflatten(3, (n, -1)).transpose(2, 3) * steer_Bkljr.transpose(1, 2)).sum(-1)
        return (asked_Bjkl * change_Blkj.permute(0, 3, 2, 1)).sum(dim=(1, 2, 3))

    def _by_messages(self, edge: Edges, neighbour_BklrH: Tensor, steer_Bkljr: Tensor) -> Tensor:
        """Through h_l, l not k, in the message of edge j-l at a given attention: the one term with every triple.

        One moved particle at a time, so that what is made for all pairs (l, j) stays in a core's cache.
        """
        second_BljH = edge.gated_BNNH.transpose(1, 2).contiguous()
        first_BljH = edge.first_BNNH.transpose(1, 2).contiguous()
        moves = zip(self.of_messages_BjkH.unbind(2), neighbour_BklrH.unbind(1), steer_Bkljr.unbind(1), strict=True)
        total_B = torch.zeros_like(second_BljH[:, 0, 0, 0])
        for asked_BjH, change_BlrH, steer_Bljr in moves:
            pulled_BljH = functional.linear(second_BljH * asked_BjH.unsqueeze(1), edge.layer.e2.weight.t()) * first_BljH
            total_B = total_B + (pulled_BljH @ change_BlrH.mT * steer_Bljr).sum(dim=(1, 2, 3))
        return total_B
