"""The EGNN as most codes write it: a list of edges, gathered and scattered. What the dense form is measured against.

Shapes: B batch, N particles, d spatial dimensions, E = B N (N - 1) edges, H features, D = N d coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.fields.egnn import EGNN, EGNNLayer
from models.fields.egnn_linear import DISTANCE_SOFTENING


def edges_of(batch: int, particles: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of both ends of every ordered pair within every configuration, (E,) each."""
    index_NN = torch.arange(particles, device=device)
    i_NN, j_NN = torch.meshgrid(index_NN, index_NN, indexing="ij")
    off = i_NN != j_NN
    offsets_B1 = particles * torch.arange(batch, device=device).unsqueeze(1)
    return (offsets_B1 + i_NN[off]).flatten(), (offsets_B1 + j_NN[off]).flatten()


def velocity(field: EGNN, t: Tensor, x_BD: Tensor) -> Tensor:
    """The same velocity as `field(t, x)`, (B, D)."""
    i_E, j_E = edges_of(len(x_BD), field.particles, x_BD.device)
    x_Rd = start_Rd = x_BD.reshape(-1, field.spatial_dim)
    h_RH = field.initial_features(t, x_BD).flatten(0, 1)
    start_E1 = (x_Rd[i_E] - x_Rd[j_E]).square().sum(-1, keepdim=True)
    for layer in field.blocks():
        x_Rd, h_RH = pass_messages(layer, x_Rd, h_RH, start_E1, i_E, j_E)
    v_BNd = (x_Rd - start_Rd).view(len(x_BD), field.particles, field.spatial_dim)
    return (v_BNd - v_BNd.mean(dim=1, keepdim=True)).flatten(1)


def pass_messages(
    layer: EGNNLayer, x_Rd: Tensor, h_RH: Tensor, start_E1: Tensor, i_E: Tensor, j_E: Tensor
) -> tuple[Tensor, Tensor]:
    difference_Ed = x_Rd[i_E] - x_Rd[j_E]
    squared_E1 = difference_Ed.square().sum(-1, keepdim=True)
    silu = torch.nn.functional.silu
    message_EH = silu(layer.e2(silu(layer.e1(torch.cat([h_RH[i_E], h_RH[j_E], squared_E1, start_E1], dim=1)))))
    message_EH = torch.sigmoid(layer.att(message_EH)) * message_EH
    strength_E1 = torch.tanh(layer.c2(silu(layer.c1(message_EH)))) * layer.coordinate_range
    moved_Ed = difference_Ed / (torch.sqrt(squared_E1 + DISTANCE_SOFTENING) + 1) * strength_E1
    gathered_RH = torch.zeros_like(h_RH).index_add(0, i_E, message_EH)
    x_Rd = x_Rd + torch.zeros_like(x_Rd).index_add(0, i_E, moved_Ed)
    return x_Rd, h_RH + layer.n2(silu(layer.n1(torch.cat([h_RH, gathered_RH], dim=1))))


def trace_by_rows(field: EGNN, t: Tensor, x_BD: Tensor, *, create_graph: bool, edge_list: bool = True) -> Tensor:
    """The trace of the Jacobian by one vector-Jacobian product for every coordinate, (B,)."""
    with torch.enable_grad():
        y_BD = x_BD.detach().requires_grad_()
        v_BD = velocity(field, t, y_BD) if edge_list else field(t, y_BD)
        trace_B = torch.zeros(len(x_BD), device=x_BD.device)
        for k in range(x_BD.shape[1]):
            (row_BD,) = torch.autograd.grad(v_BD[:, k].sum(), y_BD, create_graph=create_graph, retain_graph=True)
            trace_B = trace_B + row_BD[:, k]
    return trace_B.detach()
