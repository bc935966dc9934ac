"""The study of the score estimator, from its options to its files, tiny."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.targets import Rescaled, gmm40
from studies import score_estimator
from studies.score_estimator import ScoreEstimatorStudy, small_gmm40, two_modes
from studies.score_estimator_report import ruled, slope_estimate
from tests.studies.refusals import check_message, refused

TINY: dict[str, Any] = {
    "samples": (1, 4),
    "times": (0.8, 1.0),
    "dimensions": (1, 3),
    "points": 4,
    "repeats": 4,
    "sampling_dimension": 50,
    "sampling_rows": 6,
    "sampling_noises": 2,
    "sampling_steps": 5,
}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_whole_study_measures_every_piece_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ScoreEstimatorStudy(**TINY, output=tmp_path)
    text = study.execute()
    folder = study.folder()
    pictures = ("errors.png", "errors_forms.png", "errors_times.png", "dimension.png", "sampling.png")
    tables = ("errors.csv", "slopes.csv", "dimension.csv", "sampling.csv")
    assert {path.name for path in folder.iterdir()} == {*pictures, *tables}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    errors = rows_of(folder / "errors.csv")
    assert {(row["form"], row["time"], row["samples"]) for row in errors} == {
        (form, tau, k) for form in ("weighted", "ratio", "jensen") for tau in ("0.8", "1.0") for k in ("1", "4")
    }
    for row in errors:
        assert row["points"] == "4"
        assert float(row["variance_eval_lo"]) <= float(row["variance"]) <= float(row["variance_eval_hi"])
        assert float(row["cosine_eval_lo"]) <= float(row["cosine"]) <= float(row["cosine_eval_hi"])
        assert (row["bias"] == "") == (row["bias_reason"] != "")
    assert [row["dimension"] for row in rows_of(folder / "dimension.csv")] == ["1.0", "3.0"]
    model, exact = rows_of(folder / "sampling.csv")
    assert (model["samples_of"], exact["samples_of"], exact["n"]) == ("model", "exact", "6")
    assert float(exact["energy_per_dimension"]) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.2)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured already")

    monkeypatch.setattr(score_estimator, "score_errors", never)
    monkeypatch.setattr(ScoreEstimatorStudy, "sample", never)
    smaller = ScoreEstimatorStudy(**TINY | {"parts": ("dimension",)}, output=tmp_path)
    assert smaller.folder() != folder
    assert smaller.execute().splitlines()[:5] == text[text.index("two modes") :].splitlines()[:5]
    for other in ({"seed": 1}, {"points": 5}):
        with pytest.raises(AssertionError, match="measured already"):
            ScoreEstimatorStudy(**TINY | other, output=tmp_path).execute()


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ScoreEstimatorStudy(**TINY | {"parts": ("dimension",)}, output=tmp_path)
    measured, measure = [], ScoreEstimatorStudy.measure

    def counted(self: ScoreEstimatorStudy, piece: Any) -> Any:
        measured.append(piece.x)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(self, piece)

    monkeypatch.setattr(ScoreEstimatorStudy, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        study.execute()
    study.execute()
    assert measured == [1.0, 3.0, 3.0]


def test_a_dry_run_measures_nothing(tmp_path: Path) -> None:
    text = ScoreEstimatorStudy(**TINY, output=tmp_path, dry_run=True).execute()
    assert "target       12 pieces, 0 on disk" in text
    assert list(tmp_path.iterdir()) == []


def test_the_targets_are_what_they_say() -> None:
    x_BD = torch.rand(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    scaled = Rescaled(target=gmm40(), scale=score_estimator.GMM40_SCALE)
    torch.testing.assert_close(small_gmm40().score(x_BD), scaled.score(x_BD), rtol=1e-10, atol=1e-10)
    # The small one is normalised in its own units.
    gap_B = small_gmm40().energy(x_BD) - scaled.energy(x_BD)
    torch.testing.assert_close(gap_B, torch.full_like(gap_B, -2 * math.log(50.0)), rtol=0, atol=1e-9)
    mixture = two_modes(7)
    assert float((mixture.means_KD[1] - mixture.means_KD[0]).norm()) == score_estimator.DISTANCE


def test_the_slope_of_a_known_law() -> None:
    spread_P = np.linspace(0.5, 1.5, 9)
    found = slope_estimate({k: spread_P / k**2 for k in (100, 200, 400)})
    assert (found.value, found.n) == (pytest.approx(-1.0), 9)
    assert found.lo == pytest.approx(-1.0)
    assert slope_estimate({100: spread_P}).reason
    assert slope_estimate({100: spread_P, 200: -spread_P}).reason
    assert slope_estimate({}).n == 0


def test_the_law_is_asked_where_enough_noises_count() -> None:
    weight_square_P = [1.0, 2.0, 6.0, 900.0]
    held = {k: {"weight_square_P": weight_square_P, "bias_square_P": [k, k + 1, k + 2, k + 3]} for k in (5, 10, 20, 80)}
    found = ruled(held)
    assert {k: column.tolist() for k, column in found.items()} == {20: [20, 21], 80: [80, 81]}
    assert ruled({5: held[5]}) == {}


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no points": (["--points", "1"], ["at least 2", "got 1", "--points 64"]),
    "falling": (["--samples", "4", "2"], ["samples rise", "[4, 2]", "--samples 1 10"]),
    "no time": (["--times", "0"], ["(0, 1]", "[0.0]", "--times 0.7"]),
    "twice": (["--forms", "ratio", "ratio"], ["forms differ", "'ratio', 'ratio'", "--forms weighted"]),
    "no part": (["--parts", "target", "target"], ["parts are some of", "--parts target"]),
    "no steps": (["--sampling-steps", "0"], ["at least 1", "got 0", "--sampling-steps 300"]),
}


@pytest.mark.parametrize(("args", "beats"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_option_is_told(
    args: list[str],
    beats: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    check_message(refused(ScoreEstimatorStudy, [*args, "--output", str(results)], monkeypatch, capsys), beats)
    assert not results.exists()
