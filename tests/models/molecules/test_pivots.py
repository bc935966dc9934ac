"""Pivot moves: exact on a molecule whose torsion is known by quadrature, and runs that go on after a kill.

Shapes: C chains, D coordinates, N atoms.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Work
from models.estimators import free_energy_difference
from models.molecules.building import built
from models.molecules.classical import alanine_dipeptide
from models.molecules.geometry import dihedrals, particles_of
from models.molecules.peptides import capped_alanine
from models.molecules.topology import MolecularTopology
from models.reference import pivot_drawing
from models.reference.hmc import Chains
from models.reference.pivots import Molecule, PivotSettings, pivot_once, pivots_of, start_of, turned
from models.reference.samples import reference_samples
from models.targets import dw4
from tests.models.molecules.four_atoms import PHI, TOPOLOGY, FourAtoms, density_on_grid, torsion

AD2 = capped_alanine()
QUICK = PivotSettings(chains=64, leapfrog_steps=4, step_size=0.05, burn_in=60, thinning=2)
SIZES = {"n_train": 512, "n_validation": 64, "n_test": 64, "progress": False, "settings": QUICK}


def wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_angles(phi_C: Tensor) -> Chains:
    """Chains of four atoms with those dihedrals and one shape otherwise."""
    target = FourAtoms()
    (pivot,) = pivots_of(TOPOLOGY)
    start_CD = target.start_D.expand(len(phi_C), -1)
    turn_C = dihedrals(start_CD, [PHI])[:, 0] - phi_C
    if pivot.axis == PHI[1:3]:
        turn_C = -turn_C
    x_CD = target.space.project(turned(start_CD, pivot, turn_C))
    energy_C, score_CD = target.energy(x_CD), target.score(x_CD)
    return Chains(x_CD=x_CD, energy_C=energy_C, score_CD=score_CD, step_size=0.05, work=Work())


def exact_angles(n: int) -> Tensor:
    """Draws of the dihedral from its own density, by the inverse of its cumulative sum."""
    phi, probability = density_on_grid()
    cells = np.searchsorted(probability.cumsum(), np.random.default_rng(3).random(n)).clip(max=len(phi) - 1)
    return torch.from_numpy(phi[cells])


def test_pivots_of_alanine_dipeptide_turn_the_lighter_side() -> None:
    phi, psi = pivots_of(AD2)
    assert (phi.kind, phi.axis, phi.turning) == ("phi", (8, 6), tuple(range(8)))
    assert (psi.kind, psi.axis, psi.turning) == ("psi", (8, 14), tuple(range(14, 22)))
    assert [pivot.kind for pivot in pivots_of(capped_alanine(2))] == ["phi", "psi", "phi", "psi"]


def test_a_bond_in_a_ring_has_no_pivot() -> None:
    """The phi of a proline-like residue."""
    ring = MolecularTopology(
        names=("C", "N", "CA", "CD", "C", "N"),
        elements=("C", "N", "C", "C", "C", "N"),
        residue_names=("X", *("PRO",) * 4, "Y"),
        residue_numbers=(1, 2, 2, 2, 2, 3),
        bonds=((0, 1), (1, 2), (1, 3), (2, 3), (2, 4), (4, 5)),
    )
    assert list(ring.phi) == list(ring.psi) == [2]
    assert [pivot.kind for pivot in pivots_of(ring)] == ["psi"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_pivot_changes_its_dihedral_by_its_angle_and_no_distance_on_either_side(which: int) -> None:
    pivot = pivots_of(AD2)[which]
    x_CD = torch.from_numpy(built(AD2)).flatten().expand(5, -1)
    angle_C = torch.tensor([-3.0, -0.4, 0.0, 1.0, 2.5], dtype=torch.float64)
    y_CD = turned(x_CD, pivot, angle_C)
    both = [AD2.phi[2], AD2.psi[2]]
    change_CK = wrapped(dihedrals(y_CD, both) - dihedrals(x_CD, both))
    assert change_CK[:, 1 - which].abs().max() < 1e-12
    assert wrapped(change_CK[:, which].abs() - angle_C.abs()).abs().max() < 1e-12
    for side in (list(pivot.turning), [k for k in range(22) if k not in pivot.turning] + list(pivot.axis)):
        x_Cn3, y_Cn3 = particles_of(x_CD)[:, side], particles_of(y_CD)[:, side]
        torch.testing.assert_close(torch.cdist(y_Cn3, y_Cn3), torch.cdist(x_Cn3, x_Cn3), rtol=0, atol=1e-7)
    torch.testing.assert_close(turned(y_CD, pivot, -angle_C), x_CD, rtol=0, atol=1e-14)


@pytest.mark.parametrize("which", [0, 1])
def test_a_pivot_keeps_volume(which: int) -> None:
    pivot = pivots_of(AD2)[which]
    x_D = torch.from_numpy(built(AD2)).flatten()
    angle_1 = torch.tensor([0.9], dtype=torch.float64)
    jacobian_DD = torch.func.jacrev(lambda x_D: turned(x_D[None], pivot, angle_1)[0])(x_D)
    assert torch.linalg.det(jacobian_DD).item() == pytest.approx(1.0, abs=1e-12)


def test_one_pivot_leaves_the_exact_density_as_it_is_and_flows_balance() -> None:
    """Bins of the dihedral before and after: as many chains go from a to b as from b to a."""
    n, bins = 20_000, 8
    phi_C = exact_angles(n)
    before = with_angles(phi_C)
    assert wrapped(dihedrals(before.x_CD, [PHI])[:, 0] - phi_C).abs().max() < 1e-8
    (pivot,) = pivots_of(TOPOLOGY)
    after, acceptance = pivot_once(FourAtoms(), before, pivot, generator())
    phi, probability = density_on_grid()
    edges = np.linspace(-math.pi, math.pi, bins + 1)
    expected = np.histogram(phi, edges, weights=probability)[0] * n
    before_C, after_C = (np.digitize(dihedrals(c.x_CD, [PHI])[:, 0].numpy(), edges[1:-1]) for c in (before, after))
    counts = np.bincount(after_C, minlength=bins)
    assert ((counts - expected) ** 2 / expected).sum() < 30.0  # the chi square of 7 beyond 1e-4
    flow = np.zeros((bins, bins))
    np.add.at(flow, (before_C, after_C), 1)
    assert flow.sum() - flow.trace() > 1000
    assert (np.abs(flow - flow.T) <= 4.5 * np.sqrt(flow + flow.T)).all()
    u = torsion(torch.from_numpy(phi[::10]))
    accepted = (u[:, None] - u[None, :]).clamp(max=0).exp().mean(1).numpy()
    weight = np.exp(-u.numpy())
    assert acceptance == pytest.approx(float((weight * accepted).sum() / weight.sum()), abs=4 * 0.5 / n**0.5)


def test_energies_stay_those_of_the_positions() -> None:
    target, chains = FourAtoms(), with_angles(exact_angles(50))
    (pivot,) = pivots_of(TOPOLOGY)
    for _ in range(5):
        chains, _ = pivot_once(target, chains, pivot, generator())
    torch.testing.assert_close(chains.energy_C, target.energy(chains.x_CD))
    assert chains.work == Work(energy_evaluations=5 * 50)
    assert particles_of(chains.x_CD).mean(1).abs().max() < 1e-12


def test_samples_of_the_chain_follow_the_known_density() -> None:
    """From one configuration: all basins, in their shares, within four errors of independent draws."""
    target = FourAtoms()
    assert isinstance(target, Molecule)
    settings = replace(QUICK, chains=512, leapfrog_steps=6, thinning=12)
    samples = reference_samples(target, **{**SIZES, "n_train": 4096, "settings": settings})
    phi_B = dihedrals(samples.train_BD.double(), [PHI])[:, 0].numpy()
    phi, probability = density_on_grid()
    independent = samples.diagnostics["effective_n"]
    assert independent > 1000
    for low, high in ((0.0, math.pi), (-2.0, -1.0), (1.0, 2.2), (-math.pi, -1.6)):
        share = probability[(phi > low) & (phi < high)].sum()
        found = ((phi_B > low) & (phi_B < high)).mean()
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / independent), (low, high)
    found = samples.diagnostics
    assert 0.75 < found["acceptance"] < 0.99
    assert 0.05 < found["acceptance_phi"] < 0.6
    assert "acceptance_psi" not in found
    assert found["split_r_hat"] < 1.05
    assert found["share_naturally_handed"] == 1.0
    assert abs(found["virial"] - 9.0) < 5 * found["virial_error"] * (found["autocorrelation_draws"] ** 0.5)
    assert {"cycles_per_independent_energy", "cycles_per_independent_sin_phi_2"} <= found.keys()
    assert samples.source.startswith("HMC with pivots on four atoms")


def test_a_molecule_without_a_start_is_built() -> None:
    class Bare:
        topology = AD2

    start_D = start_of(Bare())  # type: ignore[arg-type]
    assert torch.equal(start_D, torch.from_numpy(built(AD2)).flatten())
    assert torch.equal(start_of(FourAtoms()), FourAtoms().start_D)


@pytest.mark.slow
def test_alanine_dipeptide_has_its_known_free_energy_and_acceptances() -> None:
    """Against a long run of another program's sampler on the same energy: 3.921 +- 0.043 kT, mean energy -23.86 kT."""
    target = alanine_dipeptide()
    settings = PivotSettings(chains=128)
    samples = reference_samples(target, n_train=2400, n_validation=400, n_test=272, progress=False, settings=settings)
    found = samples.diagnostics
    assert found["acceptance"] == pytest.approx(0.90, abs=0.03)
    assert found["acceptance_phi"] == pytest.approx(0.20, abs=0.02)
    assert found["acceptance_psi"] == pytest.approx(0.24, abs=0.02)
    assert found["mean_energy"] == pytest.approx(-23.86, abs=4 * found["mean_energy_error"])
    x_BD = torch.cat([samples.train_BD, samples.validation_BD, samples.test_BD]).double()
    phi_B = dihedrals(x_BD, [AD2.phi[2]])[:, 0].numpy()
    error = 1 / math.sqrt(found["effective_n"] * 0.0194)
    assert free_energy_difference(phi_B, np.zeros(len(phi_B))) == pytest.approx(3.921, abs=3 * error)


