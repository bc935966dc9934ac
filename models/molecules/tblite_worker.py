"""Semi-empirical energies in a process of their own. Needs tblite, which is imported there alone; knows no torch.

Shapes: N atoms. Units: bohr, Hartree.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is computed.

    Attributes:
        atomic_numbers: of each atom. solvent: of the surface-area generalised Born model, or None for the gas phase.
        accuracy: of the self-consistent charges; 1 is tblite's own, smaller is tighter.
    """

    atomic_numbers: tuple[int, ...]
    solvent: str | None
    accuracy: float
    parametrisation: str = "GFN2-xTB"


_CALCULATOR: list[Any] = []
"""Of this process, once it has been started."""


def start(method: Method) -> None:
    """Make the calculator of this process, which works on one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from tblite.interface import Calculator

    somewhere_N3 = 2.0 * np.arange(3.0 * len(method.atomic_numbers)).reshape(-1, 3)
    calculator = Calculator(method.parametrisation, np.array(method.atomic_numbers), somewhere_N3)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", method.accuracy)
    if method.solvent is not None:
        calculator.add("gbsa-solvation", method.solvent)
    _CALCULATOR[:] = [calculator]


def evaluate(x_N3: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Energy and its gradient (N, 3), or None where charges do not become self-consistent.

    Nothing is carried over from one configuration to the next, so that each energy is a function of its own alone.
    """
    (calculator,) = _CALCULATOR
    if not np.isfinite(x_N3).all():
        return None
    try:
        calculator.update(x_N3)
        result = calculator.singlepoint()
        energy, gradient_N3 = float(result.get("energy")), np.asarray(result.get("gradient"))
    except RuntimeError:
        return None
    return (energy, gradient_N3) if np.isfinite(energy) and np.isfinite(gradient_N3).all() else None
