"""Parameters from an OpenMM System, and Systems of capped peptides of alanine. Needs OpenMM.

Shapes: N atoms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from models.molecules.frozen import FrozenMolecule
from models.molecules.parameters import ForceFieldParameters
from models.molecules.topology import MolecularTopology

FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
"""Files that OpenMM brings with it."""
KNOWN = ("HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce", "GBSAOBCForce")
WITHOUT_ENERGY = ("CMMotionRemover",)


def parameters_of(system: openmm.System, *, origin: str) -> ForceFieldParameters:
    """Everything that the energy of a System depends on.

    Errors: ValueError for constraints, virtual sites, cutoffs, periodic boxes, and terms that are not in `KNOWN`.
    """
    _require_plain(system)
    forces = {type(force).__name__: force for force in _terms(system)}
    atoms = system.getNumParticles()
    nonbonded = forces.get("NonbondedForce", openmm.NonbondedForce())
    return ForceFieldParameters(
        origin=origin,
        mass_N=np.array([_number(system.getParticleMass(i)) for i in range(atoms)]),
        **_bonded(forces),
        **_pairs(nonbonded, atoms),
        **_solvent(forces.get("GBSAOBCForce")),
    )


def system_of(topology: MolecularTopology) -> openmm.System:
    """The topology in `FORCE_FIELD`: no cutoff, no constraints."""
    settings = {"nonbondedMethod": app.NoCutoff, "constraints": None, "rigidWater": False, "removeCMMotion": False}
    return app.ForceField(*FORCE_FIELD).createSystem(openmm_topology(topology), **settings)


def openmm_topology(topology: MolecularTopology) -> app.Topology:
    """The same molecule as OpenMM writes it down."""
    made = app.Topology()
    chain = made.addChain()
    residues: dict[int, Any] = {}
    rows = zip(topology.names, topology.elements, topology.residue_names, topology.residue_numbers, strict=True)
    for name, symbol, residue_name, number in rows:
        if number not in residues:
            residues[number] = made.addResidue(residue_name, chain)
        made.addAtom(name, app.Element.getBySymbol(symbol), residues[number])
    made_atoms = list(made.atoms())
    for i, j in topology.bonds:
        made.addBond(made_atoms[i], made_atoms[j])
    return made


def frozen(topology: MolecularTopology, guess_N3: np.ndarray) -> FrozenMolecule:
    """The molecule in `FORCE_FIELD`, started from the minimum next to a guess in nm, rounded to 1e-6 nm."""
    system = system_of(topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(guess_N3)
    openmm.LocalEnergyMinimizer.minimize(context, 0.1)
    start_N3 = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    origin = f"OpenMM {openmm.Platform.getOpenMMVersion()}, {' + '.join(FORCE_FIELD)}"
    return FrozenMolecule(
        topology=topology,
        parameters=parameters_of(system, origin=origin),
        start_N3=np.round(start_N3 - start_N3.mean(0), 6),
    )


def _number(value: Any) -> float:
    """In OpenMM's own units: nm, kJ/mol, radians, dalton, elementary charges."""
    return float(value.value_in_unit_system(unit.md_unit_system)) if unit.is_quantity(value) else float(value)


def _terms(system: openmm.System) -> list[openmm.Force]:
    return [force for force in system.getForces() if type(force).__name__ not in WITHOUT_ENERGY]


def _require_plain(system: openmm.System) -> None:
    names = [type(force).__name__ for force in _terms(system)]
    unknown = [name for name in names if name not in KNOWN]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"a System has each of {', '.join(KNOWN)} at most once and no other term, got {', '.join(names)}; "
            "choose a force field of these terms (implicit water by amber99_obc.xml, not implicit/obc2.xml)"
        )
    virtual = sum(system.isVirtualSite(i) for i in range(system.getNumParticles()))
    if system.getNumConstraints() or virtual:
        raise ValueError(
            f"all atoms of a System move freely, got {system.getNumConstraints()} constraints and {virtual} virtual "
            "sites; write createSystem(..., constraints=None, rigidWater=False)"
        )
    periodic = [type(force).__name__ for force in _terms(system) if force.usesPeriodicBoundaryConditions()]
    cut = [type(force).__name__ for force in _terms(system) if getattr(force, "getNonbondedMethod", lambda: 0)() != 0]
    if periodic or cut:
        raise ValueError(
            f"a molecule is alone in space and all its pairs interact, got a box or a cutoff in "
            f"{', '.join(sorted({*periodic, *cut}))}; write createSystem(..., nonbondedMethod=NoCutoff)"
        )


