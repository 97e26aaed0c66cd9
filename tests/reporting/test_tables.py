"""Tables 1 to 5: cells recomputed by hand, layout, marks, and the paper's numbers beside them."""

import csv
import io
import math

import numpy as np
import pytest

from rohydr_fast.reporting import paper, render, tables
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.groups import MEAN, ONE_A_RATE, ONE_MODEL, RATE_NAMES, group_runs, series_of
from rohydr_fast.reporting.tables import Column, Section, TableRow
from tests.reporting.run_directories import sweep, write_run

SYNTHETIC = "the data are synthetic"


def build(path, data=None) -> dict[int, tables.Table]:
    groups, _ = group_runs(collect([path]).runs)
    return {table.number: table for table in tables.build(series_of(groups), data, SYNTHETIC)}


def row_of(table, section, *stub):
    [found] = [row for part in table.sections if part.name == section for row in part.rows if row.stub == stub]
    return found


def by_hand(path) -> tuple[float, float]:
    """ACC2 and weighted F1 over the clips whose label is not 0, from counts."""
    with np.load(path) as stored:
        kept = stored["label"] != 0
        true, predicted = stored["label"][kept] > 0, stored["prediction"][kept] > 0
    tp, tn = int((true & predicted).sum()), int((~true & ~predicted).sum())
    fp, fn = int((~true & predicted).sum()), int((true & ~predicted).sum())
    share = (tp + fn) / len(true)
    return (tp + tn) / len(true), share * 2 * tp / (2 * tp + fp + fn) + (1 - share) * 2 * tn / (2 * tn + fp + fn)


def mean_and_deviation(values) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


@pytest.mark.parametrize(
    ("table", "condition", "stems"),
    [
        (1, "0.3", ["rates-exact-0.3"]),
        (1, MEAN, [f"rates-exact-{rate}" for rate in RATE_NAMES]),
        (2, "{a,v}", ["fixed-a-v"]),
    ],
)
def test_a_cell_is_what_its_predictions_give_by_hand(tmp_path, table, condition, stems):
    """Swapping F1's arguments anywhere fails here: the two F1 differ for these predictions."""
    root = sweep(tmp_path, {"zero": 2.0}, missing_rate="mixed")
    cells = row_of(build(root)[table], ONE_MODEL, "zero-fill")
    per_seed = [
        np.mean([by_hand(root / "zero" / f"seed{seed}" / "predictions" / f"test-{stem}.npz") for stem in stems], axis=0)
        for seed in (1, 2, 3)
    ]
    for place, metric in enumerate((tables.ACC2, tables.F1)):
        expected = mean_and_deviation([values[place] for values in per_seed])
        assert cells.value(condition, metric)[:2] == pytest.approx(expected, abs=1e-12)
        assert cells.value(condition, metric)[2] == 3


def test_a_cell_shows_mean_deviation_and_number(tmp_path):
    table = build(sweep(tmp_path, {"zero": 2.0}))[1]
    cells = row_of(table, ONE_MODEL, "zero-fill")
    texts = [f"{100 * mean:.2f} +- {100 * std:.2f}" for mean, std, _ in (cells.value("0.3", m) for m in
             (tables.ACC2, tables.F1))]  # fmt: skip
    assert f"| {texts[0]} / {texts[1]} (3) |" in render.to_markdown(table).replace("  ", " ").replace("  ", " ")


def test_one_model_and_one_model_a_rate_are_never_mixed(tmp_path):
    for rate in RATE_NAMES:
        write_run(tmp_path / rate, missing_rate=rate, evaluate=())
    write_run(tmp_path / "mixed", missing_rate="mixed", evaluate=("rates",))
    table = build(tmp_path)[1]
    assert [section.name for section in table.sections] == [ONE_MODEL, ONE_A_RATE]
    stems = {ONE_MODEL: "mixed/predictions/test-rates-exact-0.3.npz", ONE_A_RATE: "0.3/predictions/test-exact-0.3.npz"}
    for section, stem in stems.items():
        assert row_of(table, section, "RoHyDR").value("0.3", tables.ACC2)[0] == by_hand(tmp_path / stem)[0]
    assert row_of(table, ONE_A_RATE, "RoHyDR").value(MEAN, tables.ACC2)[2] == 1


