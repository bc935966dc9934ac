"""The rule of an online switch: what it pays for a probe, when it looks, and what it makes of what it sees."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from harness.answers.question import MetricChoice
from harness.budget import Budget, Currency
from harness.online_rule import (
    Look,
    LookTerms,
    SwitchRule,
    power_of_two_within,
    second_is_better,
    wants_to_leave,
)
from tests.harness.test_split import priced
from tests.harness.tiny import FM, PG

LOG = MetricChoice(name="kl", log=True)
NLL = MetricChoice(name="nll")
RULE = SwitchRule()


def seconds(amount: float) -> Budget:
    return Budget(amount=amount, currency=Currency.DEVICE_SECONDS)


def terms(mean: float, *, noise: float = 0.01, n: int = 400) -> np.ndarray:
    """Terms with exactly this mean, whose noise is shared by all models."""
    shared = np.random.default_rng(1).normal(size=n)
    return mean * (1 + noise * (shared - shared.mean()))


def look(metric: MetricChoice = LOG, *, octaves_lost: float | None = 0.5, **means: float) -> Look:
    return Look(LookTerms(**{f"{k}_n": terms(v) for k, v in means.items()}), metric, octaves_lost=octaves_lost)


@pytest.mark.parametrize(("count", "power"), [(0, 0), (1, 1), (2, 2), (3, 2), (64, 64), (127, 64)])
def test_powers_of_two(count: int, power: int) -> None:
    assert power_of_two_within(count) == power


@pytest.mark.parametrize(("budget", "steps"), [(19.0, 0), (20.0, 4), (63.0, 4), (64.0, 8), (127.9, 8), (128.0, 16)])
def test_a_probe_is_a_power_of_two_within_its_share_or_the_fewest_steps_that_are_affordable(
    budget: float, steps: int
) -> None:
    assert RULE.probe_steps(priced(PG, 1.0), seconds(budget)) == steps


def test_octaves_begin_beyond_the_first_share_and_end_within_the_budget() -> None:
    for budget in np.geomspace(1.0, 3000.0, 40):
        octaves = RULE.octaves(priced(FM, 1.0), seconds(float(budget)))
        assert all(b == 2 * a for a, b in pairwise(octaves))
        assert octaves[-1] <= budget < 2 * octaves[-1]
        assert octaves[0] > RULE.first_share * budget or octaves[0] == octaves[-1]
        assert octaves[0] <= 2 * RULE.first_share * budget or octaves[0] == 1


def test_a_budget_that_pays_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="write a larger budget"):
        RULE.octaves(priced(FM, 1.0), seconds(0.5))


@pytest.mark.parametrize(
    "change",
    [
        {"first_share": 0.0},
        {"first_share": 1.0},
        {"probe_share": 0.3},
        {"most_probe_share": 1.0},
        {"fewest_probe_steps": 1},
        {"fewest_probe_steps": 6},
    ],
)
def test_wrong_rules_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="write for example"):
        SwitchRule(**change)


def test_gains_are_falls_of_the_loss_and_what_was_not_trained_has_none() -> None:
    gains = look(half=0.4, probe=0.2, before=0.3).gains
    assert gains.second.value == pytest.approx(math.log(2))
    assert gains.first is not None
    assert gains.first.value == pytest.approx(math.log(1.5))
    assert gains.over_refinement is None
    first_look = look(half=0.4, probe=0.2)
    assert first_look.gains.first is None
    assert first_look.worth_of_leaving is None
    assert math.isnan(first_look.gains.plain_columns()["gain_first_eval_lo"])


def test_leaving_is_worth_what_the_second_phase_would_lose_less_what_the_first_would_still_gain() -> None:
    worth = look(half=0.4, probe=0.2, before=0.25, octaves_lost=0.7).worth_of_leaving
    assert worth is not None
    assert worth.value == pytest.approx(0.7 * math.log(2) - math.log(1.25))
    assert worth.lo <= worth.value <= worth.hi
    plain = look(NLL, half=-3.0, probe=-3.5, before=-3.1, octaves_lost=2.0).worth_of_leaving
    assert plain is not None
    assert plain.value == pytest.approx(2 * 0.5 - 0.4)
    larger = MetricChoice(name="ess", direction="max")
    assert look(larger, half=0.2, probe=0.4).gains.second.value == pytest.approx(0.2)


def test_shared_points_make_differences_far_surer_than_either_loss() -> None:
    noisy = {"half_n": terms(0.4, noise=3.0), "probe_n": terms(0.2, noise=3.0), "refinement_n": terms(0.21, noise=3.0)}
    over = Look(LookTerms(**noisy), LOG, octaves_lost=None).gains.over_refinement
    assert over is not None
    assert over.lo == pytest.approx(math.log(1.05), rel=1e-6)
    assert over.hi == pytest.approx(math.log(1.05), rel=1e-6)


def test_it_wants_to_leave_once_another_octave_would_not_pay() -> None:
    assert wants_to_leave(look(half=0.4, probe=0.2, before=0.21), RULE)
    assert not wants_to_leave(look(half=0.21, probe=0.2, before=0.4), RULE)
    assert not wants_to_leave(look(half=0.4, probe=0.2), RULE), "nothing is known of the first phase yet"
    assert wants_to_leave(look(half=0.21, probe=0.2, before=0.4, octaves_lost=None), RULE), "the last chance"
    assert wants_to_leave(look(half=0.21, probe=0.2), SwitchRule(waits=False))


def test_before_the_last_look_the_second_phase_must_be_shown_to_be_better() -> None:
    rng = np.random.default_rng(0)
    probe_n, other_n = 0.2 + 0.1 * rng.normal(size=(2, 400))
    other_n += 1e-4 + probe_n.mean() - other_n.mean()
    unsure = LookTerms(half_n=probe_n, probe_n=probe_n, refinement_n=other_n)
    assert not second_is_better(Look(unsure, LOG, octaves_lost=0.5))
    assert second_is_better(Look(unsure, LOG, octaves_lost=None))
    assert second_is_better(look(half=0.3, probe=0.2, refinement=0.25))
    assert not second_is_better(look(half=0.3, probe=0.2, refinement=0.19, octaves_lost=None))


def test_a_diverged_probe_is_never_followed() -> None:
    lost = LookTerms(half_n=terms(0.3), probe_n=np.full(400, np.nan), before_n=terms(0.3), refinement_n=terms(0.3))
    for octaves in (0.5, None):
        assert not second_is_better(Look(lost, LOG, octaves_lost=octaves))
    assert not wants_to_leave(Look(lost, LOG, octaves_lost=0.5), RULE)
