"""The energy against OpenMM's Reference platform, live; and Systems that it cannot have the energy of."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.molecules.building import built
from models.molecules.classical import alanine_dipeptide
from models.molecules.force_field import ForceField
from models.molecules.freeze import freeze, main
from models.molecules.frozen import read_molecule
from models.molecules.parameters import ForceFieldParameters, as_arrays
from models.molecules.peptides import capped_alanine

WITHOUT = "OpenMM is not installed: pip install '.[molecules]'"


@pytest.fixture(scope="module")
def openmm() -> Any:
    return pytest.importorskip("openmm", reason=WITHOUT)


@pytest.fixture(scope="module")
def reading(openmm: Any) -> Any:
    from models.molecules import openmm_system

    return openmm_system


def reference(openmm: Any, system: Any, x_BN3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies in kJ/mol and forces in kJ/mol/nm of OpenMM's Reference platform, which computes in double precision."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    energies, forces = [], []
    for x_N3 in x_BN3:
        context.setPositions(x_N3)
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def shaken(start_N3: np.ndarray, rows: int, noise_nm: float) -> np.ndarray:
    return start_N3 + noise_nm * np.random.default_rng(3).standard_normal((rows, *start_N3.shape))


def agree(openmm: Any, system: Any, parameters: ForceFieldParameters, x_BN3: np.ndarray) -> None:
    """To 1e-12 of the largest number that the sums are made of: 1e-9 kJ/mol and less in ordinary configurations."""
    energy_B, force_BD = ForceField(parameters=parameters).energy_and_force(torch.tensor(x_BN3).flatten(1))
    expected_B, expected_BN3 = reference(openmm, system, x_BN3)
    assert np.abs(energy_B.numpy() - expected_B).max() < 1e-9 * max(1.0, np.abs(expected_B).max() / 1e3)
    largest_B = np.abs(expected_BN3).max(axis=(1, 2))
    error_B = np.abs(force_BD.numpy().reshape(expected_BN3.shape) - expected_BN3).max(axis=(1, 2))
    assert (error_B < 1e-8 * np.maximum(1.0, largest_B / 1e4)).all()


@pytest.mark.parametrize("residues", [1, 3])
@pytest.mark.parametrize("noise_nm", [0.003, 0.03])
def test_energies_and_forces_of_capped_alanines(reading: Any, openmm: Any, residues: int, noise_nm: float) -> None:
    topology = capped_alanine(residues)
    molecule = reading.frozen(topology, built(topology))
    x_BN3 = shaken(molecule.start_N3, 20, noise_nm)
    agree(openmm, reading.system_of(topology), molecule.parameters, x_BN3)


def test_atoms_inside_each_other(reading: Any, openmm: Any) -> None:
    """A hydrogen on its way through an oxygen: the screening of each by the other takes all its forms."""
    molecule = alanine_dipeptide().molecule
    x_BN3 = np.repeat(molecule.start_N3[None], 6, axis=0)
    x_BN3[:, 17] = x_BN3[:, 5] + np.array([0.003, 0.01, 0.02, 0.05, 0.1, 0.2])[:, None] * np.array([0.6, 0.0, 0.8])
    only_born = reading.system_of(molecule.topology)
    for k in reversed(range(only_born.getNumForces())):
        if not isinstance(only_born.getForce(k), openmm.GBSAOBCForce):
            only_born.removeForce(k)
    agree(openmm, only_born, reading.parameters_of(only_born, origin="test"), x_BN3)


def test_what_is_frozen_is_what_openmm_says(reading: Any) -> None:
    topology = capped_alanine(1)
    kept = alanine_dipeptide().molecule
    fresh = as_arrays(reading.parameters_of(reading.system_of(topology), origin=kept.parameters.origin))
    for name, array in as_arrays(kept.parameters).items():
        np.testing.assert_array_equal(array, fresh[name], err_msg=name)


def test_the_command_writes_a_file_that_can_be_read(
    openmm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "made.npz"
    monkeypatch.setattr("sys.argv", ["freeze", "--system", "alanine-tetrapeptide", "--output", str(path)])
    main()
    assert "42 atoms, OpenMM" in capsys.readouterr().out
    assert path.stat().st_size < 30_000
    molecule = read_molecule(path)
    assert (molecule.topology, len(molecule.parameters.charge_product_P)) == (capped_alanine(3), 861)


def test_freezing_without_openmm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)
    monkeypatch.delitem(sys.modules, "models.molecules.openmm_system", raising=False)
    with pytest.raises(
        SystemExit, match=r"frozen from OpenMM, which is not installed .* pip install '\.\[molecules\]'"
    ):
        freeze("alanine-dipeptide")


class TestSystemsThatAreRefused:
    def made(self, reading: Any, *files: str, **settings: Any) -> Any:
        from openmm import app

        force_field = app.ForceField(*(files or reading.FORCE_FIELD))
        return force_field.createSystem(reading.openmm_topology(capped_alanine(1)), **settings)

    def refused(self, reading: Any, system: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            reading.parameters_of(system, origin="test")

    def test_a_term_that_is_not_known(self, reading: Any) -> None:
        system = self.made(reading, "amber99sbildn.xml", "implicit/obc2.xml")
        self.refused(reading, system, "no other term, got .*CustomGBForce; choose a force field of these terms")

    def test_a_term_twice(self, reading: Any, openmm: Any) -> None:
        system = self.made(reading)
        system.addForce(openmm.HarmonicBondForce())
        self.refused(reading, system, "at most once")

    def test_constraints(self, reading: Any) -> None:
        from openmm import app

        system = self.made(reading, constraints=app.HBonds)
        self.refused(reading, system, "move freely, got 12 constraints and 0 virtual sites; write createSystem")

    def test_a_cutoff(self, reading: Any) -> None:
        from openmm import app

        system = self.made(reading, nonbondedMethod=app.CutoffNonPeriodic)
        self.refused(reading, system, "a cutoff in GBSAOBCForce, NonbondedForce; write")

    def test_parameters_that_depend_on_another(self, reading: Any) -> None:
        system = self.made(reading)
        (nonbonded,) = (force for force in system.getForces() if type(force).__name__ == "NonbondedForce")
        nonbonded.addGlobalParameter("scale", 1.0)
        nonbonded.addParticleParameterOffset("scale", 0, 0.1, 0.0, 0.0)
        self.refused(reading, system, "are numbers, got some that depend on a global one; write them out")

    def test_the_remover_of_drift_has_no_energy(self, reading: Any) -> None:
        with_remover = reading.parameters_of(self.made(reading, removeCMMotion=True), origin="test")
        without = replace(alanine_dipeptide().molecule.parameters, origin="test")
        assert (with_remover.torsion_constant_K == without.torsion_constant_K).all()
