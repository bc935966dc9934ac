"""The study of scores in wide noise, tiny: its files, its resumption, and that the clip mends what it says it mends."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from studies import score_in_noise
from studies.score_in_noise import ScoreInNoise

TINY: dict[str, Any] = {"widths": (0.5, 3.0), "noises": 20, "points": 24, "repeats": 3, "samples": 64, "copies": 4}


def rows_of(study: ScoreInNoise) -> list[dict[str, str]]:
    with (study.folder() / "score_in_noise.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_form_at_every_width_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ScoreInNoise(**TINY, output=tmp_path)
    text = study.execute()
    rows = rows_of(study)
    assert [row["width"] for row in rows] == ["0.5"] * 4 + ["3.0"] * 4
    assert all(float(row["slope_lo"]) <= float(row["slope"]) <= float(row["slope_hi"]) for row in rows)
    assert all(row["n"] == "24" for row in rows)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(score_in_noise, "estimate_score", never)
    assert study.execute() == text
    with pytest.raises(AssertionError, match="measured again"):
        ScoreInNoise(**{**TINY, "widths": (0.5, 2.0)}, output=tmp_path).execute()


def test_in_wide_noise_the_estimate_is_many_times_too_long_until_the_noise_clips_it(tmp_path: Path) -> None:
    study = ScoreInNoise(**{**TINY, "widths": (3.0,)}, output=tmp_path)
    study.execute()
    plain, clipped, blended, both = (float(row["slope"]) for row in rows_of(study))
    assert plain > 5.0
    assert 0.3 < clipped < 2.0
    assert 0.5 < blended < 2.0
    assert 0.5 < both < 2.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target": "gmm4"}, "particles that are all alike, got gmm4"),
        ({"widths": (3.0, 1.0)}, "widths of the noise rise"),
        ({"points": 1}, "--points is at least 2, got 1"),
        ({"noise_clip": 0.0}, "--noise-clip is positive and finite"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        ScoreInNoise(**{**TINY, **options}, output=tmp_path).execute()
    assert not list(tmp_path.iterdir())
