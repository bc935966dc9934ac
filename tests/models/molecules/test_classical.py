"""The classical energy of alanine dipeptide against the laws, golden numbers of OpenMM, and closed forms."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.molecules.bonded import torsion_energy
from models.molecules.classical import MolecularTarget, alanine_dipeptide
from models.molecules.force_field import ForceField, place
from models.molecules.frozen import FrozenMolecule, read_molecule
from models.molecules.generalised_born import screening
from models.molecules.nonbonded import pair_geometry
from models.molecules.parameters import ForceFieldParameters, as_arrays
from models.molecules.peptides import capped_alanine
from tests.laws.target_laws import FrameTargetLaws, minus_gradient, relative_error

NONE = np.zeros(0)


@cache
def target() -> MolecularTarget:
    return alanine_dipeptide()


def in_vacuum(parameters: ForceFieldParameters) -> ForceFieldParameters:
    return replace(parameters, charge_N=NONE, radius_N=NONE, scale_N=NONE)


def warm(rows: int, noise_nm: float = 0.004) -> Tensor:
    """The start, shaken, (B, D)."""
    space = target().space
    noise_BD = torch.randn((rows, space.dim), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return space.project(target().start_D + noise_nm * noise_BD)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[2] / "golden" / "ad2_classical.npz") as file:
        return {name: torch.tensor(file[name]) for name in file.files if name != "label"}


class TestAlanineDipeptide(FrameTargetLaws):
    def target(self) -> MolecularTarget:
        return target()

    def points(self) -> Tensor:
        return warm(5)

    def test_only_atoms_of_one_type_may_change_places(self) -> None:
        types, order = self.target().space.types, torch.arange(22)
        assert types is not None
        for pair in ((0, 2), (0, 3), (11, 13), (19, 20), (5, 15)):
            swapped = order.clone()
            swapped[list(pair)] = order[list(reversed(pair))]
            mapped_BD = self._configurations()[:, swapped].flatten(1)
            change = relative_error(self.target().energy(mapped_BD), self.target().energy(self.points()))
            assert (change < 1e-12) == (types[pair[0]] == types[pair[1]]), pair


class TestInVacuum(FrameTargetLaws):
    def target(self) -> MolecularTarget:
        molecule = replace(target().molecule, parameters=in_vacuum(target().molecule.parameters))
        return MolecularTarget(name="vacuum", molecule=molecule, temperature=350.0)

    def points(self) -> Tensor:
        return warm(3)


class TestGoldenNumbers:
    """Ten configurations in OpenMM's Reference platform: two basins and their mirror, heated ones, one with clashes."""

    @pytest.mark.parametrize(("prefix", "parameters"), [("", lambda p: p), ("vacuum_", in_vacuum)])
    def test_energy_and_force(self, golden: dict[str, Tensor], prefix: str, parameters: object) -> None:
        force_field = ForceField(parameters=parameters(target().molecule.parameters))  # type: ignore[operator]
        energy_B, force_BD = force_field.energy_and_force(golden["x_nm"].flatten(1))
        assert float((energy_B - golden[f"{prefix}energy_kj_mol"]).abs().max()) < 1e-9
        assert float((force_BD - golden[f"{prefix}force_kj_mol_nm"].flatten(1)).abs().max()) < 1e-8

    def test_float32(self, golden: dict[str, Tensor]) -> None:
        force_field = ForceField(parameters=target().molecule.parameters)
        energy_B, force_BD = force_field.energy_and_force(golden["x_nm"].flatten(1).float())
        assert (energy_B.dtype, force_BD.dtype) == (torch.float32, torch.float32)
        assert float((energy_B - golden["energy_kj_mol"]).abs().max()) < 2e-3
        assert float((force_BD - golden["force_kj_mol_nm"].flatten(1)).abs().max()) < 2e-1

    def test_the_target_is_in_thermal_units_at_300_kelvin(self, golden: dict[str, Tensor]) -> None:
        x_BD = golden["x_nm"].flatten(1)
        torch.testing.assert_close(target().energy(x_BD), golden["energy_kt"], rtol=0.0, atol=1e-9)
        hot = alanine_dipeptide(temperature=600.0)
        torch.testing.assert_close(hot.energy(x_BD), 0.5 * golden["energy_kt"], rtol=0.0, atol=1e-9)


