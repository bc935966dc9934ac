"""What people and programs get: aligned tables, complete CSV files that read back exactly, strict JSON."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from harness.answers.crossover import crossover
from harness.answers.export import answer, strict, write_answer, write_frontier, write_surface
from harness.answers.frontier import BudgetAnswer, best_splits
from harness.answers.laws import laws_of
from harness.answers.report import answer_table, crossover_table, laws_text, percent, savings_table, table
from harness.answers.savings import naive_grid_cost
from harness.answers.surface import Cell
from tests.harness.answers.synthetic_surface import BUDGETS, QUESTION, SECONDS, seconds, surface


def answers_of(cells: list[Cell]) -> tuple[BudgetAnswer, ...]:
    return best_splits(cells, seconds(BUDGETS), QUESTION)


def with_a_loss(cells: list[Cell]) -> list[Cell]:
    """One tail has diverged to numbers that are none."""
    broken = {name: replace(e, value=math.nan, lo=math.inf) for name, e in cells[-1].test.items()}
    return [*cells[:-1], replace(cells[-1], diverged=True, test=broken)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


class TestTables:
    def test_there_is_a_row_for_every_budget_with_share_ends_and_gain(self) -> None:
        text = answer_table(answers_of(surface()), QUESTION)
        lines = text.splitlines()
        assert lines[0].split()[0] == "budget"
        assert [line.split()[0] for line in lines[2:5]] == ["100s", "400s", "1600s"]
        for word in ("best FM share", "FM only", "PG only", "hybrid / FM only", "nll there", "ess there"):
            assert word in lines[0]
        assert "n = 1000 test points, mean of 5 seeds" in text

    def test_columns_are_aligned(self) -> None:
        lines = table(["a", "long header"], [["x", "1"], ["longer", "22"]]).splitlines()
        assert lines == ["a       long header", "------  -----------", "x                 1", "longer           22"]

    def test_one_seed_is_said_to_be_one_seed(self) -> None:
        text = answer_table(answers_of(surface(seeds=1)), QUESTION)
        assert "mean of 1 seed;" in text
        assert "note: one seed" in text
        assert "nan" not in text

    def test_diverged_models_are_named_in_place_of_numbers(self) -> None:
        cells = [replace(c, diverged=c.tail == "pg" and c.fork_steps == 0 and c.seed == 1) for c in surface()]
        assert "1/5 diverged" in answer_table(answers_of(cells), QUESTION)

    def test_nothing_to_tell_is_said(self) -> None:
        assert "no budget is reached" in answer_table((), QUESTION)
        assert "no fork has both tails" in crossover_table((), SECONDS, QUESTION)

    def test_the_crossover_names_the_quality_from_which_the_second_phase_helps(self) -> None:
        text = crossover_table(crossover(surface(), SECONDS, QUESTION), SECONDS, QUESTION)
        assert "hurts" in text.splitlines()[2]
        assert text.splitlines()[-1].startswith("PG is shown to help from forward KL / nats 0.6")

    def test_savings_have_a_row_for_every_grid(self) -> None:
        text = savings_table([("all tails", naive_grid_cost(surface(), seconds(BUDGETS)))], SECONDS)
        assert "each alone / s" in text
        assert "all tails" in text

    def test_laws_that_are_refused_say_why_once(self) -> None:
        text = laws_text(laws_of(answers_of(surface()), QUESTION), QUESTION, SECONDS)
        assert "needs at least six budgets over two decades" in text

    @pytest.mark.parametrize(("share", "text"), [(0.0, "0%"), (0.0043, "0.43%"), (0.25, "25%"), (0.997, "100%")])
    def test_small_shares_do_not_read_as_none(self, share: float, text: str) -> None:
        assert percent(share) == text


class TestSurfaceFile:
    def test_every_model_has_a_row_with_every_column(self, tmp_path: Path) -> None:
        cells = with_a_loss(surface())
        write_surface(tmp_path / "surface.csv", cells, SECONDS, QUESTION)
        rows = rows_of(tmp_path / "surface.csv")
        assert len(rows) == len(cells)
        place = "seed fm_cost pg_cost fm_share tail fork_steps tail_steps cost currency diverged segment spent_cost"
        metrics = [p + m + end for p in ("", "validation_") for m in ("kl", "nll", "ess") for end in ("", *ENDS)]
        assert list(rows[0]) == [*place.split(), *metrics]
        assert [p.name for p in tmp_path.iterdir()] == ["surface.csv"]

    def test_numbers_read_back_exactly(self, tmp_path: Path) -> None:
        cells = surface()
        write_surface(tmp_path / "surface.csv", cells, SECONDS, QUESTION)
        by_segment = {c.segment: c for c in cells}
        for row in rows_of(tmp_path / "surface.csv"):
            cell = by_segment[row["segment"]]
            assert float(row["kl"]) == cell.test["kl"].value
            assert float(row["validation_ess_eval_hi"]) == cell.validation["ess"].hi
            assert float(row["cost"]) == cell.cost(SECONDS)
            assert int(row["nll_n"]) == 1000

    def test_a_refinement_tail_counts_to_the_first_phase(self, tmp_path: Path) -> None:
        write_surface(tmp_path / "surface.csv", surface(), SECONDS, QUESTION)
        for row in rows_of(tmp_path / "surface.csv"):
            first, second, total = (float(row[key]) for key in ("fm_cost", "pg_cost", "cost"))
            assert first + second == pytest.approx(total)
            assert second == (float(row["tail_steps"]) if row["tail"] == "pg" else 0.0)
            assert float(row["fm_share"]) == pytest.approx(first / total if total else 1.0)

    def test_what_was_spent_sums_to_the_tree(self, tmp_path: Path) -> None:
        cells = surface()
        write_surface(tmp_path / "surface.csv", cells, SECONDS, QUESTION)
        spent = sum(float(row["spent_cost"]) for row in rows_of(tmp_path / "surface.csv"))
        assert spent == pytest.approx(naive_grid_cost(cells, seconds(BUDGETS)).tree)

    def test_what_is_not_a_number_is_an_empty_field(self, tmp_path: Path) -> None:
        write_surface(tmp_path / "surface.csv", with_a_loss(surface()), SECONDS, QUESTION)
        lost = [row for row in rows_of(tmp_path / "surface.csv") if row["diverged"] == "true"]
        assert len(lost) == 1
        assert (lost[0]["kl"], lost[0]["kl_eval_lo"]) == ("", "")


class TestFrontierFile:
    def test_a_row_for_every_budget_keeps_both_kinds_of_interval_apart(self, tmp_path: Path) -> None:
        answers = answers_of(surface())
        write_frontier(tmp_path / "frontier.csv", answers, QUESTION)
        rows = rows_of(tmp_path / "frontier.csv")
        assert [float(row["budget"]) for row in rows] == list(BUDGETS)
        for way in ("best", "hybrid", "fm_only", "pg_only"):
            for end in ("", "_seed_lo", "_seed_hi", "_eval_lo", "_eval_hi", "_n"):
                assert f"{way}_kl{end}" in rows[0]
        score = answers[0].best.scores["kl"]
        assert float(rows[0]["best_kl_seed_hi"]) == score.seed_hi
        assert float(rows[0]["best_kl_eval_hi"]) == score.eval_hi
        assert float(rows[2]["hybrid_kl_ratio_to_fm_only_seed_hi"]) < 1.0

    def test_no_answer_is_an_empty_file(self, tmp_path: Path) -> None:
        write_frontier(tmp_path / "frontier.csv", (), QUESTION)
        assert (tmp_path / "frontier.csv").read_text() == ""


class TestAnswerFile:
    @pytest.mark.parametrize("seeds", [1, 5])
    def test_it_is_strict_json_with_all_that_was_asked(self, tmp_path: Path, seeds: int) -> None:
        cells = with_a_loss(surface(seeds=seeds))
        answers = answers_of(cells)
        value = answer(
            answers,
            QUESTION,
            crossings=crossover(cells, SECONDS, QUESTION),
            laws=laws_of(answers, QUESTION),
            savings={"all tails": naive_grid_cost(cells, seconds(BUDGETS))},
        )
        write_answer(tmp_path / "answer.json", value)
        read = json.loads((tmp_path / "answer.json").read_text(), parse_constant=pytest.fail)
        assert read == json.loads(json.dumps(value))
        for budget in read["budgets"]:
            assert budget["best_share"] in budget["indistinguishable_shares"]
            for way in ("best", "hybrid", "fm_only", "pg_only"):
                assert budget[way]["metrics"].keys() == {"kl", "nll", "ess"}
                assert budget[way]["diverged_rate"] == 0.0
        assert "95 % t interval over seeds" in read["methods"]
        assert read["savings"]["all tails"]["ratio"] > 1.0
        assert len(read["crossover"]) == 4

    def test_numbers_that_json_does_not_know_become_null(self) -> None:
        assert strict({"a": [math.nan, (math.inf, 1.5)], 2: "x"}) == {"a": [None, [None, 1.5]], "2": "x"}


ENDS = ("_eval_lo", "_eval_hi", "_n")
