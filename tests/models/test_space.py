"""Types of particles: what is refused, and that they reach networks, couplings and the names of what is trained."""

from __future__ import annotations

import pytest
import torch

from models.contracts import Space
from models.couplings import EquivariantOptimalTransport
from models.fields.egnn import EGNN
from models.objective_settings import coupling_of
from models.problem_settings import system_settings
from models.systems import field_for, system_of


@pytest.mark.parametrize("wrong", [(0,), (0, 1, 2), (0, -1)])
def test_every_particle_has_a_type_or_none_has(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one label per particle"):
        Space(dim=4, particles=2, types=wrong)
    with pytest.raises(ValueError, match="one label per particle"):
        Space(dim=4, types=(0, 0))


def test_types_are_part_of_what_a_model_is_trained_on() -> None:
    plain, typed = (system_settings(f"tests.studies.harmonic:{name}") for name in ("harmonic", "typed_harmonic"))
    assert "types" not in plain
    assert typed["types"] == [0, 1, 0]
    assert typed["fingerprint"] == plain["fingerprint"]  # the same energy: reference samples are shared


def test_fields_and_couplings_know_the_types_of_their_space() -> None:
    system = system_of("tests.studies.harmonic:typed_harmonic")
    field = field_for(system.target.space, hidden=4, layers=1)
    assert isinstance(field, EGNN)
    assert torch.equal(field.types_NC.argmax(dim=1), torch.tensor([0, 1, 0]))
    coupling = coupling_of("equivariant-optimal-transport", system)
    assert isinstance(coupling, EquivariantOptimalTransport)
    assert coupling.space.types == (0, 1, 0)


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("space", [Space(dim=6), Space(dim=6, particles=3)])
def test_projection_in_place_is_projection(space: Space, dim: int) -> None:
    rows_BD = torch.randn((5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = rows_BD if dim == -1 else rows_BD.t().contiguous()
    expected = space.project(x.clone(), dim=dim)
    assert space.project_(x, dim=dim) is x
    assert torch.equal(x, expected)
