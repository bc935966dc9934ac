"""A plateau ends a phase by its events alone, the same way whenever it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan import geometric_grid
from harness.trial import Event
from harness.until import Plateau, octave_loss
from studies.train_plan import TrainPlan, parse_stage


def curve(last: int, *, floor: float = 1.0, power: float = 1.0) -> list[Event]:
    """Events on the grid of a loss floor + n^-power."""
    points = [n for n in geometric_grid(last) if n <= last]
    return [Event(kind="train", step=n, timestamp=float(n), values={"loss": floor + n**-power}) for n in points]


def test_the_mean_of_an_octave_weighs_every_step_once() -> None:
    events = [Event(kind="train", step=n, timestamp=0.0, values={"loss": v}) for n, v in ((2, 9.0), (3, 4.0), (4, 1.0))]
    assert octave_loss(events, 4) == pytest.approx((4.0 + 1.0) / 2)


def test_training_goes_from_stop_to_stop_until_the_loss_is_flat() -> None:
    rule, events = Plateau(gain=0.01, at_most=2**16), []
    stops = []
    while (stop := rule.next_stop(events)) is not None:
        stops.append(stop)
        events = curve(stop)
    assert stops == [2**k for k in range(6, 6 + len(stops))]
    assert rule.end(events) == stops[-1]
    gains = [1 - octave_loss(events, n) / octave_loss(events, n // 2) for n in stops]
    assert gains[-1] <= 0.01
    assert all(gain > 0.01 for gain in gains[:-1])


def test_later_events_do_not_change_where_it_ended() -> None:
    rule = Plateau(gain=0.01, at_most=2**16)
    assert rule.end(curve(2**12)) == rule.end(curve(2**15))


def test_it_ends_at_the_most_in_any_case() -> None:
    rule = Plateau(gain=1e-12, at_most=256)
    assert rule.next_stop(curve(256)) is None
    assert rule.end(curve(256)) == 256


def test_a_diverged_loss_is_flat() -> None:
    events = [Event(kind="train", step=n, timestamp=0.0, values={"loss": float("nan")}) for n in geometric_grid(64)]
    assert Plateau(gain=0.01, at_most=256).end(events) == 64


@pytest.mark.parametrize("changes", [{"gain": 0.0}, {"gain": float("nan")}, {"at_most": 100}, {"at_most": 32}])
def test_wrong_rules_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="write for example"):
        Plateau(**{"gain": 0.1, "at_most": 256, **changes})  # type: ignore[arg-type]


def test_its_end_is_not_told_before_it_ended() -> None:
    with pytest.raises(ValueError, match="must have ended"):
        Plateau(gain=0.01, at_most=2**16).end(curve(64, power=0.1, floor=0.0))


@pytest.mark.parametrize("text", ["fm=plateau:", "fm=plateau:x", "fm=plateau:-1"])
def test_a_stage_reads_its_rule(text: str) -> None:
    phases = {phase.name: phase for phase in TrainPlan().phases().all}
    with pytest.raises(ValueError, match=r"plateau:0\.01"):
        parse_stage(text, phases)
    assert parse_stage("fm=plateau:0.02", phases).spend == Plateau(gain=0.02, at_most=2**20)


def test_a_plan_ends_its_stage_by_the_rule_and_is_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = TrainPlan(
        stages=("fm=plateau:0.2", "pg=2"),
        runner="inline",
        seeds="1",
        evaluation_samples=64,
        evaluation_tolerance=1e-3,
        train_samples=96,
        hidden=8,
        layers=2,
        fm_batch=16,
        pg_batch=8,
        solver_steps=2,
        output=tmp_path,
    )
    first = plan.execute()
    assert "pg" in first
    (file,) = tmp_path.glob("train_plan/*/stages.csv")
    stages = file.read_text()
    _, fm, pg = (line.split(",") for line in stages.splitlines()[1:])
    assert fm[1:3] in (["fm", "64"], ["fm", "128"], ["fm", "256"], ["fm", "512"])
    assert pg[1:4] == ["pg", "2", fm[2]]
    capsys.readouterr()
    plan.execute()
    assert file.read_text() == stages
