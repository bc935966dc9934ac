"""Plans, segments and trees: names that know the science alone, grids that are fine enough, parents before children."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from harness.identity import plain
from harness.plan import (
    Branch,
    BranchWork,
    Optimiser,
    Phase,
    Plan,
    Segment,
    SegmentTree,
    Stop,
    geometric_grid,
    grid_floor,
    root_hash,
)
from harness.trial import Placement, TrialSpec

PHASE = Phase(name="a", objective={"kind": "k", "sigma": 0.1}, optimiser=Optimiser(learning_rate=1e-3), batch=8)
BRANCH = Branch(parent="root", phase=PHASE, seed=0)


def changed_phases() -> list[Phase]:
    rates: list[dict[str, Any]] = [{"learning_rate": 2e-3}, {"beta1": 0.8}, {"beta2": 0.99}, {"gradient_clip": 1.0}]
    return [
        replace(PHASE, batch=9),
        replace(PHASE, ema_decay=0.99),
        replace(PHASE, objective={"kind": "k", "sigma": 0.2}),
        replace(PHASE, objective={"kind": "k"}),
        *(replace(PHASE, optimiser=replace(PHASE.optimiser, **change)) for change in rates),
    ]


def test_every_field_of_the_science_changes_the_name() -> None:
    segment = BRANCH.at(10)
    others = [Branch(parent="root", phase=phase, seed=0).at(10) for phase in changed_phases()]
    others += [Branch(parent="other", phase=PHASE, seed=0).at(10), Branch(parent="root", phase=PHASE, seed=1).at(10)]
    others += [BRANCH.at(11)]
    assert len({other.hash for other in others} | {segment.hash}) == len(others) + 1


def test_what_a_phase_is_called_does_not() -> None:
    assert replace(BRANCH, phase=replace(PHASE, name="b")).at(10).hash == BRANCH.at(10).hash


def test_the_price_of_a_step_does_not_depend_on_its_rate() -> None:
    slow = replace(PHASE, optimiser=replace(PHASE.optimiser, learning_rate=1e-5))
    assert slow.price_fingerprint == PHASE.price_fingerprint
    assert slow.fingerprint != PHASE.fingerprint
    rest = [phase for phase in changed_phases() if phase.optimiser.learning_rate == PHASE.optimiser.learning_rate]
    assert PHASE.price_fingerprint not in {phase.price_fingerprint for phase in rest}


def test_names_are_kept_between_versions() -> None:
    """These names are those of models already trained: a change here loses every store."""
    assert PHASE.fingerprint == "e871440f44bad2f55929"
    assert BRANCH.at(10).hash == "5823a6d2b375054ff1bf"
    assert root_hash({"target": "t"}, 3) == "c530de31aecd2ce35ab7"


def test_roots_differ_with_problem_and_seed() -> None:
    names = {root_hash({"target": target}, seed) for target in "ab" for seed in range(3)}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: replace(PHASE, batch=0), "at least one sample"),
        (lambda: replace(PHASE, ema_decay=1.0), "between 0 and 1"),
        (lambda: Optimiser(learning_rate=0.0), "positive"),
        (lambda: Optimiser(learning_rate=float("nan")), "positive"),
        (lambda: Optimiser(learning_rate=1.0, gradient_clip=0.0), "positive"),
    ],
)
def test_senseless_settings_are_refused(make: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()


def test_the_grid_is_fine() -> None:
    grid = geometric_grid(10**6)
    assert grid[0] == 1
    assert list(grid) == sorted(set(grid))
    for point, following in pairwise(grid):
        assert following <= point * 2 ** (1 / 8) + 1
        if point >= 100:
            assert following / point < 1.1


def test_longer_grids_begin_with_the_shorter_ones() -> None:
    assert geometric_grid(5000)[: len(geometric_grid(300))] == geometric_grid(300)
    assert geometric_grid(0) == ()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10, 127, 128, 129, 99_999])
def test_the_floor_is_the_largest_grid_point_below(steps: int) -> None:
    below = [point for point in geometric_grid(10**5) if point <= steps]
    assert grid_floor(steps) == max(below, default=0)
    assert grid_floor(grid_floor(steps)) == grid_floor(steps)


def test_a_tree_lists_parents_first() -> None:
    trunk = BranchWork(branch=BRANCH, stops=(Stop(steps=0), Stop(steps=4), Stop(steps=8)))
    tail = BranchWork(branch=Branch(parent=BRANCH.at(4).hash, phase=PHASE, seed=0), stops=(Stop(steps=6),))
    tree = SegmentTree(works=(trunk, tail), roots=("root",))
    assert tree.steps == 14
    assert [segment.steps for segment in tree.segments] == [0, 4, 8, 6]
    assert tuple(tree) == (trunk, tail)
    with pytest.raises(ValueError, match="list the trunk before its tails"):
        SegmentTree(works=(tail, trunk), roots=("root",))
    with pytest.raises(ValueError, match="after its parent"):
        SegmentTree(works=(trunk,), roots=())


@pytest.mark.parametrize("steps", [(4, 4), (4, 2)])
def test_stops_rise(steps: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="rise strictly"):
        BranchWork(branch=BRANCH, stops=tuple(Stop(steps=n) for n in steps))


def test_a_plan_of_three_stages_is_a_chain() -> None:
    second, third = replace(PHASE, batch=16), replace(PHASE, batch=32)
    ends = Plan(stages=((PHASE, 4), (second, 8), (third, 2))).segments(root="root", seed=5)
    assert [end.steps for end in ends] == [4, 8, 2]
    assert [end.branch.parent for end in ends] == ["root", ends[0].hash, ends[1].hash]
    assert {end.branch.seed for end in ends} == {5}
    works = tuple(BranchWork(branch=end.branch, stops=(Stop(steps=end.steps),)) for end in ends)
    assert SegmentTree(works=works, roots=("root",)).steps == 14


def test_a_stage_of_no_steps_leaves_nothing() -> None:
    second = replace(PHASE, batch=16)
    direct = Plan(stages=((second, 8),)).segments(root="root", seed=0)
    assert Plan(stages=((PHASE, 0), (second, 8))).segments(root="root", seed=0) == direct


def test_works_and_trials_travel_as_text() -> None:
    averaged = replace(PHASE, ema_decay=0.9, optimiser=replace(PHASE.optimiser, gradient_clip=2.0))
    branch = Branch(parent="root", phase=averaged, seed=2)
    work = BranchWork(branch=branch, stops=(Stop(steps=3, evaluate=False), Stop(steps=5)))
    assert BranchWork.from_plain(plain(work)) == work
    spec = TrialSpec(
        name="t",
        build="m:f",
        problem={"system": {"x": 1}},
        store="s",
        works=(work,),
        calibrate=(PHASE,),
        placement=Placement(workers=3, threads=2),
    )
    again = TrialSpec.from_json(spec.to_json())
    assert (again, again.hash) == (spec, spec.hash)
    assert replace(spec, name="u").hash != spec.hash
    assert [segment.hash for segment in again.works[0].segments] == [
        Segment(branch=branch, steps=n).hash for n in (3, 5)
    ]
