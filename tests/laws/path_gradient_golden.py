"""Golden flows of the path-gradient tests, what a record has in common with a golden file, and two small examples."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.contracts import Space
from models.fields.mlp import MLPField
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.objectives.path_gradient import PathGradientRecord
from models.targets.gaussian_mixture import GaussianMixture
from tests.laws.field_laws import perturbed

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, Tensor]:
    """The floating-point arrays of a golden file."""
    with np.load(GOLDEN / name) as stored:
        return {key: torch.as_tensor(stored[key]) for key in stored.files if stored[key].dtype.kind == "f"}


def mixture(golden: dict[str, Tensor]) -> GaussianMixture:
    return GaussianMixture(name="gmm4", means_KD=golden["gmm_means"], variance=float(golden["gmm_var"]))


def golden_flow(golden: dict[str, Tensor]) -> ContinuousFlow:
    field = MLPField(dim=2, hidden=8, layers=2, activation="tanh").double()
    names = itertools.product((1, 2, 3), ("weight", "bias"))
    field.load_state_dict({f"linears.{i - 1}.{name}": golden[f"field_l{i}.{name}"] for i, name in names})
    return ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=field)


def compare(pairs: dict[str, tuple[Tensor, Tensor]], tolerance: float) -> None:
    for key, (actual, expected) in pairs.items():
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}")


def forward_pairs(record: PathGradientRecord, golden: dict[str, Tensor], tag: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What a forward record and a golden file have in common."""
    found = {
        "grad_flat": record.gradient_P / len(record.log_q_B),
        "x0": record.carried.x_BD,
        "s0": record.carried.score_BD,
        "a0": record.difference_BD,
        "x1_rec": record.collected.x_BD,
        "a1": record.collected.adjoint_BD,
        "logdet": record.logdet_B,
        "log_q": record.log_q_B,
    }
    return {key: (value, golden[f"{tag}_{key}"]) for key, value in found.items() if f"{tag}_{key}" in golden}


def small_flow(seed: int = 0) -> ContinuousFlow:
    torch.manual_seed(seed)
    field = perturbed(MLPField(dim=2, hidden=8, layers=2, activation="silu"), scale=0.2)
    return ContinuousFlow(prior=GaussianPrior(space=Space(dim=2)), field=field)


def four_modes() -> GaussianMixture:
    means_KD = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return GaussianMixture(name="gmm4", means_KD=means_KD, variance=0.5)
