"""A user's own target: sound ones pass, and every way of being wrong is told by the law that it breaks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from models import systems
from models.contracts import Space, Target
from models.own_targets import check_target, exchanged
from models.problem import build
from models.problem_settings import evaluation_settings, system_settings
from models.systems import NAMED, System, own_system, system_of
from models.targets import TargetOfEnergy
from tests.laws.target_laws import ParticleTargetLaws, TargetLaws
from tests.models.test_targets import normal
from tests.studies.harmonic import Harmonic

README = Path(__file__).parents[2] / "README.md"
PLANE, CHAIN = Space(dim=2), Space(dim=6, particles=3)


def ring(x_BD: Tensor) -> Tensor:
    return 20 * (x_BD.norm(dim=1) - 2) ** 2


def springs(x_BD: Tensor) -> Tensor:
    x_BNd = x_BD.unflatten(1, (3, 2))
    return (x_BNd[:, :, None] - x_BNd[:, None]).square().sum(dim=(1, 2, 3))


def of(energy: Callable[[Tensor], Tensor], space: Space = PLANE, **changes: Any) -> TargetOfEnergy:
    return TargetOfEnergy(name="mine", space=space, energy_of=energy, **changes)


class TestTargetOfEnergy(TargetLaws):
    def target(self) -> Target:
        return of(ring)

    def points(self) -> Tensor:
        return normal(5, 2, 1.5)


class TestTargetOfEnergyOfParticles(ParticleTargetLaws):
    def target(self) -> Target:
        return of(springs, CHAIN)

    def points(self) -> Tensor:
        return self.target().space.project(normal(5, 6, 1.0))


@pytest.mark.parametrize("name", [name for name in NAMED if name != "ad2-xtb"])
def test_the_built_in_targets_are_sound(name: str) -> None:
    system = NAMED[name]()
    check_target(system.target, name, prior_std=system.prior_std)


class WithScore(TargetOfEnergy):
    """A ring whose score is half of what it should be."""

    def score(self, x_BD: Tensor) -> Tensor:
        return 0.5 * super().score(x_BD)


class WrongSign(TargetOfEnergy):
    def score(self, x_BD: Tensor) -> Tensor:
        return -super().score(x_BD)


class OneCoordinate(TargetOfEnergy):
    """Nothing pulls along the second coordinate."""

    def score(self, x_BD: Tensor) -> Tensor:
        return super().score(x_BD) * torch.tensor([1.0, 0.0], dtype=x_BD.dtype)


class FlatScore(TargetOfEnergy):
    def score(self, x_BD: Tensor) -> Tensor:
        return super().score(x_BD).sum(dim=1)


class NeedsGraph(TargetOfEnergy):
    """Autograd as one writes it first, which fails where studies have switched it off."""

    def score(self, x_BD: Tensor) -> Tensor:
        at_BD = x_BD.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(at_BD).sum(), at_BD)[0]


class WideDraws(Harmonic):
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return 2.0 * super().sample(n, generator)


class FewDraws(Harmonic):
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return super().sample(n - 1, generator)


class DriftingDraws(Harmonic):
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return super().sample(n, generator) + 1.0


STIFF = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))


def wall(x_BD: Tensor) -> Tensor:
    return ring(x_BD).masked_fill(x_BD[:, 0] > 0, math.inf)


def typed(x_BD: Tensor) -> Tensor:
    return springs(x_BD) + (x_BD[:, 0] - x_BD[:, 2]) ** 2 + (x_BD[:, 1] - x_BD[:, 3]) ** 2


SOUND: dict[str, Target] = {
    "ring": of(ring),
    "springs": of(springs, CHAIN),
    "harmonic": Harmonic(),
    "particles of two types": of(typed, Space(dim=6, particles=3, types=(0, 0, 1))),
}


@pytest.mark.parametrize("target", SOUND.values(), ids=SOUND)
def test_sound_targets_pass(target: Target) -> None:
    check_target(target, "here:mine", prior_std=1.0)


def handed(x_BD: Tensor) -> Tensor:
    """Changes where the plane is mirrored, and not where it is turned or particles change places in a ring."""
    x_BNd = x_BD.unflatten(1, (3, 2))
    (ax, ay), (bx, by) = (x_BNd[:, 1] - x_BNd[:, 0]).T, (x_BNd[:, 2] - x_BNd[:, 0]).T
    return springs(x_BD) + ax * by - ay * bx


BROKEN: dict[str, tuple[Target, list[str]]] = {
    "a column of energies": (of(lambda x: ring(x)[:, None]), ["has shape (8,)", "shape (8, 1)", "without a last axis"]),
    "one energy for all": (of(lambda x: ring(x).sum()), ["has shape (8,)", "shape ()", "one number a row"]),
    "a number": (of(lambda x: 1.0), ["has shape (8,)", "a float", "one number a row"]),  # type: ignore[arg-type, return-value]
    "single precision": (of(lambda x: ring(x).float()), ["keeps the dtype", "float32", "dtype=x.dtype"]),
    "double precision": (of(lambda x: ring(x.double())), ["keeps the dtype", "float64", "dtype=x.dtype"]),
    "an infinite energy": (of(wall), ["of the base", "of 8 that are not", "cap the energy"]),
    "no energy": (of(lambda x: ring(x) * math.nan), ["are finite", "8 of 8", "cap the energy"]),
    "an energy that fails": (of(lambda x: x @ torch.ones(3, 1)), ["takes rows", "fails with RuntimeError", "(batch"]),
    "a random energy": (of(lambda x: ring(x) + torch.rand(len(x))), ["same each time", "changes", "at random"]),
    "rows that see each other": (of(lambda x: ring(x) - ring(x).mean()), ["do not see each other", "alone", "dim=1"]),
    "a graph of its own": (of(lambda x: ring(x) * STIFF.to(x.dtype)), ["no graph", "want a gradient", "detach"]),
    "half a score": (
        WithScore(name="m", space=PLANE, energy_of=ring),
        ["minus the gradient", "falls by", "derivative"],
    ),
    "a score of the other sign": (
        WrongSign(name="m", space=PLANE, energy_of=ring),
        ["minus the gradient", "falls by", "derivative"],
    ),
    "a score of one coordinate": (
        OneCoordinate(name="m", space=PLANE, energy_of=ring),
        ["minus the gradient", "falls by", "derivative"],
    ),
    "a score a row": (FlatScore(name="m", space=PLANE, energy_of=ring), ["shape (8, 2)", "shape (8,)", "one row"]),
    "a score that needs a graph": (
        NeedsGraph(name="m", space=PLANE, energy_of=ring),
        ["under torch.no_grad", "fails with RuntimeError", "torch.enable_grad"],
    ),
    "particles that differ": (of(typed, CHAIN), ["permuted, rotated or reflected", "for permuted", "by their dist"]),
    "particles of other types": (of(typed, Space(dim=6, particles=3, types=(0, 1, 1))), ["for permuted", "distances"]),
    "a direction in space": (of(lambda x: springs(x) + x[:, ::2].square().sum(1), CHAIN), ["rotated", "distances"]),
    "a hand": (of(handed, CHAIN), ["permuted, rotated or reflected", "changes by", "distances"]),
    "a pull at the centre": (
        of(lambda x: springs(x) + x.unflatten(1, (3, 2)).mean(1).sum(1), CHAIN),
        ["sum to zero", "a sum of", "relative to the centre"],
    ),
    "wide draws": (WideDraws(), ["<-x . score> = 4", "standard error", "leave sample out"]),
    "few draws": (FewDraws(), ["draws as many", "1999 rows", "return (n, dim)"]),
    "drifting draws": (DriftingDraws(), ["draws rows", "mean-free", "sample(n, generator)"]),
    "no name": (TargetOfEnergy(name="", space=PLANE, energy_of=ring), ["a text", "''", 'name="ring"']),
    "an infinite log Z": (of(ring, log_z=math.inf), ["finite float, or None", "inf", "None where"]),
    "no operations": (of(ring, energy_flops=0), ["counts operations", "0", "whole number"]),
    "no space": (of(ring, space=2), ["is a Space", "an int|a int", "Space(dim=...)"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("target", "beats"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_law_is_told(target: Target, beats: list[str]) -> None:
    with pytest.raises(ValueError, match="here:mine") as told:
        check_target(target, "here:mine", prior_std=1.0)
    text = str(told.value)
    assert "\n" not in text
    assert [beat for beat in beats if not any(part in text for part in beat.split("|"))] == [], text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder that no test leaves on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in os.sys.path if path])  # type: ignore[attr-defined]
    return tmp_path


def test_the_example_of_the_readme_is_imported_from_the_current_folder(folder: Path) -> None:
    example = README.read_text().split("```python\n")[1].split("```")[0]
    (folder / "energies_of_example.py").write_text(example)
    system = system_of("energies_of_example:ring")
    assert system.target.space == PLANE
    assert system is system_of("energies_of_example:ring")  # the laws are tried once
    torch.testing.assert_close(system.target.energy(normal(3, 2, 1.0)), ring(normal(3, 2, 1.0)))
    (folder / "energies_that_fail.py").write_text("def made():\n    raise RuntimeError('no\\nparameters')\n")
    for address, beat in (
        ("energies_that_fail:made", "fails with RuntimeError: no parameters; write"),
        ("energies_that_fail:other", "fails with AttributeError"),
        ("energies_nowhere:made", "fails with ModuleNotFoundError"),
    ):
        with pytest.raises(ValueError, match=beat):
            system_of(address)
    (folder / "energies_unreadable.py").write_text("def made(:\n")
    with pytest.raises(ValueError, match="SyntaxError"):
        system_of("energies_unreadable:made")


def module(name: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with one function `made`, as if a user had written it."""
    written = ModuleType(name)
    written.made = make  # type: ignore[attr-defined]
    monkeypatch.setitem(os.sys.modules, name, written)  # type: ignore[attr-defined]
    return f"{name}:made"