def test_the_mean_needs_all_eight_rates(tmp_path):
    for rate in RATE_NAMES[:-1]:
        write_run(tmp_path / rate, missing_rate=rate, evaluate=())
    row = row_of(build(tmp_path)[1], ONE_A_RATE, "RoHyDR")
    assert row.value("0.6", tables.ACC2)[2] == 1 and row.value(MEAN, tables.ACC2) == (None, None, 0)
    assert "|    - |\n" in render.to_markdown(build(tmp_path)[1])


def test_models_of_different_training_rates_are_different_rows(tmp_path):
    for rate in ("0.3", "mixed"):
        write_run(tmp_path / rate, missing_rate=rate, evaluate=("rates",))
    labels = [row.stub for row in build(tmp_path)[1].sections[0].rows]
    assert labels == [("RoHyDR, trained with exact 0.3",), ("RoHyDR, trained with mixed",)]


def test_averaged_recoveries_are_a_row_of_their_own(tmp_path):
    path = write_run(tmp_path / "run", evaluate=("rates",))
    other = write_run(tmp_path / "other", seed=2, evaluate=("rates",), samples=8)
    labels = [row.stub[0] for row in build(tmp_path)[1].sections[0].rows]
    assert path != other and labels == ["RoHyDR, recoveries averaged: 1", "RoHyDR, recoveries averaged: 8"]


def test_table_2_has_the_sets_that_the_data_have(tmp_path):
    table = build(write_run(tmp_path / "run", modalities=("a", "t")))[2]
    assert [column.heading for column in table.columns] == ["{a}", "{t}", "{a,t}"]


def test_ablations_fill_tables_3_to_5(tmp_path):
    for without in ("", "hddm", "ur", "hddm,ur", "mr"):
        write_run(tmp_path / f"x{without}", without=without, evaluate=("rates",))
    write_run(tmp_path / "two", strategy="two-stage", evaluate=("rates",))
    write_run(tmp_path / "zero", method="zero", evaluate=("rates",))
    built = build(tmp_path)
    yes, no = tables.YES, tables.NO
    means = {number: {row.stub: row.value(MEAN, tables.ACC2)[0] for row in built[number].sections[0].rows}
             for number in (3, 4, 5)}  # fmt: skip
    expected = {
        without: np.mean(
            [by_hand(tmp_path / without / "predictions" / f"test-rates-exact-{r}.npz")[0] for r in RATE_NAMES]
        )
        for without in ("x", "xhddm", "xur", "xhddm,ur", "xmr", "two")
    }
    full = pytest.approx(expected["x"])
    assert means[3] == {(no, no): pytest.approx(expected["xhddm,ur"]), (no, yes): pytest.approx(expected["xhddm"]),
                        (yes, no): pytest.approx(expected["xur"]), (yes, yes): full}  # fmt: skip
    assert means[4] == {(no, no): None, (no, yes): None, (yes, no): pytest.approx(expected["xmr"]), (yes, yes): full}
    assert means[5] == {("one-stage",): None, ("two-stage",): pytest.approx(expected["two"]), ("three-stage",): full}


def test_a_table_without_runs_shows_dashes_and_no_number(tmp_path):
    built = build(write_run(tmp_path / "run", missing_rate="mixed", evaluate=()))
    for table in built.values():
        body = [line for line in render.to_markdown(table).splitlines() if line.startswith("|")][2:]
        assert body and not any(letter.isdigit() for line in body for letter in line)


def section_of(*statistics) -> Section:
    rows = [TableRow((str(i),), {"c": {"MAE": s, tables.ACC2: s}}, None, None) for i, s in enumerate(statistics)]
    return Section("", tuple(rows))


def test_best_and_ties_are_computed_from_means():
    section = section_of((0.80, 0.02, 4), (0.795, 0.5, 4), (0.78, 0.0, 4), (None, None, 0))
    assert section.marks("c", tables.ACC2) == ["best", "tie", "", ""]  # one standard error: 0.02 / sqrt(4) = 0.01
    assert section.marks("c", "MAE") == ["", "", "best", ""]
    assert section_of((0.8, 0.1, 3)).marks("c", tables.ACC2) == [""]
    assert section_of((0.8, None, 1), (0.8, None, 1), (0.79, None, 1)).marks("c", tables.ACC2) == ["best", "best", ""]


