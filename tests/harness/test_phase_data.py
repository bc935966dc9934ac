"""Rows that a phase trains on: given, cheap, or made once from the parent's model, kept and charged.

Shapes: B rows, D coordinates.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.budget import Cost
from harness.checkpoint import DamagedObject, Store, write_json
from harness.collective import Alone
from harness.kept_models import kept_flow
from harness.phase_data import PhaseData, data_key, making_cost
from harness.plan import Branch, BranchWork, Phase, Stop
from models.problem import BoltzmannProblem, build
from tests.harness.energy_only import FM_OWN, IDEM, PDEM, PG_ON_FLOW, SDE, chain
from tests.harness.tiny import FM, PG, SETTINGS, checksums, events, kinds, root, trial

ROWS = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[BranchWork, ...]]:
    """A store with idem, fm_own on its samples, and pg after that; and pg right after idem."""
    folder = tmp_path_factory.mktemp("trained")
    works = (*chain((IDEM, 5), (FM_OWN, 4), (PG, 2), evaluate=True), *chain((IDEM, 5), (PG_ON_FLOW, 2))[1:])
    list(events(trial(folder, works)))
    return folder, works


def problem() -> BoltzmannProblem:
    return build(SETTINGS, cache=Path("unused"))


def data_in(folder: Path) -> PhaseData:
    return PhaseData(problem(), Store(folder), Alone(), torch.device("cpu"))


def child_of(parent: str, phase: Phase, **data: Any) -> Branch:
    objective = {**phase.objective, "data": data} if data else phase.objective
    return Branch(parent=parent, phase=replace(phase, objective=objective), seed=0)


def weights(folder: Path, segment: str) -> dict[str, torch.Tensor]:
    known = Store(folder).segment(segment)
    assert known is not None
    found: dict[str, torch.Tensor] = Store(folder).get_state(known["state"])["weights"]
    return found


# which model a phase starts from


def test_a_chain_trains_one_model_after_another(trained: tuple[Path, tuple[BranchWork, ...]]) -> None:
    folder, (idem, own, pg, on_flow) = trained
    ends = {
        work.branch.phase.name + str(k): weights(folder, work.segments[-1].hash) for k, work in enumerate(trained[1])
    }
    score, velocity = set(ends["idem0"]), set(ends["fm_own1"])
    assert all(name.startswith("field.score.network.") for name in score)
    assert not score & velocity
    assert (set(ends["pg2"]), set(ends["pg3"])) == (velocity, score)
    assert on_flow.branch.parent == idem.segments[-1].hash == own.branch.parent
    assert pg.branch.parent == own.segments[-1].hash


@pytest.mark.parametrize(("phase", "continues"), [(PG_ON_FLOW, True), (PDEM, True), (FM_OWN, False)])
def test_the_same_model_goes_on_and_another_one_starts_afresh(
    trained: tuple[Path, tuple[BranchWork, ...]], phase: Phase, continues: bool, tmp_path: Path
) -> None:
    folder, works = trained
    parent = works[0].segments[-1].hash
    branch = Branch(parent=parent, phase=replace(phase, ema_decay=0.5), seed=0)
    list(events(trial(folder, (BranchWork(branch=branch, stops=(Stop(steps=0, evaluate=False),)),))))
    start = weights(folder, branch.at(0).hash)
    expected = weights(folder, parent) if continues else problem().flow(0, phase.objective).state_dict()
    assert start.keys() == expected.keys()
    assert all(torch.equal(start[name], expected[name]) for name in expected)


def test_a_segment_of_an_older_store_is_the_problems_own_model(tmp_path: Path) -> None:
    works = chain((FM, 2), (PG, 1))
    list(events(trial(tmp_path, works[:1])))
    path = tmp_path / "segments" / f"{works[0].segments[0].hash}.json"
    told = path.read_text()
    assert '"phase": {' in told
    known = Store(tmp_path).segment(works[0].segments[0].hash)
    assert known is not None
    del known["phase"]
    write_json(path, known)
    kept = kept_flow(problem(), Store(tmp_path), works[0].segments[0].hash, 0).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in weights(tmp_path, works[0].segments[0].hash).items())
    assert "segment" in kinds(trial(tmp_path, works))


# rows


def test_rows_without_data_are_there_without_any_reference_samples(tmp_path: Path) -> None:
    settings = {**SETTINGS, "system": {**SETTINGS["system"], "target": "dw4"}}
    cache = tmp_path / "reference"
    data = PhaseData(build(settings, cache=cache), Store(tmp_path), Alone(), torch.device("cpu"))
    batch = data.of(child_of(root(), PDEM))
    assert batch.x_BD.shape[1] == 8
    assert not batch.x_BD.any()
    assert not cache.exists()
    assert not (tmp_path / "objects").exists()


def test_a_buffer_begins_with_base_noise(tmp_path: Path) -> None:
    first, again, other = (data_in(tmp_path).of(child_of(parent, IDEM)).x_BD for parent in ("a", "a", "b"))
    assert first.shape == (16, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 1.0 < float(first.std()) < 3.0


def test_a_buffer_may_begin_with_the_reverse_process_of_estimated_scores(tmp_path: Path) -> None:
    sde = {"steps": 40, "noise_scale": 1.0}
    branch = child_of(root(), IDEM, **{"from": "estimate", "rows": 30, "samples": 20, "norm": 20.0, "sde": sde})
    batch = data_in(tmp_path).of(branch)
    energy = problem().physics.target.energy
    noise = data_in(tmp_path).of(child_of(root(), IDEM)).x_BD
    assert float(energy(batch.x_BD).mean()) < 0.7 * float(energy(noise).mean())
    cost = making_cost(problem(), Store(tmp_path), branch)
    assert cost.energy_evaluations == cost.force_evaluations == 30 * 20 * 40
    assert cost.field_evaluations == 0


def test_own_samples_are_made_once_and_read_again(trained: tuple[Path, tuple[BranchWork, ...]]) -> None:
    folder, works = trained
    branch, store = works[1].branch, Store(folder)
    sampling = problem().sampling(branch.phase.objective)
    assert sampling is not None
    known = store.made_data(data_key(branch, sampling))
    assert known is not None
    path = store.folder / "objects" / known["object"]
    before = path.stat().st_mtime_ns
    batch = data_in(folder).of(branch)
    assert path.stat().st_mtime_ns == before
    assert batch.x_BD.shape == (ROWS, 2)
    assert batch.force_BD is not None
    torch.testing.assert_close(batch.force_BD, problem().physics.target.score(batch.x_BD), rtol=1e-5, atol=1e-5)
    assert torch.equal(store.get_state(known["object"])["x"], batch.x_BD)


def test_a_lost_set_is_made_again_bit_for_bit(trained: tuple[Path, tuple[BranchWork, ...]]) -> None:
    folder, works = trained
    branch = works[1].branch
    before = data_in(folder).of(branch).x_BD
    sampling = problem().sampling(branch.phase.objective)
    assert sampling is not None
    known = Store(folder).made_data(data_key(branch, sampling))
    assert known is not None
    (folder / "objects" / known["object"]).write_bytes(b"damaged")
    assert torch.equal(data_in(folder).of(branch).x_BD, before)


def test_what_own_samples_cost_is_kept_with_them(trained: tuple[Path, tuple[BranchWork, ...]]) -> None:
    folder, works = trained
    cost = making_cost(problem(), Store(folder), works[1].branch)
    assert (cost.field_evaluations, cost.energy_evaluations, cost.force_evaluations) == (ROWS * SDE["steps"], 0, ROWS)
    assert cost.flops > ROWS * SDE["steps"] * 2 * (3 * 8 + 8 * 8 + 8 * 2)
    assert cost.device_seconds > 0
    for work in (works[0], works[2]):
        assert making_cost(problem(), Store(folder), work.branch) == Cost()


def test_other_settings_and_other_parents_are_other_rows(trained: tuple[Path, tuple[BranchWork, ...]]) -> None:
    folder, works = trained
    parents = [works[0].segments[-1].hash, works[1].segments[-1].hash]
    settings = {"from": "parent", "rows": 20, "tolerance": 1e-3}
    sets = [
        data_in(folder).of(child_of(parent, FM_OWN, **settings, resampled=resampled)).x_BD
        for parent in parents
        for resampled in (False, True)
    ]
    assert all(len(x_BD) == 20 for x_BD in sets)
    assert all(not torch.equal(sets[i], sets[j]) for i in range(4) for j in range(i))
    drawn, resampled = sets[2:]
    assert len(resampled.unique(dim=0)) < len(drawn.unique(dim=0)) == 20


def test_a_parent_that_is_not_trained_is_told(tmp_path: Path) -> None:
    with pytest.raises(DamagedObject, match="must be finished"):
        data_in(tmp_path).of(child_of("nowhere", FM_OWN))


def test_prices_need_no_parent(tmp_path: Path) -> None:
    rows = data_in(tmp_path).stand_in(FM_OWN, 0)
    assert rows.x_BD.shape == (ROWS, 2)
    assert rows.force_BD is not None
    given = data_in(tmp_path).stand_in(FM, 0)
    assert len(given.x_BD) == SETTINGS["system"]["train_samples"]
    assert not (tmp_path / "made_data").exists()


def test_an_interrupted_chain_ends_the_same(trained: tuple[Path, tuple[BranchWork, ...]], tmp_path: Path) -> None:
    folder, works = trained
    (tmp_path / "reference").symlink_to(folder / "reference")
    for count in (8, 14):
        run = events(trial(tmp_path, works))
        for _, _ in zip(range(count), run, strict=False):
            pass
        run.close()
    list(events(trial(tmp_path, works)))
    assert checksums(tmp_path, works) == checksums(folder, works)