def test_a_broken_target_of_a_module_is_told_and_a_system_may_widen_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    address = module("energies_broken", lambda: of(lambda x: ring(x)[:, None]), monkeypatch)
    with pytest.raises(ValueError, match=r"has shape \(8,\), but energies_broken:made has shape"):
        system_of(address)
    wide = System(**{**vars(own_system(of(ring))), "prior_std": 3.0})
    assert system_of(module("energies_wide", lambda: wide, monkeypatch)).prior_std == 3.0
    steep = System(**{**vars(own_system(of(lambda x: torch.exp(x.square().sum(1))))), "prior_std": 1e3})
    with pytest.raises(ValueError, match=r"width 1000\) are finite, but energies_steep:made has \d of 8"):
        system_of(module("energies_steep", lambda: steep, monkeypatch))


def test_another_energy_under_the_same_name_is_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    address = module("energies_changing", lambda: of(ring), monkeypatch)
    settings = {"system": system_settings(address), "evaluation": evaluation_settings(address)}
    assert build(settings, cache=Path()).physics.target.name == "mine"
    module("energies_changing", lambda: of(lambda x: 1.001 * ring(x)), monkeypatch)
    other = system_settings(address)
    assert {key for key in other if other[key] != settings["system"][key]} == {"fingerprint"}
    with pytest.raises(ValueError, match="a study keeps its energy, but energies_changing:made has another one here"):
        _ = build(settings, cache=Path()).physics
    assert systems.is_address(address)
    assert not systems.is_address("gmm4")


def test_particles_change_places_within_their_type_alone() -> None:
    types = (0, 1, 0, 2, 0, 1)
    order_N = exchanged(Space(dim=18, particles=6, types=types))
    assert [types[k] for k in order_N] == list(types)
    assert order_N.tolist() != list(range(6))
    assert sorted(exchanged(Space(dim=18, particles=6)).tolist()) == list(range(6))
    assert exchanged(Space(dim=6, particles=3, types=(2, 0, 1))).tolist() == [0, 1, 2]