def _bonded(forces: dict[str, Any]) -> dict[str, Any]:
    bonds = forces.get("HarmonicBondForce", openmm.HarmonicBondForce())
    angles = forces.get("HarmonicAngleForce", openmm.HarmonicAngleForce())
    torsions = forces.get("PeriodicTorsionForce", openmm.PeriodicTorsionForce())
    bond_rows = [bonds.getBondParameters(k) for k in range(bonds.getNumBonds())]
    angle_rows = [angles.getAngleParameters(k) for k in range(angles.getNumAngles())]
    torsion_rows = [torsions.getTorsionParameters(k) for k in range(torsions.getNumTorsions())]
    torsion_rows = [row for row in torsion_rows if _number(row[6]) != 0.0]
    return {
        "bond_atoms_K2": np.array([row[:2] for row in bond_rows], dtype=np.int64).reshape(-1, 2),
        "bond_length_K": np.array([_number(row[2]) for row in bond_rows]),
        "bond_constant_K": np.array([_number(row[3]) for row in bond_rows]),
        "angle_atoms_K3": np.array([row[:3] for row in angle_rows], dtype=np.int64).reshape(-1, 3),
        "angle_K": np.array([_number(row[3]) for row in angle_rows]),
        "angle_constant_K": np.array([_number(row[4]) for row in angle_rows]),
        "torsion_atoms_K4": np.array([row[:4] for row in torsion_rows], dtype=np.int64).reshape(-1, 4),
        "torsion_periodicity_K": np.array([float(row[4]) for row in torsion_rows]),
        "torsion_phase_K": np.array([_number(row[5]) for row in torsion_rows]),
        "torsion_constant_K": np.array([_number(row[6]) for row in torsion_rows]),
    }


def _pairs(nonbonded: openmm.NonbondedForce, atoms: int) -> dict[str, Any]:
    """Combined by Lorentz and Berthelot, then the exceptions."""
    if nonbonded.getNumParticleParameterOffsets() or nonbonded.getNumExceptionParameterOffsets():
        raise ValueError(
            "parameters of a System are numbers, got some that depend on a global one; write them out and drop "
            "the offsets"
        )
    rows = [nonbonded.getParticleParameters(i) for i in range(nonbonded.getNumParticles())]
    charge_N, sigma_N, epsilon_N = np.array([[_number(value) for value in row] for row in rows]).reshape(-1, 3).T
    first_P, second_P = np.triu_indices(atoms, 1)
    if not rows:
        nothing = np.zeros(len(first_P))
        return {"charge_product_P": nothing, "sigma_P": nothing + 1.0, "epsilon_P": nothing}
    place = {pair: k for k, pair in enumerate(zip(first_P.tolist(), second_P.tolist(), strict=True))}
    charge_product_P = charge_N[first_P] * charge_N[second_P]
    sigma_P = 0.5 * (sigma_N[first_P] + sigma_N[second_P])
    epsilon_P = np.sqrt(epsilon_N[first_P] * epsilon_N[second_P])
    for k in range(nonbonded.getNumExceptions()):
        i, j, *values = nonbonded.getExceptionParameters(k)
        at = place[min(i, j), max(i, j)]
        charge_product_P[at], sigma_P[at], epsilon_P[at] = (_number(value) for value in values)
    return {"charge_product_P": charge_product_P, "sigma_P": sigma_P, "epsilon_P": epsilon_P}


def _solvent(born: openmm.GBSAOBCForce | None) -> dict[str, Any]:
    rows = [] if born is None else [born.getParticleParameters(i) for i in range(born.getNumParticles())]
    columns = np.array([[_number(value) for value in row] for row in rows]).reshape(-1, 3).T
    return {
        **dict(zip(("charge_N", "radius_N", "scale_N"), columns, strict=True)),
        "solute_dielectric": 1.0 if born is None else _number(born.getSoluteDielectric()),
        "solvent_dielectric": 1.0 if born is None else _number(born.getSolventDielectric()),
        "surface_energy": 0.0 if born is None else _number(born.getSurfaceAreaEnergy()),
    }
