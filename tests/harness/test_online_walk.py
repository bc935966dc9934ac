"""An online run as it is replayed: it stays within its budget, counts what was in vain, and decides as its law says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from harness.answers.question import MetricChoice
from harness.budget import Budget, Currency
from harness.online_rule import SwitchRule
from harness.online_walk import Asks, Ended, Walk, merged
from harness.plan import BranchWork, SegmentTree
from harness.split import Prices
from tests.harness.test_split import PHASES, priced
from tests.harness.tiny import FM, PG, TAIL

PRICES = Prices(by_phase={p.price_fingerprint: priced(p, s) for p, s in ((FM, 1.0), (PG, 100.0), (TAIL, 1.0))})
LOG = MetricChoice(name="kl", log=True)
Law = Callable[[int, str, int], float]
"""log loss of (trunk steps, tail, tail steps)."""


def law(fork: int, tail: str, steps: int, *, first: float = 0.3, second: float = 0.5) -> float:
    """Every octave of the first phase gains `first`, every octave of the second one's own steps `second`."""
    started = -first * math.log2(fork)
    return started - (second * (1 + math.log2(steps)) if tail == "pg" else 0.1 * bool(tail))


def walk(budget: float, rule: SwitchRule | None = None, *, seed: int = 0) -> Walk:
    return Walk(
        seed=seed,
        budget=Budget(amount=budget, currency=Currency.DEVICE_SECONDS),
        root="root",
        phases=PHASES,
        prices=PRICES,
        rule=rule or SwitchRule(),
        metric=LOG,
    )


class World:
    """Trains and judges what a run asks for, by a law."""

    def __init__(self, of: Law) -> None:
        self.of = of
        self.known: dict[str, np.ndarray] = {}
        self.asked: list[tuple[BranchWork, ...]] = []

    def finish(self, run: Walk) -> Ended:
        for _ in range(50):
            step = run.next(self.known.get)
            if isinstance(step, Ended):
                return step
            self.train(run, step)
        raise AssertionError("a run must end")

    def train(self, run: Walk, step: Asks) -> None:
        SegmentTree(works=step.works, roots=("root",))
        self.asked.append(step.works)
        trunk, tail = step.works
        fork = trunk.stops[-1].steps
        for segment, stop in zip(tail.segments, tail.stops, strict=True):
            assert stop.evaluate
            assert segment.hash not in self.known, "nothing is asked for twice"
            mean = math.exp(self.of(fork, tail.branch.phase.name, stop.steps))
            self.known[segment.hash] = mean * np.array([0.5, 1.5] * 20)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("budget", [3.0, 1999.0, 2000.0, 5000.0, 1.7e4])
@pytest.mark.parametrize("second", [0.0, 0.5])
def test_a_run_stays_within_its_budget_and_leaves_little_of_it(budget: float, second: float, waits: bool) -> None:
    ended = World(lambda f, t, n: law(f, t, n, second=second)).finish(walk(budget, SwitchRule(waits=waits)))
    cost = ended.cost.device_seconds
    assert cost <= budget
    step = 100.0 if ended.cell.tail == "pg" else 1.0
    assert ended.cell.tail_steps * 2 ** (1 / 8) * step * 1.05 + step >= budget - cost + ended.cell.tail_steps * step
    assert ended.cell.tail_cost.device_seconds == ended.cell.tail_steps * step
    assert ended.cell.trunk_cost.device_seconds == ended.cell.fork_steps


def test_what_was_turned_down_is_spent_in_vain_and_what_was_taken_is_not() -> None:
    world = World(law)
    ended = world.finish(walk(3e4))
    probe = 100.0 * ended.looked[0].probe_steps
    refined = [looked for looked in ended.looked if looked.gains.over_refinement is not None]
    assert len(ended.looked) > 1
    assert ended.looked[-1].verdict == "second"
    assert ended.probing.device_seconds == probe * (len(ended.looked) - 1) + probe * len(refined)
    assert all(b.spent.device_seconds > a.spent.device_seconds for a, b in pairwise(ended.looked))
    assert ended.looked[-1].spent.device_seconds <= ended.cost.device_seconds


def test_a_probe_is_the_beginning_of_the_branch_that_it_becomes() -> None:
    world = World(law)
    ended = world.finish(walk(3e4))
    probe = world.asked[-2][1]
    assert ended.works[1].branch == probe.branch
    assert ended.works[1].stops[-1].steps > probe.stops[-1].steps


def test_the_whole_run_is_read_again_from_what_is_known() -> None:
    world = World(law)
    ended = world.finish(walk(3e4))
    assert walk(3e4).next(world.known.get) == ended
    assert isinstance(walk(3e4).next({}.get), Asks)


def test_it_leaves_where_the_law_says_that_another_octave_does_not_pay() -> None:
    """Brute force over octaves, with what was probed by then counted: it stops at the first local best."""
    for first in (0.05, 0.4, 0.8):
        ended = World(lambda f, t, n, g=first: law(f, t, n, first=g)).finish(walk(1e5))  # type: ignore[misc]
        looks = ended.looked
        probe = 100.0 * looks[0].probe_steps
        values = []
        for number, looked in enumerate(looks):
            left = 1e5 - looked.steps - number * probe
            values.append(law(looked.steps, "pg", 1, first=first) - 0.5 * math.log2(left / 100.0))
        assert ended.cell.tail == "pg"
        assert values[1:] == sorted(values[1:], reverse=True), "every octave that it took was better than the last"
        following = law(2 * looks[-1].steps, "pg", 1, first=first)
        left = 1e5 - 2 * looks[-1].steps - len(looks) * probe
        last_chance = left < 2 * probe
        assert last_chance or following - 0.5 * math.log2(left / 100.0) >= values[-1]
    assert len(looks) > 2


def test_where_the_second_phase_gains_less_than_a_refinement_it_is_not_followed() -> None:
    ended = World(lambda f, t, n: law(f, t, n, second=0.0)).finish(walk(3e4))
    assert ended.cell.tail == "fm_tail"
    assert ended.looked[-1].verdict == "refinement"
    assert {looked.verdict for looked in ended.looked[:-1]} == {"go on"}


def test_a_run_that_cannot_pay_a_probe_refines() -> None:
    world = World(law)
    ended = world.finish(walk(1500.0))
    assert (world.asked, ended.looked) == ([], ())
    assert (ended.cell.fork_steps, ended.cell.tail) == (1024, "fm_tail")
    assert ended.probing.device_seconds == 0


def test_the_greedy_rule_leaves_at_its_first_look_and_the_other_cannot() -> None:
    greedy = World(law).finish(walk(3e4, SwitchRule(waits=False)))
    assert len(greedy.looked) == 1
    assert greedy.cell.tail == "pg"
    assert len(World(law).finish(walk(3e4)).looked) > 1


def test_runs_of_one_seed_share_their_branches() -> None:
    steps = [walk(budget).next({}.get) for budget in (2e4, 3e4, 6e4)]
    works = merged(steps)
    SegmentTree(works=tuple(works), roots=("root",))
    assert len({work.branch.hash for work in works}) == len(works)
    asked = {segment.hash for step in steps for work in step.works for segment in work.segments}
    assert {segment.hash for work in works for segment in work.segments} == asked
    other = replace(walk(2e4), seed=1).next({}.get)
    assert {work.branch.hash for work in other.works}.isdisjoint(work.branch.hash for work in works)
