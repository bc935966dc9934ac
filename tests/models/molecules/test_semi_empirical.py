"""GFN2-xTB of alanine dipeptide against golden numbers, and what a pool of processes must keep.

Processes start in a second or two, so that all tests share two pools.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.contracts import Target
from models.molecules.semi_empirical import SemiEmpiricalTarget, alanine_dipeptide_xtb
from models.molecules.topology import MolecularTopology
from tests.laws.target_laws import relative_error

needs_tblite = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason="tblite is not installed: pip install '.[molecules]'"
)


@pytest.fixture(scope="module")
def target() -> Iterator[SemiEmpiricalTarget]:
    made = alanine_dipeptide_xtb(processes=1)
    yield made
    made.pool.close()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[2] / "golden" / "ad2_gfn2.npz") as file:
        found = {name: torch.tensor(file[name]) for name in file.files}
    return {**found, "x_BD": found["x_nm"].flatten(1)}


@needs_tblite
class TestAlanineDipeptide:
    def test_golden_numbers(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        energy_B, score_BD = target.energy_and_score(golden["x_BD"])
        assert float((energy_B + target.energy_zero - golden["energy_kt"]).abs().max()) < 1e-5
        assert float((score_BD - golden["force_kt_nm"].flatten(1)).abs().max()) < 1e-2
        assert float(target.space.project(score_BD).sub(score_BD).abs().max()) < 1e-10

    def test_it_starts_near_a_minimum(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        started = float(target.energy(target.start_D[None])) + target.energy_zero
        assert float(golden["energy_kt"].min()) - 10.0 < started < float(golden["energy_kt"].min()) + 10.0

    def test_it_fulfils_the_protocol(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        assert isinstance(target, Target)
        x_BD = golden["x_BD"][:2].float()
        energy_B, score_BD = target.energy(x_BD), target.score(x_BD)
        assert (energy_B.shape, energy_B.dtype, score_BD.dtype) == ((2,), torch.float32, torch.float32)
        assert float((energy_B.double() + target.energy_zero - golden["energy_kt"][:2]).abs().max()) < 1e-3
        assert target.energy(x_BD[:0]).shape == (0,)
        assert target.energy_flops > 1_000_000
        with pytest.raises(ValueError, match="66"):
            target.energy(torch.zeros(3, 65))

    def test_the_score_is_minus_the_gradient(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        """By automatic differentiation, and by a central difference along one direction."""
        x_BD = golden["x_BD"][3:4].clone().requires_grad_()
        (gradient_BD,) = torch.autograd.grad(3.0 * target.energy(x_BD).sum(), x_BD)
        score_BD = target.score(x_BD.detach())
        assert relative_error(gradient_BD, -3.0 * score_BD) < 1e-12
        towards_BD = torch.randn((1, 66), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = 2e-5
        both_2D = torch.cat([x_BD + step * towards_BD, x_BD - step * towards_BD]).detach()
        ahead, behind = target.energy(both_2D)
        assert float((ahead - behind) / (2.0 * step)) == pytest.approx(-float((score_BD * towards_BD).sum()), abs=0.05)

    def test_there_is_no_second_derivative(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        x_BD = golden["x_BD"][:1].clone().requires_grad_()
        (gradient_BD,) = torch.autograd.grad(target.energy(x_BD).sum(), x_BD, create_graph=True)
        for first_BD in (gradient_BD, target.score(x_BD)):
            with pytest.raises(RuntimeError, match=r"first derivatives only, got a derivative of the score; write"):
                first_BD.square().sum().backward()

    def test_failures_are_infinite_and_counted(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        x_BD = golden["x_BD"][:4].clone()
        x_BD[1] = 0.0
        x_BD[2] = torch.nan
        before, x_BD = (target.pool.evaluated, target.pool.failed), x_BD.requires_grad_()
        energy_B = target.energy(x_BD)
        assert (target.pool.evaluated - before[0], target.pool.failed - before[1]) == (4, 2)
        assert torch.isfinite(energy_B).tolist() == [True, False, False, True]
        assert (energy_B[1:3] == torch.inf).all()
        score_BD = target.score(x_BD.detach())
        assert (score_BD[1:3] == 0.0).all()
        assert (score_BD[[0, 3]].abs().amax(dim=1) > 1.0).all()

    def test_numbers_do_not_depend_on_the_pool(self, target: SemiEmpiricalTarget, golden: dict[str, Tensor]) -> None:
        """Not on how many processes share the rows, nor on what a process did before."""
        x_BD = golden["x_BD"]
        two = replace(target, processes=2)
        try:
            backwards = two.energy_and_score(x_BD.flip(0))
        finally:
            two.pool.close()
        for found, expected in zip(backwards, target.energy_and_score(x_BD), strict=True):
            assert torch.equal(found.flip(0), expected)

    def test_a_pool_opens_again(self, golden: dict[str, Tensor]) -> None:
        gas = replace(alanine_dipeptide_xtb(), solvent=None, energy_zero=0.0)
        first = gas.energy(golden["x_BD"][:1])
        gas.pool.close()
        gas.pool.close()
        assert torch.equal(gas.energy(golden["x_BD"][:1]), first)
        gas.pool.close()
        assert abs(float(first) - float(golden["energy_kt"][0])) > 10.0

    def test_a_pool_without_processes(self) -> None:
        with pytest.raises(ValueError, match="at least one process, got 0; write"):
            alanine_dipeptide_xtb(processes=0)


def test_an_element_without_a_number() -> None:
    topology = MolecularTopology(
        names=("A", "B"), elements=("H", "Xe"), residue_names=("X", "X"), residue_numbers=(1, 1), bonds=((0, 1),)
    )
    with pytest.raises(ValueError, match="got Xe; add"):
        SemiEmpiricalTarget(name="xenon", topology=topology, start_N3=np.zeros((2, 3)))


def test_without_tblite_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"which is not installed; write pip install '\.\[molecules\]'"):
        alanine_dipeptide_xtb()
