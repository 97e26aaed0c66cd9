"""What training cost, from what runs have noted."""

import pytest

from rohydr_fast.errors import DataError
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.cost import Cost, costs
from rohydr_fast.reporting.folds import join_folds
from rohydr_fast.reporting.groups import group_runs

from .run_directories import write_run


def groups(*paths):
    return group_runs(join_folds(collect(paths)).runs)[0]


def test_medians_spread_and_time_against_the_fastest(tmp_path):
    for seed, speeds in ((1, (50.0,)), (2, (40.0, 60.0))):  # the second one went on where it had stopped
        write_run(tmp_path / f"r{seed}", seed=seed, method="rohydr", speeds=speeds)
    write_run(tmp_path / "z", method="zero", speeds=(100.0,))
    write_run(tmp_path / "m", method="mean", speeds=(None, 0.0, -1.0))  # nothing to tell
    found = {cost.label: cost for cost in costs(groups(tmp_path))}
    assert set(found) == {"RoHyDR", "zero-fill"}
    assert found["RoHyDR"] == Cost("RoHyDR", 3, 50.0, 40.0, 60.0, 2.0)
    assert found["zero-fill"].times == 1.0


def test_folds_of_a_run_count_each(tmp_path):
    for fold in (1, 2, 3):
        write_run(tmp_path / f"f{fold}", folds=3, fold=fold, prefix=f"f{fold}_", speeds=(10.0 * fold,))
    (found,) = costs(groups(tmp_path))
    assert (found.runs, found.low, found.high) == (3, 10.0, 30.0)


def test_runs_without_a_speed_and_a_damaged_file(tmp_path):
    path = write_run(tmp_path / "r", speeds=())
    assert costs(groups(path)) == []
    (path / "timing.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError, match="timing.jsonl: line 1 must be a JSON object"):
        costs(groups(path))