def test_the_best_is_bold_in_markdown_and_latex():
    statistics = [(0.80, 0.02, 4), (0.795, 0.5, 4)]
    columns = (Column("ACC2", "c", (tables.ACC2,)),)
    table = tables.Table(1, "t_1", ("model",), columns, (section_of(*statistics),), (), False)
    markdown, latex = render.to_markdown(table), render.to_latex(table)
    assert "**80.00 +- 2.00** (4)" in markdown and "_79.50 +- 50.00_ (4)" in markdown
    assert r"\textbf{80.00 $\pm$ 2.00} (4)" in latex and r"\emph{79.50 $\pm$ 50.00} (4)" in latex and r"t\_1" in latex


def test_the_papers_numbers_stand_below_comparable_rows(tmp_path):
    root = sweep(tmp_path, {"zero": 2.0, "imder": 1.0}, seeds=(1,))
    write_run(root / "full", evaluate=("rates",))
    table = build(root, "MOSI")[1]
    lines = render.lines(table, table.sections[0])
    assert [line.stub[0] for line in lines] == ["zero-fill", "imder-style", "paper: IMDer", "RoHyDR", "paper: RoHyDR"]
    assert [part.mean for part in lines[-1].cells[-1].parts] == ["82.45", "81.87"]
    table = build(root)[1]
    assert all(cell == render.EMPTY for cell in render.lines(table, table.sections[0])[-1].cells)
    assert SYNTHETIC in render.to_markdown(table)


def test_the_papers_numbers_stand_beside_ablations(tmp_path):
    built = build(write_run(tmp_path / "run", evaluate=("rates",)), "MOSI")
    beside = [cell.parts[0].mean for cell in render.lines(built[3], built[3].sections[0])[1].cells[1::2]]
    assert beside == ["78.93", "38.62", "78.11"] and render.headings(built[3])[2:4] == ["ACC2", "paper"]
    assert "paper | 42.03" not in render.to_markdown(built[3])
    assert all(
        cell == render.EMPTY
        for cell in render.lines(build(tmp_path)[3], build(tmp_path)[3].sections[0])[1].cells
    )  # fmt: skip
    assert paper.row(3, "MOSEI", "hddm") is None


def test_csv_has_mmsas_metrics_with_has0(tmp_path):
    root = sweep(tmp_path, {"zero": 2.0}, seeds=(1, 2))
    rows = list(csv.DictReader(io.StringIO(render.to_csv(build(root)[1]))))
    [row] = [row for row in rows if row["condition"] == "0.3" and row["section"] == ONE_MODEL]
    runs = [run.evaluations for run in collect([root]).runs]
    values = [
        r.metrics["Has0_acc_2"]
        for evaluations in runs
        for evaluation in evaluations
        if evaluation.protocol == "rates"
        for r in evaluation.rows
        if r.name == "exact 0.3"
    ]
    mean, deviation = mean_and_deviation(values)
    assert float(row["Has0_acc_2_mean"]) == pytest.approx(100 * mean, abs=1e-4)
    assert float(row["Has0_acc_2_std"]) == pytest.approx(100 * deviation, abs=1e-4)
    assert row["n"] == "2" and row["model"] == "zero-fill" and row["paper_Non0_acc_2"] == "-"
    assert {f"{metric}_{what}" for metric in tables.ALL_METRICS for what in ("mean", "std")} <= set(row)


def test_points_of_figure_4_are_no_rows(tmp_path):
    for value in (1.0, 0.5):
        write_run(tmp_path / str(value), lambda_g=value, evaluate=("rates",))
    assert [row.stub for row in build(tmp_path)[1].sections[0].rows] == [("RoHyDR",)]
    write_run(tmp_path / "alone" / "x", lambda_g=0.5, evaluate=("rates",))
    assert len(build(tmp_path / "alone")[1].sections[0].rows) == 1


def test_text_is_inert_in_latex():
    assert render.latex_text(r"a_b & 50% \input{x} {a,t}") == (r"a\_b \& 50\% \textbackslash{}input\{x\} \{a,t\}")
