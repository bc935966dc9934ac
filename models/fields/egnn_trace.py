"""The exact divergence of an EGNN in structured form: a few field evaluations instead of one sweep a coordinate.

Three facts make the trace cheap. Before the first layer the features are constant: every edge depends on one scalar,
its squared distance. Between, the features' tangents need one matrix product a layer. At the end, only the moved
particle's own displacement counts. Everything is differentiable: gradients of the divergence come from one reverse
sweep.

Shapes: B batch, N particles, d spatial dimensions, H features. Among axes i, j, l are particles with an edge i-j or
j-l, k is the particle that is moved and e the coordinate it is moved in: x_Bkeid is the response of x_i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.fields.egnn_last import Last
from models.fields.egnn_linear import Edges, Nodes, linearise
from models.fields.egnn_tangents import first_tangents, middle_tangents, moved, trace_of_one_layer

if TYPE_CHECKING:
    from models.fields.egnn import EGNN


BYTES_AT_ONCE = {"cpu": 2**19, "cuda": 2**28}
"""Bound on the largest intermediate tensor: a few of them stay in a core's cache, or fill a GPU."""


def rows_at_once(field: EGNN, like: Tensor) -> int:
    """Rows of a batch whose largest intermediate tensor stays within the bound, one at least.

    The largest is a feature vector for every pair of particles, or from four layers on a message Jacobian.
    """
    values = field.particles**2 * field.hidden * (1 if len(field.layers) < 4 else field.hidden)
    return max(1, BYTES_AT_ONCE.get(like.device.type, BYTES_AT_ONCE["cpu"]) // (values * like.element_size()))


def in_structured_form(field: EGNN, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity (B, N d) and trace (B,) in pieces of bounded memory (under autograd all pieces' graphs are kept)."""
    rows = rows_at_once(field, x_BD)
    if len(x_BD) <= rows:
        return velocity_and_trace(field, t, x_BD)
    times = t.expand(len(x_BD)).split(rows)
    pieces = [velocity_and_trace(field, t_B, piece_BD) for t_B, piece_BD in zip(times, x_BD.split(rows), strict=True)]
    return torch.cat([v_BD for v_BD, _ in pieces]), torch.cat([trace_B for _, trace_B in pieces])


def velocity_and_trace(field: EGNN, t: Tensor, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean-free velocity (B, N d) and the trace of its Jacobian (B,)."""
    x_BNd = start_BNd = x_BD.unflatten(1, (field.particles, field.spatial_dim))
    h_BNH = field.initial_features(t, x_BD)
    difference_BNNd = x_BNd.unsqueeze(2) - x_BNd.unsqueeze(1)
    start_BNN = difference_BNNd.square().sum(-1)
    edges, nodes = [], []
    for layer in field.blocks():
        edge, node, x_BNd, h_BNH = linearise(layer, x_BNd, h_BNH, start_BNN)
        edges.append(edge)
        nodes.append(node)
    v_BNd = x_BNd - start_BNd
    trace_B = _trace(edges, nodes, difference_BNNd) - x_BD.shape[1]
    return (v_BNd - v_BNd.mean(dim=1, keepdim=True)).flatten(1), trace_B


def _trace(edges: list[Edges], nodes: list[Nodes | None], start_BNNd: Tensor) -> Tensor:
    if len(edges) == 1:
        return trace_of_one_layer(edges[0])
    tangents = first_tangents(edges[0], _known(nodes[0]))
    for edge, node in zip(edges[1:-2], nodes[1:-2], strict=True):
        tangents = middle_tangents(edge, _known(node), tangents, start_BNNd)
    last = Last.of(edges[-1])
    if len(edges) == 2:
        x_Bkeid = tangents.x_Bkeid
        features_B = last.asked_of_features(tangents)
    else:
        before, node = edges[-2], _known(nodes[-2])
        x_Bkeid = moved(before, tangents, start_BNNd)
        features_B = last.asked_through(before, node, tangents, start_BNNd)
    return last.asked_of_positions(x_Bkeid, start_BNNd) + features_B


def _known(node: Nodes | None) -> Nodes:
    assert node is not None, "only the last layer has no feature update"
    return node
