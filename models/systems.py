"""The physical systems by name, each with its field, base and settings that suit it; and a user's own target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch

from models import energy_recipes
from models.contracts import Space, Target
from models.energy_recipes import EnergyRecipe, nearest_energy_recipe
from models.fields.egnn import EGNN
from models.fields.mlp import MLPField
from models.fields.sinusoidal import SinusoidalField
from models.own_targets import check_target, failure, import_from_here
from models.targets import dw4, gmm4, gmm40, lj13, lj55

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


@dataclass(frozen=True, kw_only=True)
class System:
    """A target, the field that fits its symmetries, and the recipe.

    Attributes:
        prior_std: standard deviation of the Gaussian base.
        lowest_energy: of the deepest minimum in kT, where it is known.
        field_length: unit of coordinates of a field that sees them through sinusoids, None for a plain perceptron; of
            targets in R^D with detail much finer than their width.
        energy_recipe: for learning from the energy alone; None for that of the nearest built-in system.
    """

    target: Target
    hidden: int
    layers: int
    recipe: Recipe
    prior_std: float = 1.0
    lowest_energy: float | None = None
    field_length: float | None = None
    energy_recipe: EnergyRecipe | None = None

    @property
    def from_energy(self) -> EnergyRecipe:
        return self.energy_recipe or nearest_energy_recipe(self.target.space)


def field_for(
    space: Space, *, hidden: int, layers: int, length: float | None = None
) -> MLPField | SinusoidalField | EGNN:
    """An untrained field: an EGNN for particles, elsewhere a perceptron, with sinusoids where it has a length."""
    if space.particles is None and length is not None:
        return SinusoidalField(space.dim, hidden, layers, length=length, output_scale=length)
    if space.particles is None:
        return MLPField(dim=space.dim, hidden=hidden, layers=layers)
    return EGNN(space.particles, space.spatial_dim, hidden=hidden, layers=layers, types=space.types)


# Vaitl and Klein 2025, two-dimensional experiment: 2000 training points, exact divergence, rates 1e-2 and 5e-3.
# Maximum likelihood takes the batch and the rate of path gradients, so that the two differ in the gradient alone.
_PLANE = Recipe(
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
_GMM40 = replace(
    _PLANE,
    train_samples=10_000,
    coupling="optimal-transport",
    fm_learning_rate=1e-3,
    fm_tail_learning_rate=1e-4,
    pg_learning_rate=5e-4,
)
# Klein et al. 2023: optimal-transport batches of 256 at 5e-4, then 5e-5; maximum likelihood of DW4 in batches of 256 at
# 5e-4.
_DW4 = Recipe(
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
_LJ13 = replace(_DW4, ml_batch=64, solver_grading=0.1)
# LJ55 has no published maximum likelihood, which holds some gigabytes a sample here: larger batches want a memory cap.
# Exact traces of its field are dear, so that an evaluation takes few points; a path gradient of one sample costs tens
# of times one of LJ13, so that its batch is a quarter.
_LJ55 = replace(_LJ13, evaluation_samples=128, pg_batch=16, ml_batch=2)


def gmm4_system() -> System:
    """Four Gaussians in the plane."""
    return System(target=gmm4(), hidden=64, layers=4, recipe=_PLANE, energy_recipe=energy_recipes.GMM4)


def gmm40_system() -> System:
    """Forty Gaussians in [-40, 40]^2; the base is as wide as the target."""
    return System(
        target=gmm40(),
        hidden=128,
        layers=3,
        recipe=_GMM40,
        prior_std=25.0,
        field_length=50.0,
        energy_recipe=energy_recipes.GMM40,
    )


def dw4_system() -> System:
    """Four particles in the plane, every pair in a double well."""
    return System(target=dw4(), hidden=32, layers=3, recipe=_DW4, energy_recipe=energy_recipes.DW4)


def lj13_system() -> System:
    """A cluster of 13 Lennard-Jones particles. Deepest: an icosahedron in the trap."""
    return System(
        target=lj13(),
        hidden=32,
        layers=3,
        recipe=_LJ13,
        lowest_energy=-83.089644,
        energy_recipe=energy_recipes.LJ13,
    )


def lj55_system() -> System:
    """A cluster of 55 Lennard-Jones particles. Deepest: a Mackay icosahedron in the trap."""
    return System(
        target=lj55(),
        hidden=64,
        layers=5,
        recipe=_LJ55,
        lowest_energy=-491.641269,
        energy_recipe=energy_recipes.LJ55,
    )


def own_system(target: Target) -> System:
    """A user's target with the field and recipe of the nearest built-in system."""
    particles = target.space.particles is not None
    return System(
        target=target,
        hidden=32 if particles else 64,
        layers=3 if particles else 4,
        recipe=_DW4 if particles else _PLANE,
    )


NAMED: dict[str, Callable[[], System]] = {
    "gmm4": gmm4_system,
    "gmm40": gmm40_system,
    "dw4": dw4_system,
    "lj13": lj13_system,
    "lj55": lj55_system,
}


def is_address(name: str) -> bool:
    """Whether a target is a user's own, by its name."""
    return name not in NAMED


def system_of(name: str) -> System:
    """The system of a built-in name, or of "module:function" where the function returns a Target or a System.

    Raises:
        ValueError: for an unknown name, an address that does not resolve, something that is not a target, or a target
            that breaks a law.
    """
    if name in NAMED:
        return NAMED[name]()
    rule = f"a target is one of {', '.join(NAMED)} or module:function, got {name!r}"
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"{rule}; write for example --target gmm4")
    try:
        make = import_from_here(name)
    except Exception as error:
        text = (
            f"{rule}, which {failure(error)}; write the address of a function, in a module of this folder or installed"
        )
        raise ValueError(text) from error
    return own_system_of(name, make)


@cache
def own_system_of(name: str, make: Callable[[], Any]) -> System:
    """What a user's function makes, held against the laws once a process. Arguments: its address, and itself.

    Raises:
        ValueError: as `system_of`.
    """
    rule = f"a target is one of {', '.join(NAMED)} or module:function, got {name!r}"
    try:
        made = make()
    except Exception as error:
        text = f"{rule}, which {failure(error)}; write the address of a function without arguments"
        raise ValueError(text) from error
    if not isinstance(made, (System, Target)):
        raise ValueError(
            f"{rule}, which returns {type(made).__name__}; write a function that returns an object with name, space, "
            "log_z, energy_flops, energy(x) and score(x), such as models.targets.TargetOfEnergy"
        )
    system = made if isinstance(made, System) else own_system(made)
    check_target(system.target, name, prior_std=system.prior_std)
    return system
