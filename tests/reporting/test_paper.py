"""The paper's numbers, against facts that can be derived from them and from its text."""

import numpy as np
import pytest

from rohydr_fast.reporting import paper

DATA = ("MOSI", "MOSEI")


def cells(table: int, data: str) -> dict[str, np.ndarray]:
    """Model -> (columns, 2) ACC2 and F1 in percent, NaN where the paper has none."""
    rows = paper.numbers()[f"table{table}"]["rows"][data]
    return {name: np.array([cell or (np.nan, np.nan) for cell in row], float) for name, row in rows.items()}


def baselines(table: int, data: str) -> np.ndarray:
    return np.stack([row for name, row in cells(table, data).items() if name != "RoHyDR"])


def column(table: int, name: str) -> int:
    return paper.numbers()[f"table{table}"]["columns"].index(name)


def test_the_tables_are_complete():
    assert set(cells(1, "MOSI")) == set(cells(2, "MOSI")) == {"IMDer", "DiCMoR", "MTMSA", "SMCMSA", "RoHyDR"}
    assert set(cells(1, "MOSEI")) == set(cells(2, "MOSEI")) == {"MMIN", "GCNet", "IMDer", "DiCMoR", "RoHyDR"}
    for data in DATA:
        assert {row.shape for row in cells(1, data).values()} == {(8, 2)}
        assert {row.shape for row in cells(2, data).values()} == {(7, 2)}
    absent = {(name, int(i)) for name, row in cells(1, "MOSI").items() for i in np.flatnonzero(np.isnan(row[:, 0]))}
    assert absent == {("MTMSA", 6), ("MTMSA", 7)}
    rows = [set(paper.numbers()[f"table{table}"]["rows"]["MOSI"]) for table in (3, 4, 5)]
    assert rows == [
        {"", "ur", "hddm", "hddm,ur"},
        {"", "mr", "d", "d,mr"},
        {"one-stage", "two-stage", "three-stage"},
    ]


@pytest.mark.parametrize(("table", "name"), [(3, ""), (4, ""), (5, "three-stage")])
def test_the_mean_of_rohydrs_row_is_what_the_ablations_call_the_full_model(table, name):
    mean = paper.row(1, "MOSI", "rohydr")["mean"]
    assert round(100 * mean["Non0_acc_2"], 2) == 82.45 and round(100 * mean["Non0_F1_score"], 2) == 81.87
    full = paper.row(table, "MOSI", name)["mean"]
    assert all(abs(full[metric] - value) < 6e-5 for metric, value in mean.items())


def test_complete_data_agree_between_tables_1_and_2_but_for_three_rows():
    differ = {
        (data, name)
        for data in DATA
        for name, row in cells(1, data).items()
        if not np.array_equal(row[0], cells(2, data)[name][column(2, "{a,t,v}")])
    }
    assert differ == {
        ("MOSI", "SMCMSA"),
        *(("MOSEI", name) for name in ("MMIN", "GCNet", "IMDer", "DiCMoR")),
    }


def test_the_decline_and_the_gains_are_the_tables_not_the_texts():
    ours = cells(1, "MOSI")["RoHyDR"][:, 0]
    assert round(ours[0] - ours[7], 2) == 10.26  # the text: 10.36
    gains = ours[0] - baselines(1, "MOSI")[:, 0, 0]
    assert (round(gains.min(), 2), round(gains.max(), 2)) == (1.19, 2.0)  # the text: 1.29 to 2.00
    for data, low, high in (("MOSI", 0.87, 7.86), ("MOSEI", 0.32, 8.71)):  # the text: 0.62 to 7.47 on both
        gains = cells(2, data)["RoHyDR"][:3, 0] - baselines(2, data)[:, :3, 0]
        assert (round(gains.min(), 2), round(gains.max(), 2)) == (low, high)


def test_mmins_complete_cell_repeats_its_rate_of_0_6():
    complete = cells(2, "MOSEI")["MMIN"][column(2, "{a,t,v}")]
    assert np.array_equal(complete, cells(1, "MOSEI")["MMIN"][column(1, "0.6")])


def test_rohydr_is_best_in_all_but_three_f1_cells():
    """All of RoHyDR's cells are in bold."""
    beaten = {
        (table, data, paper.numbers()[f"table{table}"]["columns"][i], "ACC2" if j == 0 else "F1")
        for table in (1, 2)
        for data in DATA
        for i, j in np.argwhere(np.nanmax(baselines(table, data), 0) > cells(table, data)["RoHyDR"])
    }
    assert beaten == {(2, "MOSI", "{a,v}", "F1"), (1, "MOSEI", "0.1", "F1"), (2, "MOSEI", "{v}", "F1")}


def test_rows_are_found_by_our_names():
    assert paper.row(2, "MOSEI", "mmin")["{t}"] == {"Non0_acc_2": 0.8367, "Non0_F1_score": 0.8342}
    assert "mean" not in paper.row(1, "MOSI", "mtmsa") and "0.6" not in paper.row(1, "MOSI", "mtmsa")
    assert paper.row(1, "MOSI", "mmin") is None and paper.row(1, "MOSI", "zero") is None
    assert paper.row(3, "MOSEI", "") is None and paper.row(1, None, "rohydr") is None
    assert paper.row(3, "MOSI", "ur")["mean"]["Mult_acc_7"] == pytest.approx(0.4024)


@pytest.mark.parametrize(
    ("source", "clips", "modalities", "name", "reason"),
    [
        ("/data/MOSI.pkl", 686, ("a", "t", "v"), "MOSI", "standard"),
        ("unaligned_mosei_50.npz", 4659, ("a", "t", "v"), "MOSEI", "standard"),
        ("synthetic", 686, ("a", "t", "v"), None, "synthetic"),
        ("mosi.pkl", 686, ("a", "t"), None, "a, t only"),
        ("mosi_word.pkl", 59, ("a", "t", "v"), None, "59 clips"),
        ("mosi.pkl", 686, None, None, "not known"),
        ("mosimilar.pkl", 686, ("a", "t", "v"), None, "mosimilar"),
    ],
)
def test_only_the_papers_data_with_all_modalities_are_comparable(source, clips, modalities, name, reason):
    found, sentence = paper.data_set(source, clips, modalities)
    assert found == name and reason in sentence
