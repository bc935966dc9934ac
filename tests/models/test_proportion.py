"""Wilson's interval: its defining equation, its coverage, its ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from models.estimators import proportion_estimate

Z = 1.959963984540054


@pytest.mark.parametrize(("count", "n"), [(3, 10), (0, 10), (10, 10), (1, 1), (500, 10_000)])
def test_the_ends_are_the_shares_one_score_away(count: int, n: int) -> None:
    """|share - p| = z sqrt(p (1 - p) / n) at either end p."""
    estimate = proportion_estimate(count, n)
    assert (estimate.value, estimate.n) == (count / n, n)
    for p, beyond in ((estimate.lo, count == 0), (estimate.hi, count == n)):
        if not beyond:
            assert abs(count / n - p) == pytest.approx(Z * np.sqrt(p * (1 - p) / n), rel=1e-9)
    assert 0 <= estimate.lo <= estimate.value <= estimate.hi <= 1
    assert estimate.hi - estimate.lo > 0


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_intervals_cover_as_often_as_they_say(share: float) -> None:
    n = 200
    covered = 0.0
    for count in range(n + 1):
        estimate = proportion_estimate(count, n)
        covered += float(binom.pmf(count, n, share)) * (estimate.lo <= share <= estimate.hi)
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("count", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_a_count_that_is_none_is_told(count: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"got {count} of {n}; give"):
        proportion_estimate(count, n)
