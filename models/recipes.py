"""Settings that suit the built-in systems, with the papers that they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

CouplingName = Literal["independent", "optimal-transport", "equivariant-optimal-transport"]
DivergenceName = Literal["exact", "hutchinson"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that suit a system, used where a study leaves them open.

    Attributes:
        train_samples: rows of a training set. evaluation_samples: points and draws of an evaluation.
        fm_*: flow matching. fm_tail_learning_rate: of its fine-tuning. pg_*: path gradients. ml_*: maximum likelihood,
            with the divergence and the solver steps of path gradients.
        solver_*: of path gradients and maximum likelihood.
        evaluation_dtype: precision that likelihoods are evaluated in.
        budget: the largest budget of a first study.
    """

    budget: str
    train_samples: int
    evaluation_samples: int
    coupling: CouplingName
    sigma: float
    fm_batch: int
    fm_learning_rate: float
    fm_tail_learning_rate: float
    pg_batch: int
    pg_learning_rate: float
    pg_divergence: DivergenceName
    pg_gradient_clip: float | None
    ml_batch: int
    ml_learning_rate: float
    solver_steps: int = 15
    solver_grading: float | None = None
    evaluation_dtype: torch.dtype = torch.float32


# Vaitl and Klein 2025, two-dimensional experiment: 2000 training points, exact divergence, rates 1e-2 and 5e-3.
# Maximum likelihood takes the batch and the rate of path gradients, so that the two differ in the gradient alone.
PLANE = Recipe(
    budget="6s",
    train_samples=2000,
    evaluation_samples=2048,
    coupling="independent",
    sigma=0.0,
    fm_batch=250,
    fm_learning_rate=1e-2,
    fm_tail_learning_rate=1e-3,
    pg_batch=250,
    pg_learning_rate=5e-3,
    pg_divergence="exact",
    pg_gradient_clip=None,
    ml_batch=250,
    ml_learning_rate=5e-3,
    evaluation_dtype=torch.float64,
)
# Forty modes a fiftieth as wide as their spread take more points, optimal transport, and a field that resolves them.
GMM40 = replace(
    PLANE,
    train_samples=10_000,
    coupling="optimal-transport",
    fm_learning_rate=1e-3,
    fm_tail_learning_rate=1e-4,
    pg_learning_rate=5e-4,
)
# Klein et al. 2023: optimal-transport batches of 256 at 5e-4, then 5e-5; maximum likelihood of DW4 in batches of 256 at
# 5e-4.
DW4 = Recipe(
    budget="60s",
    train_samples=50_000,
    evaluation_samples=1024,
    coupling="optimal-transport",
    sigma=0.01,
    fm_batch=256,
    fm_learning_rate=1e-3,
    fm_tail_learning_rate=1e-4,
    pg_batch=64,
    pg_learning_rate=2e-4,
    pg_divergence="hutchinson",
    pg_gradient_clip=1.0,
    ml_batch=256,
    ml_learning_rate=5e-4,
)
# Klein et al. 2023: maximum likelihood of LJ13 in batches of 64. Its flows contract onto wells 0.1 wide and less: equal
# steps err most at the data (studies/integration_error.py).
LJ13 = replace(DW4, ml_batch=64, solver_grading=0.1)
# LJ55 has no published maximum likelihood, which holds some gigabytes a sample here: larger batches want a memory cap.
# Exact traces of its field are dear, so that an evaluation takes few points; a path gradient of one sample costs tens
# of times one of LJ13, so that its batch is a quarter and its rate too: at 2e-4 path gradients made an equivariant flow
# worse that they sharpened at 5e-5 (studies/README.md).
LJ55 = replace(LJ13, evaluation_samples=128, pg_batch=16, pg_learning_rate=5e-5, ml_batch=2)
# Klein et al. 2023 train alanine dipeptide in Angstrom: a base of width 1, sigma 0.01, batches of 256 at 5e-4, then at
# 5e-5. In nm all lengths are a tenth. Bonds vibrate by some 0.003 nm, 0.03 of the base.
AD2 = replace(
    LJ55,
    budget="3600s",
    evaluation_samples=128,
    sigma=1e-3,
    fm_learning_rate=5e-4,
    fm_tail_learning_rate=5e-5,
    solver_grading=0.03,
)
# An energy takes milliseconds, and reference samples take some hundred energies each.
AD2_XTB = replace(AD2, train_samples=10_000)
