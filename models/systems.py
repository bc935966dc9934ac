"""The physical systems by name, each with its field, base and settings that suit it; and a user's own target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch

from models import energy_recipes, recipes
from models.contracts import Space, Target
from models.energy_recipes import EnergyRecipe, nearest_energy_recipe
from models.fields.egnn import EGNN
from models.fields.in_units import FieldInUnits
from models.fields.mlp import MLPField
from models.fields.sinusoidal import SinusoidalField
from models.molecules.classical import MolecularTarget, alanine_dipeptide
from models.molecules.labelling import AnyLabelling
from models.molecules.semi_empirical import SemiEmpiricalTarget, alanine_dipeptide_xtb
from models.own_targets import check_target, failure, import_from_here
from models.recipes import CouplingName as CouplingName
from models.recipes import DivergenceName as DivergenceName
from models.recipes import Recipe as Recipe
from models.targets import dw4, gmm4, gmm40, lj13, lj55

AtomClasses = Literal["distinct", "backbone"]
ANGSTROM = 0.1
"""nm."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A target, the field that fits its symmetries, and the recipe.

    Attributes:
        prior_std: standard deviation of the Gaussian base.
        lowest_energy: of the deepest minimum in kT, where it is known.
        field_length: unit in which a field sees coordinates, None for that of the target. In R^D such a field has
            sinusoids of them, for targets with detail much finer than their width.
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
) -> MLPField | SinusoidalField | EGNN | FieldInUnits:
    """An untrained field: an EGNN for particles, elsewhere a perceptron, with sinusoids where it has a length."""
    if space.particles is None and length is not None:
        return SinusoidalField(space.dim, hidden, layers, length=length, output_scale=length)
    if space.particles is None:
        return MLPField(dim=space.dim, hidden=hidden, layers=layers)
    egnn = EGNN(space.particles, space.spatial_dim, hidden=hidden, layers=layers, types=space.types)
    return egnn if length is None else FieldInUnits(field=egnn, length=length)


def gmm4_system() -> System:
    """Four Gaussians in the plane."""
    return System(target=gmm4(), hidden=64, layers=4, recipe=recipes.PLANE, energy_recipe=energy_recipes.GMM4)


def gmm40_system() -> System:
    """Forty Gaussians in [-40, 40]^2; the base is as wide as the target."""
    return System(
        target=gmm40(),
        hidden=128,
        layers=3,
        recipe=recipes.GMM40,
        prior_std=25.0,
        field_length=50.0,
        energy_recipe=energy_recipes.GMM40,
    )


def dw4_system() -> System:
    """Four particles in the plane, every pair in a double well."""
    return System(target=dw4(), hidden=32, layers=3, recipe=recipes.DW4, energy_recipe=energy_recipes.DW4)


def lj13_system() -> System:
    """A cluster of 13 Lennard-Jones particles. Deepest: an icosahedron in the trap."""
    return System(
        target=lj13(),
        hidden=32,
        layers=3,
        recipe=recipes.LJ13,
        lowest_energy=-83.089644,
        energy_recipe=energy_recipes.LJ13,
    )


def lj55_system() -> System:
    """A cluster of 55 Lennard-Jones particles. Deepest: a Mackay icosahedron in the trap."""
    return System(
        target=lj55(),
        hidden=64,
        layers=5,
        recipe=recipes.LJ55,
        lowest_energy=-491.641269,
        energy_recipe=energy_recipes.LJ55,
    )


def ad2_classical_system() -> System:
    """Alanine dipeptide in a classical force field, in nm. The width of the data is 0.17 nm, that of the base 0.1."""
    return _ad2_system(alanine_dipeptide(), recipes.AD2)


@cache
def ad2_xtb_system() -> System:
    """The same by GFN2-xTB in water, one for all of a process, with a process for every thread of torch.

    Raises:
        ModuleNotFoundError: where tblite is missing.
    """
    return _ad2_system(alanine_dipeptide_xtb(processes=torch.get_num_threads()), recipes.AD2_XTB)


def _ad2_system(target: MolecularTarget | SemiEmpiricalTarget, recipe: Recipe) -> System:
    return System(
        target=target,
        hidden=64,
        layers=5,
        recipe=recipe,
        prior_std=ANGSTROM,
        field_length=ANGSTROM,
        energy_recipe=energy_recipes.AD2,
    )


def own_system(target: Target) -> System:
    """A user's target with the field and recipe of the nearest built-in system."""
    particles = target.space.particles is not None
    return System(
        target=target,
        hidden=32 if particles else 64,
        layers=3 if particles else 4,
        recipe=recipes.DW4 if particles else recipes.PLANE,
    )


NAMED: dict[str, Callable[[], System]] = {
    "gmm4": gmm4_system,
    "gmm40": gmm40_system,
    "dw4": dw4_system,
    "lj13": lj13_system,
    "lj55": lj55_system,
    "ad2-classical": ad2_classical_system,
    "ad2-xtb": ad2_xtb_system,
}


def with_atom_classes(system: System, classes: AtomClasses) -> System:
    """The system for a field that tells atoms apart by these classes only.

    "distinct" (Klein and Noé 2024): all but hydrogens on one carbon, which is what the energy of a molecule allows and
    leaves every system as it is. "backbone" (Klein et al. 2023): by element, and each atom of the backbone; the energy
    is then that of the labelling that bonds suggest, as such a field cannot know it.

    Raises:
        ValueError: where backbone classes are asked of what is no molecule.
    """
    target = system.target
    if classes == "distinct" or isinstance(target, AnyLabelling):
        return system
    if not isinstance(target, (MolecularTarget, SemiEmpiricalTarget)):
        raise ValueError(
            f"backbone classes are those of a molecule's atoms, got {target.name}; leave --atom-classes out"
        )
    return replace(system, target=AnyLabelling(molecule=target))


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
        return named_system(name)
    rule = f"a target is one of {', '.join(NAMED)} or module:function, got {name!r}"
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"{rule}; write for example --target gmm4")
    try:
        make = import_from_here(name)
    except (Exception, SystemExit) as error:
        text = (
            f"{rule}, which {failure(error)}; write the address of a function, in a module of this folder or installed"
        )
        raise ValueError(text) from error
    return own_system_of(name, make)


def named_system(name: str) -> System:
    """A built-in system.

    Raises:
        ValueError: where what it needs is not installed.
    """
    try:
        return NAMED[name]()
    except ModuleNotFoundError as error:
        raise ValueError(f"the target {name} needs an extra package: {error}") from error


@cache
def own_system_of(name: str, make: Callable[[], Any]) -> System:
    """What a user's function makes, held against the laws once a process. Arguments: its address, and itself.

    Raises:
        ValueError: as `system_of`.
    """
    rule = f"a target is one of {', '.join(NAMED)} or module:function, got {name!r}"
    try:
        made = make()
    except (Exception, SystemExit) as error:
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
