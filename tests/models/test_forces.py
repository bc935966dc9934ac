"""Forces at training data: the target's scores, computed once where they are dear, whatever interrupts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.reference import forces
from models.reference.forces import forces_at
from models.targets import TargetOfEnergy, gmm4
from tests.models.test_own_targets import PLANE, ring


@dataclass(frozen=True, kw_only=True)
class DearRing(TargetOfEnergy):
    """Counts the rows that it is asked for, and fails where one is beyond the end of its world."""

    asked: list[int] = field(default_factory=list)
    end: list[float] = field(default_factory=lambda: [9.0])
    energy_flops: int = 10**9

    def score(self, x_BD: Tensor) -> Tensor:
        if float(x_BD.abs().max()) > self.end[0]:
            raise KeyboardInterrupt
        self.asked.append(len(x_BD))
        return super().score(x_BD)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> DearRing:
    monkeypatch.setattr(forces, "ROWS_AT_ONCE", 4)
    return DearRing(name="ring", space=PLANE, energy_of=ring)


X_BD = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))


def test_dear_forces_are_computed_once(target: DearRing, tmp_path: Path) -> None:
    expected_BD = super(DearRing, target).score(X_BD.double()).float()
    for _ in range(2):
        found_BD = forces_at(target, X_BD, cache_dir=tmp_path)
        assert torch.equal(found_BD, expected_BD)
        assert found_BD.dtype == torch.float32
    assert target.asked == [4, 4, 2]
    forces_at(target, X_BD[4:8], cache_dir=tmp_path)
    assert target.asked == [4, 4, 2]
    forces_at(target, X_BD + 0.1, cache_dir=tmp_path)
    assert target.asked == [4, 4, 2] * 2


def test_what_was_interrupted_goes_on(target: DearRing, tmp_path: Path) -> None:
    x_BD = torch.cat([X_BD[:8], torch.full((2, 2), 5.0)])
    target.end[0] = 4.0
    with pytest.raises(KeyboardInterrupt):
        forces_at(target, x_BD, cache_dir=tmp_path)
    target.end[0] = 9.0
    found_BD = forces_at(target, x_BD, cache_dir=tmp_path)
    assert target.asked == [4, 4, 2]
    torch.testing.assert_close(found_BD, super(DearRing, target).score(x_BD.double()).float())


def test_cheap_forces_leave_no_file(tmp_path: Path) -> None:
    assert torch.equal(forces_at(gmm4(), X_BD, cache_dir=tmp_path), gmm4().score(X_BD.double()).float())
    assert list(tmp_path.iterdir()) == []


def test_another_energy_has_other_forces(target: DearRing, tmp_path: Path) -> None:
    other = DearRing(name="ring", space=PLANE, energy_of=lambda x_BD: 2 * ring(x_BD))
    first_BD, second_BD = (forces_at(each, X_BD, cache_dir=tmp_path) for each in (target, other))
    torch.testing.assert_close(second_BD, 2 * first_BD)