class TestForces:
    def test_against_finite_differences(self) -> None:
        """Along random directions, with the error of central differences taken out by Richardson."""
        x_BD = warm(4)
        towards_BD = torch.randn(x_BD.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def slope_B(step: float) -> Tensor:
            ahead_B, behind_B = (target().energy(x_BD + sign * step * towards_BD) for sign in (1.0, -1.0))
            return (ahead_B - behind_B) / (2.0 * step)

        expected_B = (4.0 * slope_B(5e-5) - slope_B(1e-4)) / 3.0
        assert relative_error(-(target().score(x_BD) * towards_BD).sum(-1), expected_B) < 1e-7

    def test_in_close_encounters(self) -> None:
        """Atoms inside each other: every branch of the screening is met, and closed forms follow autograd there."""
        x_BD = warm(64, noise_nm=0.1)
        x_BD[:8, 21:24] = x_BD[:8, 15:18] + torch.linspace(0.002, 0.1, 8, dtype=torch.float64).unsqueeze(-1)
        pairs = pair_geometry(x_BD.t().unflatten(0, (-1, 3)), torch.tensor(target().molecule.parameters.pair_atoms_2P))
        assert float(pairs.r2_PB.min()) < 0.01**2
        row_error_B = (target().score(x_BD) - minus_gradient(target(), x_BD)).norm(dim=1) / target().score(x_BD).norm(
            dim=1
        )
        assert float(row_error_B.max()) < 1e-9

    def test_pieces_are_put_together_in_order(self) -> None:
        x_BD = warm(700)
        energy_B, score_BD = target().energy_and_score(x_BD)
        assert relative_error(energy_B[650:], target().energy(x_BD[650:])) < 1e-12
        assert relative_error(score_BD[650:], target().score(x_BD[650:])) < 1e-11
        assert not energy_B.requires_grad


def test_screening_is_an_integral_over_a_sphere() -> None:
    """Apart, touching, overlapping, screened inside the screening one, and screening one swallowed: by quadrature."""
    terms = place(target().molecule.parameters, torch.zeros(1, dtype=torch.float64)).generalised_born
    assert terms is not None
    r_B = torch.tensor([0.5, 0.22, 0.12, 0.05, 0.004], dtype=torch.float64)
    screened, screened_by = 0.1, 0.12
    x_N3B = torch.zeros(2, 3, len(r_B), dtype=torch.float64)
    x_N3B[1, 0] = r_B
    radii = torch.tensor([[screened, screened_by], [screened_by, screened]], dtype=torch.float64)[..., None, None]
    two = replace(terms, screened_2P1=radii[:, 0], screening_2P1=radii[:, 1])
    found_2PB, _ = screening(pair_geometry(x_N3B, torch.tensor([[0], [1]])), two, with_slope=False)
    for k, (own, other) in enumerate([(screened, screened_by), (screened_by, screened)]):
        inverse_M1 = torch.linspace(1.0 / 3.0, 1.0 / own, 400_001, dtype=torch.float64).unsqueeze(-1)
        rho_M1 = 1.0 / inverse_M1
        cosine_MB = ((rho_M1.square() + r_B.square() - other**2) / (2.0 * rho_M1 * r_B)).clamp(-1.0, 1.0)
        expected_B = torch.trapezoid(1.0 - cosine_MB, inverse_M1, dim=0)
        torch.testing.assert_close(found_2PB[k, 0], expected_B, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("degrees", [60.0, -120.0, 175.0])
def test_a_torsion_has_the_sign_of_iupac(degrees: float) -> None:
    phi = np.deg2rad(degrees)
    x_43 = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [np.cos(phi), np.sin(phi), 1.0]])
    values = {"torsion_periodicity_K": [3.0], "torsion_phase_K": [0.4], "torsion_constant_K": [2.5]}
    only = replace(
        target().molecule.parameters,
        torsion_atoms_K4=np.array([[0, 1, 2, 3]]),
        **{name: np.array(value) for name, value in values.items()},
    )
    x_N3B = torch.tensor(x_43).unsqueeze(-1)
    energy_B = torsion_energy(x_N3B, place(only, x_N3B).bonded)
    assert float(energy_B) == pytest.approx(2.5 * (1.0 + np.cos(3.0 * phi - 0.4)), rel=1e-12)


def test_two_atoms_on_a_spring() -> None:
    """No angles, no torsions, no solvent."""
    nothing = {"angle": 3, "torsion": 4}
    empty = {f"{kind}_atoms_K{n}": np.zeros((0, n), dtype=np.int64) for kind, n in nothing.items()}
    empty |= dict.fromkeys(("angle_K", "angle_constant_K"), NONE)
    empty |= dict.fromkeys(("torsion_periodicity_K", "torsion_phase_K", "torsion_constant_K"), NONE)
    spring = replace(
        in_vacuum(target().molecule.parameters),
        mass_N=np.ones(2),
        bond_atoms_K2=np.array([[0, 1]]),
        bond_length_K=np.array([0.1]),
        bond_constant_K=np.array([2.0]),
        **dict.fromkeys(("charge_product_P", "epsilon_P", "sigma_P"), np.zeros(1)),
        **empty,
    )
    x_BD = torch.tensor([[0.0, 0.0, 0.0, 0.3, 0.0, 0.0]], dtype=torch.float64)
    energy_B, force_BD = ForceField(parameters=spring).energy_and_force(x_BD)
    torch.testing.assert_close(energy_B, torch.tensor([0.04], dtype=torch.float64))
    torch.testing.assert_close(force_BD, torch.tensor([[0.4, 0.0, 0.0, -0.4, 0.0, 0.0]], dtype=torch.float64))


