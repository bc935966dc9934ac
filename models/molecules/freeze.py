"""Make a parameter file from OpenMM: python -m models.molecules.freeze --system alanine-dipeptide"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.molecules.building import built
from models.molecules.frozen import DATA, FrozenMolecule
from models.molecules.peptides import capped_alanine

SYSTEMS = {"alanine-dipeptide": 1, "alanine-tetrapeptide": 3}
"""Names, and how many alanines stand between the caps."""


def freeze(name: str) -> FrozenMolecule:
    """The molecule of a name in `SYSTEMS`.

    Errors: SystemExit where OpenMM is missing.
    """
    try:
        from models.molecules.openmm_system import frozen
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"error: parameters are frozen from OpenMM, which is not installed ({error}); "
            "write pip install '.[molecules]'"
        ) from error
    topology = capped_alanine(SYSTEMS[name])
    return frozen(topology, built(topology))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    parser.add_argument(
        "--output", type=Path, default=None, help="the file; models/molecules/data/<system>.npz if left out"
    )
    chosen = parser.parse_args()
    path = chosen.output or DATA / f"{chosen.system.replace('-', '_')}.npz"
    molecule = freeze(chosen.system)
    molecule.save(path)
    print(f"{molecule.topology.atoms} atoms, {molecule.parameters.origin}: {path}")


if __name__ == "__main__":
    main()
