"""The EGNN on alanine dipeptide: its published size, and that it follows exchanges within atom classes only.

Shapes: B batch, D coordinates, N atoms.
"""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from models.contracts import Space
from models.fields.egnn import EGNN
from models.molecules.peptides import capped_alanine
from models.systems import field_for
from tests.laws.field_laws import ParticleFieldLaws

AD2 = capped_alanine()


class TestBackboneClasses(ParticleFieldLaws):
    space = Space(dim=66, particles=22, types=AD2.backbone_classes)

    def make(self) -> nn.Module:
        return field_for(self.space, hidden=4, layers=2)

    def exchange(self) -> list[int]:
        """Hydrogens of four groups in turn, the carbons off the backbone, and both oxygens."""
        turns = [(0, 9, 21, 7), (2, 13), (1, 10, 18), (5, 15)]
        moved = {a: b for turn in turns for a, b in zip(turn, (*turn[1:], turn[0]), strict=True)}
        return [moved.get(atom, atom) for atom in range(22)]

    @pytest.mark.parametrize(("a", "b"), [(4, 14), (6, 16), (4, 1), (6, 8), (1, 5)])
    def test_atoms_of_different_class_are_told_apart(
        self, field: nn.Module, x_BD: Tensor, t_B: Tensor, a: int, b: int
    ) -> None:
        order = [{a: b, b: a}.get(atom, atom) for atom in range(22)]
        moved_BD = self._particles(x_BD)[:, order].flatten(1)
        followed_BD = self._particles(field(t_B, x_BD))[:, order].flatten(1)
        assert (field(t_B, moved_BD) - followed_BD).abs().max() > 1e-6


class TestDistinctClasses(TestBackboneClasses):
    space = Space(dim=66, particles=22, types=AD2.distinct_classes)

    def exchange(self) -> list[int]:
        """Hydrogens on one carbon."""
        moved = {0: 2, 2: 3, 3: 0, 11: 13, 13: 11, 19: 20, 20: 19}
        return [moved.get(atom, atom) for atom in range(22)]


def test_the_published_number_of_parameters() -> None:
    field = field_for(TestBackboneClasses.space, hidden=64, layers=5)
    assert isinstance(field, EGNN)
    assert field.types_NC.shape == (22, 9)
    assert sum(parameter.numel() for parameter in field.parameters()) == 147_599
