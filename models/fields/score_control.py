"""A control that knows the target: a network plus a share of the target's clipped score, which time decides.

Zhang and Chen 2022: u(t, x) = NN(t, x) + NN2(t) clip(grad log p(x)), for `models.objectives.path_integral` and
`models.objectives.denoising_diffusion`, which ask a control for its value alone: it has no divergence.

Shapes: B batch, D coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Field, Target
from models.fields.known_score import KnownScore
from models.score_estimator import Clip


class ScoreControl(nn.Module):
    """u(t, x) = network(t, x) + share(t) clip(score(x)), mean-free and equivariant where network and target are.

    Args:
        network: u without the score, called with (t, x): a multilayer perceptron, or an EGNN for particles.
        target: its score, in closed form. clip: of the score; Akhound-Sadegh et al. 2024 clip at 1e4, or at 1e2.
        hidden: width of the network of the share, one hidden layer of time.
        start: the share at every time before training. With 0 the first paths are those of the network alone, so that
            steep energies cannot throw them out.
        differentiated: whether gradients go through the score to the places that it was asked at. Published code stops
            them, which saves second derivatives of the energy; the share has its gradient either way.
    """

    network: Field

    def __init__(
        self,
        *,
        network: Field,
        target: Target,
        clip: Clip,
        hidden: int = 64,
        start: float = 0.0,
        differentiated: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.known = network, KnownScore(target=target, clip=clip)
        self.differentiated = differentiated
        self.hidden_layer = nn.Linear(1, hidden)
        self.share_layer = nn.Linear(hidden, 1)
        nn.init.zeros_(self.share_layer.weight)
        nn.init.constant_(self.share_layer.bias, start)

    def forward(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """t: scalar or (B,), x: (B, D) -> control (B, D)."""
        return self.network(t, x_BD) + self.share(t, x_BD) * self.guide(x_BD)

    def share(self, t: Tensor, x_BD: Tensor) -> Tensor:
        """NN2(t), (B, 1) or (1, 1) for a scalar time, in the dtype of x."""
        return self.share_layer(nn.functional.silu(self.hidden_layer(t.to(x_BD).reshape(-1, 1))))

    def guide(self, x_BD: Tensor) -> Tensor:
        """The clipped score, (B, D), on the space; rows without a finite one are zero."""
        with torch.set_grad_enabled(self.differentiated and torch.is_grad_enabled()):
            return self.known(x_BD if self.differentiated else x_BD.detach())
