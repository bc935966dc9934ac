"""Alanine dipeptide as a system that any study trains: names, recipes, fields and their classes, and what is missing.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.fields.egnn import EGNN
from models.fields.in_units import FieldInUnits
from models.molecules.classical import MolecularTarget
from models.molecules.labelling import AnyLabelling
from models.molecules.peptides import capped_alanine
from models.problem import BoltzmannProblem
from models.problem_settings import evaluation_settings, system_settings
from models.reference.fingerprint import fingerprint
from models.systems import ad2_xtb_system, system_of, with_atom_classes
from studies.options import FlowOptions

AD2 = capped_alanine()
SMALL: dict[str, Any] = {"train_samples": 64, "hidden": 4, "layers": 1}


def problem(**changes: Any) -> BoltzmannProblem:
    settings = system_settings("ad2-classical", **{**SMALL, **changes})
    return BoltzmannProblem(system=settings, evaluation=evaluation_settings("ad2-classical"), cache=Path("unused"))


@pytest.fixture
def tblite(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package as there or not, whatever this machine has."""
    found = object() if request.param else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    ad2_xtb_system.cache_clear()
    yield
    ad2_xtb_system.cache_clear()


def test_the_recipe_is_the_published_one_in_nanometres() -> None:
    system = system_of("ad2-classical")
    recipe = system.recipe
    assert (system.hidden, system.layers, system.prior_std, system.field_length) == (64, 5, 0.1, 0.1)
    assert (recipe.coupling, recipe.fm_batch, recipe.sigma) == ("optimal-transport", 256, 1e-3)
    assert (recipe.fm_learning_rate, recipe.fm_tail_learning_rate) == (5e-4, 5e-5)
    assert (recipe.pg_divergence, recipe.pg_gradient_clip, recipe.pg_batch) == ("hutchinson", 1.0, 16)


@pytest.mark.parametrize(("classes", "parameters"), [("distinct", 148_502), ("backbone", 147_599)])
def test_fields_tell_the_classes_apart_that_were_asked_for(classes: Any, parameters: int) -> None:
    found = problem(hidden=None, layers=None, atom_classes=classes)
    field = found.flow(0).field
    assert isinstance(field, FieldInUnits)
    assert isinstance(field.field, EGNN)
    expected = torch.nn.functional.one_hot(torch.tensor(getattr(AD2, f"{classes}_classes"))).float()
    assert torch.equal(field.field.types_NC, expected)
    assert sum(parameter.numel() for parameter in field.parameters()) == parameters
    assert found.physics.target.space.types == getattr(AD2, f"{classes}_classes")


def test_with_backbone_classes_the_energy_is_that_of_the_labelling_that_bonds_suggest() -> None:
    assert isinstance(problem().physics.target, MolecularTarget)
    target = problem(atom_classes="backbone").physics.target
    assert isinstance(target, AnyLabelling)
    swapped_BN3 = target.start_D.view(1, 22, 3).clone()
    swapped_BN3[:, [0, 21]] = swapped_BN3[:, [21, 0]]
    known = target.molecule.energy(target.start_D[None])
    torch.testing.assert_close(target.energy(swapped_BN3.flatten(1)), known)
    assert target.molecule.energy(swapped_BN3.flatten(1)) > known + 100.0


def test_classes_are_a_setting_only_where_they_are_not_those_of_the_energy() -> None:
    distinct, backbone = (system_settings("ad2-classical", atom_classes=each) for each in ("distinct", "backbone"))
    assert distinct == system_settings("ad2-classical")
    assert "atom_classes" not in distinct
    assert backbone["atom_classes"] == "backbone"
    assert backbone["types"] != distinct["types"]
    asked = FlowOptions(target="ad2-classical", atom_classes="backbone").problem_setting().problem["system"]
    assert asked == backbone


def test_backbone_classes_belong_to_molecules() -> None:
    with pytest.raises(ValueError, match=r"molecule's atoms, got dw4; leave --atom-classes out"):
        system_settings("dw4", atom_classes="backbone")
    exchangeable = with_atom_classes(system_of("ad2-classical"), "backbone")
    assert with_atom_classes(exchangeable, "backbone") is exchangeable


def test_a_field_in_units_is_the_field_of_coordinates_in_that_unit() -> None:
    torch.manual_seed(0)
    inner = EGNN(4, 3, hidden=4, layers=2, types=(0, 0, 1, 2)).double()
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    field = FieldInUnits(field=inner, length=0.1)
    x_BD, t = 0.1 * torch.randn(3, 12, dtype=torch.float64), torch.tensor(0.3).double()
    torch.testing.assert_close(field(t, x_BD), 0.1 * inner(t, 10.0 * x_BD))
    v_BD, divergence_B = field.with_divergence(t, x_BD)
    torch.testing.assert_close(v_BD, field(t, x_BD))
    jacobians = [torch.autograd.functional.jacobian(lambda x: field(t, x[None])[0], row) for row in x_BD]
    expected_B = torch.stack([jacobian.trace() for jacobian in jacobians])
    assert expected_B.abs().min() > 1e-3
    torch.testing.assert_close(divergence_B, expected_B)
    with pytest.raises(ValueError, match=r"positive and finite, got 0.0; write"):
        FieldInUnits(field=inner, length=0.0)


@pytest.mark.parametrize("tblite", [False], indirect=True)
def test_without_tblite_the_semi_empirical_target_is_told_and_the_others_stay(tblite: None) -> None:
    with pytest.raises(ValueError, match=r"ad2-xtb needs an extra package: .* write pip install '\.\[molecules\]'"):
        system_settings("ad2-xtb")
    assert system_settings("ad2-classical")["target"] == "ad2-classical"
    with pytest.raises(ValueError, match=r"lj55, ad2-classical, ad2-xtb or module:function, got 'ad2'"):
        system_of("ad2")


@pytest.mark.parametrize("tblite", [True], indirect=True)
def test_naming_the_semi_empirical_target_computes_no_energy(tblite: None) -> None:
    loaded = "tblite" in sys.modules
    names = {}
    for classes in ("distinct", "backbone"):
        names[classes] = system_settings("ad2-xtb", atom_classes=classes)["fingerprint"]
    target = system_of("ad2-xtb").target
    assert names["distinct"] == fingerprint(target) != names["backbone"]
    assert target.pool.evaluated == 0
    assert ("tblite" in sys.modules) == loaded
    assert system_of("ad2-xtb").target is target
