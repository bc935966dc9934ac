"""Transport costs against batch sizes: means over batches, kept piece by piece."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contracts import Space
from models.couplings import OptimalTransport
from models.flows.prior import GaussianPrior
from studies import transport_cost
from studies.transport_cost import TransportCost

SPACE = Space(dim=8, particles=4)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four particles that all stand near the corners of a square, turned and renamed at random."""
    rng = np.random.default_rng(0)
    square_Nd = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], dtype=np.float64) * 2
    rows = []
    for angle in rng.uniform(0, 2 * np.pi, size=48):
        turn_dd = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        rows.append(((rng.permutation(square_Nd) + 0.05 * rng.normal(size=(4, 2))) @ turn_dd.T).ravel())
    path = tmp_path / "squares.npy"
    np.save(path, SPACE.project(torch.tensor(np.array(rows))).numpy())
    return path


def options(data: Path, **changes: Any) -> TransportCost:
    given: dict[str, Any] = {"target": "dw4", "data": data, "batches": (4, 16), "pairs": 48, "output": data.parent}
    return TransportCost(**{**given, **changes})


def rows_of(folder: Path) -> dict[tuple[str, int], dict[str, str]]:
    with (folder / "transport_cost.csv").open(newline="") as stream:
        return {(row["coupling"], int(row["batch"])): row for row in csv.DictReader(stream)}


def test_costs_are_those_of_the_couplings(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = options(data)
    text = study.execute()
    rows = rows_of(study.folder())
    x1_BD = torch.from_numpy(np.load(data))
    x0_BD = GaussianPrior(space=SPACE).sample(48, torch.Generator().manual_seed(0), like=x1_BD)
    by_hand = [OptimalTransport()(a, b).cost_B.mean() for a, b in zip(x0_BD.split(16), x1_BD.split(16), strict=True)]
    ours = rows["optimal-transport", 16]
    assert float(ours["squared_distance"]) == pytest.approx(float(torch.stack(by_hand).mean()))
    assert ours["batches"] == "3"
    chance = [float(rows["independent", batch]["squared_distance"]) for batch in (4, 16)]
    assert chance == pytest.approx([float((x0_BD - x1_BD).square().sum(1).mean())] * 2)
    for batch in (4, 16):
        costs = [float(rows[name, batch]["squared_distance"]) for name in ("independent", "optimal-transport")]
        equivariant = float(rows["equivariant-optimal-transport", batch]["squared_distance"])
        assert equivariant < 0.7 * costs[1] < 0.7 * costs[0]
    assert float(ours["squared_distance"]) < float(rows["optimal-transport", 4]["squared_distance"])
    assert (study.folder() / "transport_cost.png").read_bytes().startswith(b"\x89PNG")

    def never(*_: Any) -> None:
        raise AssertionError("measured already")

    monkeypatch.setattr(transport_cost, "write_json", never)
    assert options(data).execute() == text
    fewer = options(data, batches=(16,), couplings=("optimal-transport",))
    fewer.execute()
    assert rows_of(fewer.folder())["optimal-transport", 16] == ours


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batches": (16, 4)}, "write --batches"),
        ({"batches": ()}, "write --batches"),
        ({"batches": (4, 32)}, "write --pairs 64"),
        ({"pairs": 400}, "write --pairs 48"),
        ({"couplings": ("independent", "independent")}, "write each once"),
        ({"target": "gmm4", "couplings": ("equivariant-optimal-transport",)}, "particles"),
    ],
)
def test_options_that_make_no_sense_are_told(data: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options(data, **change).execute()
    assert not (data.parent / "transport_cost").exists()
