"""Efficiency over workers by hand: perfect, none, and quartiles of ratios that took turns."""

from __future__ import annotations

import pytest

from harness.answers.throughput import Quartiles, Timing, Way, efficiency, throughput_rows, throughput_table


def timing(way: Way, workers: int, *seconds: float) -> Timing:
    return Timing(phase="fm", batch=64, way=way, workers=workers, seconds=seconds)


ALONE = timing("alone", 1, 4.0, 8.0, 4.0)


@pytest.mark.parametrize(
    ("way", "seconds", "expected", "rows"),
    [
        ("strong", (2.0, 4.0, 2.0), 1.0, 64),  # the same batch in half the time
        ("strong", (4.0, 8.0, 4.0), 0.5, 64),
        ("weak", (4.0, 8.0, 4.0), 1.0, 128),  # twice the batch in the same time
        ("weak", (8.0, 16.0, 8.0), 0.5, 128),
        ("apart", (5.0, 10.0, 5.0), 0.8, 128),  # two trials, each a quarter slower
    ],
)
def test_efficiency_is_rows_a_second_and_worker(
    way: Way, seconds: tuple[float, ...], expected: float, rows: int
) -> None:
    many = timing(way, 2, *seconds)
    assert many.rows == rows
    found = efficiency(many, ALONE)
    assert (found.median, found.low, found.high, found.n) == pytest.approx((expected, expected, expected, 3))


def test_one_worker_is_its_own_measure() -> None:
    assert efficiency(ALONE, ALONE).median == 1.0


def test_ratios_are_of_neighbours_so_that_a_slow_round_cancels() -> None:
    alone = timing("alone", 1, 1.0, 1.0, 10.0, 1.0, 1.0)
    many = timing("strong", 2, 0.5, 0.5, 5.0, 0.5, 0.625)
    found = efficiency(many, alone)
    assert (found.median, found.low, found.high) == (1.0, 1.0, 1.0)
    assert many.rows_per_second == 64 / 0.5


def test_quartiles_of_one_round_are_that_round() -> None:
    assert Quartiles.of([0.7]) == Quartiles(median=0.7, low=0.7, high=0.7, n=1)


def test_rows_and_table_tell_every_way() -> None:
    timings = [ALONE, timing("strong", 2, 2.0, 4.0, 2.5), timing("apart", 2, 5.0, 10.0, 5.0)]
    rows = throughput_rows(timings)
    assert [(row["way"], row["workers"], row["rows"]) for row in rows] == [
        ("alone", 1, 64),
        ("strong", 2, 64),
        ("apart", 2, 128),
    ]
    text = throughput_table(timings)
    assert "1.60 [1.60, 1.60]" in text  # throughput of two trials apart
    assert "medians of 3 rounds" in text