class Killed(Exception):
    pass


@pytest.mark.filterwarnings("ignore:chains of four atoms have not mixed")
def test_a_run_that_was_killed_goes_on_to_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(QUICK, burn_in=10)
    sizes = {**SIZES, "settings": settings}
    whole = reference_samples(FourAtoms(), cache_dir=tmp_path / "whole", **sizes)
    monkeypatch.setattr(pivot_drawing, "SECONDS_BETWEEN_SAVES", 0.0)
    calls: list[int] = []
    advance = pivot_drawing._advance

    def stops(*arguments: object) -> None:
        calls.append(1)
        if len(calls) in (6, 21):
            raise Killed
        advance(*arguments)

    monkeypatch.setattr(pivot_drawing, "_advance", stops)
    for _ in range(2):
        with pytest.raises(Killed):
            reference_samples(FourAtoms(), cache_dir=tmp_path / "killed", **sizes)
        assert [path.suffix for path in (tmp_path / "killed").iterdir()] == [".partial"]
    again = reference_samples(FourAtoms(), cache_dir=tmp_path / "killed", **sizes)
    cycles = settings.burn_in + settings.thinning * 10
    assert len(calls) == cycles + 2
    for name in ("train_BD", "validation_BD", "test_BD"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert again.diagnostics == whole.diagnostics
    assert again.energy_evaluations == whole.energy_evaluations
    assert [path.suffix for path in (tmp_path / "killed").iterdir()] == [".npz"]
    reference_samples(FourAtoms(), cache_dir=tmp_path / "killed", **sizes)
    assert len(calls) == cycles + 2


@pytest.mark.filterwarnings("ignore:chains of four atoms have not mixed")
def test_work_counts_what_was_called() -> None:
    samples = reference_samples(FourAtoms(), **{**SIZES, "settings": replace(QUICK, burn_in=3, thinning=1)})
    chains, cycles = 52 + 7 + 7, 3 + 10  # whole chains for each set, of ten draws
    assert samples.energy_evaluations == chains * (1 + 2 * cycles)
    assert chains * (1 + 3 * cycles) <= samples.force_evaluations <= chains * (1 + 7 * cycles)


def test_what_cannot_be_sampled_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pivots turn the bonds of molecules, got dw4"):
        reference_samples(dw4(), **SIZES)
    with pytest.raises(ValueError, match="at least 1"):
        PivotSettings(thinning=0)
    with pytest.raises(ValueError, match=r"target_acceptance must lie in \(0, 1\)"):
        PivotSettings(target_acceptance=1.0)

    class Nowhere(FourAtoms):
        @property
        def start_D(self) -> Tensor:
            return torch.full((12,), math.nan)

    with pytest.raises(ValueError, match="start where energy and force are finite"):
        reference_samples(Nowhere(), **SIZES)