class TestNoFiniteEnergy:
    def test_all_atoms_in_one_place(self) -> None:
        assert target().energy(torch.zeros(2, 66)).tolist() == [torch.inf, torch.inf]

    def test_two_atoms_in_one_place(self) -> None:
        x_BD = warm(2)
        x_BD[1, :3] = x_BD[1, 30:33]
        energy_B, score_BD = target().energy_and_score(x_BD)
        assert torch.isfinite(energy_B).tolist() == [True, False]
        assert float(energy_B[1]) == torch.inf
        assert torch.isfinite(score_BD).all(dim=1).tolist() == [True, False]

    def test_a_straight_angle_has_a_finite_force(self) -> None:
        x_BD = warm(1)
        first, middle, last = target().molecule.parameters.angle_atoms_K3[0]
        x_BN3 = x_BD.unflatten(1, (-1, 3))
        x_BN3[:, last] = 2.0 * x_BN3[:, middle] - x_BN3[:, first]
        assert torch.isfinite(target().score(x_BD)).all()


class TestMessages:
    def test_coordinates_in_angstrom(self) -> None:
        target().require_nanometres(warm(3))
        with pytest.raises(ValueError, match=r"in nanometres, got bonds 10(\.\d)? times .* write x / 10"):
            target().require_nanometres(10.0 * warm(3))

    def test_a_temperature_below_zero(self) -> None:
        with pytest.raises(ValueError, match=r"kelvin is positive, got -1.0; write"):
            alanine_dipeptide(temperature=-1.0)

    def test_a_topology_of_another_molecule(self) -> None:
        with pytest.raises(ValueError, match=r"of one molecule, got 32 atoms, 22 .* same order"):
            replace(target().molecule, topology=capped_alanine(2))

    def test_atoms_in_another_order(self) -> None:
        molecule = target().molecule
        bonds = tuple((21 - i, 21 - j) for i, j in molecule.topology.bonds)
        backwards = {name: getattr(molecule.topology, name)[::-1] for name in ("names", "elements", "residue_names")}
        numbers = molecule.topology.residue_numbers[::-1]
        turned = replace(molecule.topology, **backwards, residue_numbers=numbers, bonds=bonds)
        with pytest.raises(ValueError, match=r"bonds are bonds of the topology, got .* same order"):
            replace(molecule, topology=turned)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sigma_P": np.ones(3)}, r"sigma_P must have shape \(231,\), got \(3,\); freeze"),
            ({"bond_length_K": np.full(21, np.nan)}, "bond_length_K must be finite, got NaN"),
            ({"angle_atoms_K3": np.full((36, 3), 22)}, "angle_atoms_K3 must name atoms 0 to 21, got 22 to 22"),
            ({"radius_N": NONE}, r"radius_N must have shape \(22,\), got \(0,\)"),
        ],
    )
    def test_parameters_that_do_not_fit(self, change: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(target().molecule.parameters, **change)


class TestFiles:
    def test_a_molecule_comes_back_as_it_was(self, tmp_path: Path) -> None:
        paths = [tmp_path / "first.npz", tmp_path / "second.npz"]
        for path in paths:
            target().molecule.save(path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        again = read_molecule(paths[0])
        assert again.topology == target().topology == capped_alanine(1)
        assert isinstance(again, FrozenMolecule)
        arrays = as_arrays(target().molecule.parameters)
        assert {name for name, array in as_arrays(again.parameters).items() if (array != arrays[name]).any()} == set()

    @pytest.mark.parametrize("keep", [0, 100, 5000])
    def test_a_damaged_file(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "damaged.npz"
        target().molecule.save(path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"damaged\.npz must hold arrays by name, got something damaged .* freeze"):
            read_molecule(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"read from a file, got none at .*gone\.npz; freeze"):
            read_molecule(tmp_path / "gone.npz")

    @pytest.mark.parametrize("without", ["epsilon_P", "bonds"])
    def test_a_file_without_an_array(self, tmp_path: Path, without: str) -> None:
        path = tmp_path / "part.npz"
        target().molecule.save(path)
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != without}
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=f"got none of {without}; "):
            read_molecule(path)


def test_the_start_is_an_l_amino_acid_near_a_minimum() -> None:
    assert float(target().score(target().start_D[None]).abs().max()) < 1.0
    x_N3 = target().start_D.unflatten(0, (-1, 3))
    for centre, a, b, c in target().topology.chirality_centres:
        u, v, w = (x_N3[k] - x_N3[centre] for k in (a, b, c))
        assert float(torch.linalg.cross(u, v) @ w) > 0.0
