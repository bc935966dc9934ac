"""Energy and force of alanine dipeptide: a batch in torch, against OpenMM's Reference platform and against autograd.

Shapes: B configurations, D = 3 N coordinates.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import Call, device, header, row
from harness.allocator import keep_freed_memory
from models.molecules.classical import MolecularTarget, alanine_dipeptide

BATCH = 1000
SHAKEN_NM = 0.005


def configurations(target: MolecularTarget) -> Tensor:
    """The start, shaken, (B, D) in float64."""
    noise_BD = torch.randn((BATCH, target.space.dim), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return target.space.project(target.start_D + SHAKEN_NM * noise_BD)


def in_turn(target: MolecularTarget, x_BD: Tensor) -> Callable[[], Tensor]:
    """Energies in kT by OpenMM's Reference platform (double precision, one thread), each with its force."""
    import openmm

    from models.molecules.openmm_system import system_of

    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system_of(target.topology), openmm.VerletIntegrator(0.001), platform)
    x_BN3 = x_BD.unflatten(1, (-1, 3)).numpy()

    def energies() -> Tensor:
        found = []
        for x_N3 in x_BN3:
            context.setPositions(x_N3)
            state = context.getState(energy=True, forces=True)
            state.getForces(asNumpy=True)
            found.append(state.getPotentialEnergy()._value)
        return torch.tensor(found, dtype=torch.float64) / target.thermal_energy

    return energies


def by_autograd(target: MolecularTarget, x_BD: Tensor) -> Call:
    """Energy and force from one backward pass through the energy."""

    def both() -> tuple[Tensor, Tensor]:
        leaf_BD = x_BD.clone().requires_grad_()
        energy_B = target.energy(leaf_BD)
        return energy_B.detach(), torch.autograd.grad(energy_B.sum(), leaf_BD)[0]

    return both


def main() -> None:
    target = alanine_dipeptide()
    x_BD = configurations(target)
    header(f"{target.name}: energy and force of {BATCH} configurations", slow="this way")
    for dtype in (torch.float64, torch.float32):
        x = x_BD.to(device(), dtype)
        ours = lambda x=x: target.energy_and_score(x)  # noqa: E731
        if importlib.util.find_spec("openmm") is None:
            print("OpenMM is not installed: pip install '.[molecules]'")
        else:
            theirs = in_turn(target, x_BD)
            error = float((target.energy(x).double().cpu() - theirs()).abs().max())
            row(f"OpenMM Reference, here {str(dtype)[6:]} ({error:.0e} kT apart)", theirs, ours, repeats=5)
        row(f"one backward pass, {str(dtype)[6:]}", by_autograd(target, x), ours, repeats=5)


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    main()
