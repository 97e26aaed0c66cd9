"""Several runs from one call, and their row in a table as MMSA writes it."""

import csv

import numpy as np
import pytest

import rohydr_fast
from rohydr_fast.data import containers
from rohydr_fast.errors import DataError, UsageError
from rohydr_fast.training.several import MMSA_METRICS
from tests.small_data import small_tree

QUICK = dict(epochs=1, steps=2, batch_size=5)


@pytest.fixture
def data(tmp_path):
    containers.write(small_tree(), str(tmp_path / "clips.npz"))
    return str(tmp_path / "clips.npz")


def test_each_seed_is_a_run_and_the_table_is_over_all(data, tmp_path):
    runs = rohydr_fast.run(dataset=data, missing_rate=0.5, seeds=[1, 2], out=tmp_path / "runs", **QUICK)
    assert runs.directories == (tmp_path / "runs" / "seed1", tmp_path / "runs" / "seed2")
    errors = [result.summary["test"]["MAE"] for result in runs.results]
    mean, deviation, n = runs.metrics["RoHyDR"]["MAE"]
    assert (mean, n) == (pytest.approx(np.mean(errors)), 2) and errors[0] != errors[1]
    assert "RoHyDR" in runs.table and all(rohydr_fast.RoHyDR.from_pretrained(d) for d in runs.directories)
    table = tmp_path / "mosi.csv"
    runs.to_csv(table)
    runs.to_csv(table, "mine")
    header, first, second = csv.reader(table.open())
    assert (
        header == ["Model", *MMSA_METRICS] and (first[0], second[0]) == ("RoHyDR", "mine") and first[1:] == second[1:]
    )
    place = header.index("MAE")
    assert first[place] == str((round(100 * float(np.mean(errors)), 2), round(100 * float(np.std(errors)), 2)))


def test_a_table_with_other_columns_is_left_alone(data, tmp_path):
    runs = rohydr_fast.run(data, "mixed", out=tmp_path / "run", **QUICK)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="must have the columns Model"):
        runs.to_csv(tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(seeds=[1, 1]), "differ"),
        (dict(seeds=[]), "differ"),
        (dict(speed=9), "got 'speed'"),
        (dict(data="x.pkl"), "got 'data'"),
        (dict(missing_rate=2), "must lie in"),
    ],
)
def test_impossible_calls_train_nothing(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        rohydr_fast.run(**arguments)
    assert list(tmp_path.iterdir()) == []
