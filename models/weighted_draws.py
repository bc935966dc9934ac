"""Weighted samples of a trained model, whatever it is: a continuous or a coupling flow, or a controlled process.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.contracts import Target, whole_batch
from models.controlled import ControlledSampler
from models.flows.continuous import ContinuousFlow
from models.flows.coupling import CouplingFlow
from models.flows.solvers import Dopri5


@dataclass(frozen=True, kw_only=True)
class WeightedDraws:
    """Samples of a model.

    Attributes:
        x_BD: in the precision of the model. energy_B: in kT.
        log_weight_B: unnormalised, -energy - log q of a flow; its exponential has the mean Z. Minus infinity for rows
            that are not finite, or have no energy.
        log_q_B: normalised log density; None of a controlled process, which has none.
    """

    x_BD: Tensor
    energy_B: Tensor
    log_weight_B: Tensor
    log_q_B: Tensor | None


@torch.no_grad()
def weighted_draws(
    flow: ContinuousFlow | CouplingFlow | ControlledSampler, target: Target, *, rows: int, seed: int, tolerance: float
) -> WeightedDraws:
    """`rows` samples, the same for the same seed, on the device and in the precision of the model.

    Args:
        tolerance: of dopri5, relative and absolute, where the model is a continuous flow.
    """
    like = next(flow.parameters())
    log_q_B: Tensor | None = None
    if isinstance(flow, ControlledSampler):
        path = flow.draw(whole_batch(rows, seed), like=like)
        x_BD, log_weight_B = path.x_BD, path.log_weight_B
        energy_B = target.energy(x_BD)
    else:
        shape, generator = (rows, target.space.dim), torch.Generator().manual_seed(seed)
        noise_BD = torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
        x0_BD = flow.prior.from_noise(noise_BD)
        solver = Dopri5(rtol=tolerance, atol=tolerance)
        pushed = flow.push(x0_BD) if isinstance(flow, CouplingFlow) else flow.push(x0_BD, solver=solver)
        x_BD, log_q_B = pushed.x1_BD, pushed.log_q_B
        energy_B = target.energy(x_BD)
        log_weight_B = -energy_B - log_q_B
    log_weight_B = log_weight_B.masked_fill(log_weight_B.isnan(), -torch.inf)
    return WeightedDraws(x_BD=x_BD, energy_B=energy_B, log_weight_B=log_weight_B, log_q_B=log_q_B)
