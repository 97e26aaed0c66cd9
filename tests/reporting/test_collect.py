"""Which runs a report is made of, and why the others are not."""

import json

import numpy as np
import pytest

from rohydr_fast.errors import DataError, FileAccessError, UsageError
from rohydr_fast.reporting.collect import collect
from rohydr_fast.reporting.groups import group_runs
from tests.reporting.run_directories import SHA256, write_run


def left_out(collection) -> dict[str, str]:
    return {entry.path.name: entry.reason for entry in collection.left_out}


@pytest.fixture
def good(tmp_path):
    return write_run(tmp_path / "runs" / "good", seed=1, evaluate=("rates",))


def test_a_run_is_read_with_everything_that_it_holds(good):
    [run] = collect([good]).runs
    assert (run.seed, run.settings.missing, run.sha256) == (1, "exact 0.5", SHA256)
    assert run.modalities == ("a", "t", "v") and len(run.epochs) == 3
    assert [(e.protocol, len(e.rows)) for e in run.evaluations] == [("rates", 8)]
    assert run.own.name == "exact 0.5" and run.own.metrics == run.result["test"]


def test_runs_are_found_at_any_depth_and_each_once(tmp_path, good):
    deep = write_run(tmp_path / "runs" / "sweep" / "zero" / "seed2", seed=2, evaluate=())
    (tmp_path / "runs" / "sweep" / "config.yaml").write_text("a folder's own file does not make it a run")
    collection = collect([tmp_path, good, deep])
    assert sorted(run.path for run in collection.runs) == [good, deep] and not collection.left_out


def test_the_valid_split_is_read_when_asked_for(good):
    [run] = collect([good], split="valid").runs
    assert run.own.metrics == run.result["valid"] and run.evaluations == () and run.own.rate is None


def test_no_run_at_all_is_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match="report: must be given at least one run"):
        collect([tmp_path])


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileAccessError, match="nowhere"):
        collect([tmp_path / "nowhere"])


def test_a_folder_without_runs_is_named(tmp_path, good):
    (tmp_path / "empty").mkdir()
    assert "there is no run in it" in left_out(collect([good, tmp_path / "empty"]))["empty"]


def test_only_left_out_runs_are_an_error_that_says_why(tmp_path):
    write_run(tmp_path / "broken", finished=False)
    with pytest.raises(DataError, match="no run is left.*training is not finished"):
        collect([tmp_path])


def test_an_unfinished_run_is_left_out_with_the_way_to_go_on(tmp_path, good):
    path = write_run(tmp_path / "stopped", seed=2, finished=False)
    reason = left_out(collect([good, path]))["stopped"]
    assert "not finished" in reason and f"--resume {path}" in reason


def damage(path, name, content):
    target = path / name
    if content is None:
        target.unlink()
    elif isinstance(content, bytes):
        target.write_bytes(content)
    elif isinstance(content, float):
        data = target.read_bytes()
        target.write_bytes(data[: int(len(data) * content)])
    else:
        target.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metrics.json", '{"test": {', "metrics.json cannot be read"),
        ("metrics.json", "[]", "metrics.json must hold a JSON object"),
        ("metrics.json", "{}", "metrics.json must hold the metrics of the test split"),
        ("metrics.json", b"\xff\xfe", "metrics.json cannot be read"),
        ("env.json", "{}", "must hold the data's source and sha256"),
        ("env.json", None, "env.json does not exist"),
        ("config.yaml", "- a list", "config.yaml: must hold a YAML mapping"),
        ("config.yaml", "missing_rate: 7", "config.yaml cannot be read"),
        ("config.yaml", None, "without config.yaml"),
        ("metrics.jsonl", "not json\n", "metrics.jsonl: line 1"),
        ("metrics.jsonl", "", "metrics.jsonl must hold epoch, train and valid"),
        (
            "metrics.jsonl",
            '{"kind": "epoch", "epoch": 1, "train": {}}\n',
            "metrics.jsonl must hold epoch, train and valid",
        ),
        ("evaluations/rates-test.json", 0.5, "rates-test.json cannot be read"),
        ("evaluations/rates-test.json", '{"split": "test"}', "must hold protocol, suffix, samples and rows"),
        ("predictions/test-rates-exact-0.3.npz", 0.5, "test-rates-exact-0.3.npz cannot be read"),
        ("predictions/test-rates-exact-0.3.npz", None, "test-rates-exact-0.3.npz does not exist"),
        ("predictions/test-exact-0.5.npz", "text", "test-exact-0.5.npz cannot be read"),
    ],
)
def test_a_damaged_file_leaves_the_run_out(tmp_path, good, name, content, reason):
    path = write_run(tmp_path / "damaged", seed=2, evaluate=("rates",))
    damage(path, name, content)
    collection = collect([good, path])
    assert [run.path for run in collection.runs] == [good]
    assert reason in left_out(collection)["damaged"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("missing", np.zeros((60, 2), bool)),
        ("prediction", np.zeros(59, np.float32)),
        ("label", np.array(["a"] * 60)),
        ("id", np.arange(60)),
    ],
)
def test_arrays_of_another_shape_or_kind_leave_the_run_out(tmp_path, good, key, value):
    path = write_run(tmp_path / "damaged", seed=2, evaluate=())
    stored = path / "predictions" / "test-exact-0.5.npz"
    with np.load(stored) as arrays:
        np.savez(stored, **{**arrays, key: value})
    assert f"must hold {key}" in left_out(collect([good, path]))["damaged"]


def test_metrics_that_the_predictions_do_not_give_leave_the_run_out(tmp_path, good):
    path = write_run(tmp_path / "edited", seed=2, evaluate=("rates",))
    file = path / "evaluations" / "rates-test.json"
    document = json.loads(file.read_text())
    document["rows"]["exact 0.3"]["Non0_F1_score"] += 0.01
    file.write_text(json.dumps(document))
    reason = left_out(collect([good, path]))["edited"]
    assert "evaluation rates says Non0_F1_score" in reason and "for exact 0.3" in reason


def test_f1_with_swapped_arguments_is_noticed(good, monkeypatch):
    """F1 weights the classes by the labels. With the arguments swapped, stored and computed values differ."""
    from rohydr_fast.evaluation import metrics

    right = metrics.weighted_f1
    monkeypatch.setattr(metrics, "weighted_f1", lambda true, predicted: right(predicted, true))
    with pytest.raises(DataError, match="F1_score"):
        collect([good])


@pytest.mark.parametrize(("key", "value"), [("checkpoint", "last"), ("seed", 7)])
def test_an_evaluation_of_another_kind_is_left_out_alone(tmp_path, good, key, value):
    file = good / "evaluations" / "rates-test.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    collection = collect([good])
    assert collection.runs[0].evaluations == ()
    assert f"its {key} is {value}" in left_out(collection)["rates-test.json"]


def test_runs_on_other_data_than_the_majority_are_left_out(tmp_path, good):
    write_run(tmp_path / "runs" / "other", seed=2, sha256="77" * 32, evaluate=())
    write_run(tmp_path / "runs" / "third", seed=3, evaluate=())
    collection = collect([tmp_path])
    assert len(collection.runs) == 2
    assert "SHA-256 777777777777" in left_out(collection)["other"] and "2 of 3 runs" in left_out(collection)["other"]


def test_the_data_can_be_named(tmp_path, good):
    other = write_run(tmp_path / "other", seed=2, sha256="77" * 32, evaluate=())
    collection = collect([good, other], sha256="7777")
    assert [run.path for run in collection.runs] == [other] and "good" in left_out(collection)
    with pytest.raises(DataError, match="the report is of abcd"):
        collect([good, other], sha256="abcd")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"preset": "paper", "epochs": 3}, "its preset is paper, and that of most runs on these data tiny (2 of 3)"),
        ({"epochs": 5}, "its epochs is 5"),
        ({"protocol": "fractions"}, "its protocol is fractions"),
    ],
)
def test_another_preset_length_or_protocol_is_left_out(tmp_path, good, setting, reason):
    write_run(tmp_path / "runs" / "same", seed=2, evaluate=())
    write_run(tmp_path / "runs" / "other", seed=3, evaluate=(), **setting)
    collection = collect([tmp_path])
    assert len(collection.runs) == 2 and reason in left_out(collection)["other"]


def test_the_default_and_the_same_epochs_by_number_are_one_group(tmp_path):
    write_run(tmp_path / "a", seed=1, evaluate=())
    write_run(tmp_path / "b", seed=2, evaluate=(), epochs=3, steps=5, missing_rate="0.50", device="cpu", max_memory=99)
    groups, _ = group_runs(collect([tmp_path]).runs)
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 2]]


@pytest.mark.parametrize("setting", [{"lr": 0.01}, {"missing_rate": "0.3"}, {"setting_of_the_future": "x"}])
def test_any_other_setting_makes_another_group(tmp_path, setting):
    write_run(tmp_path / "a", seed=1, evaluate=())
    write_run(tmp_path / "b", seed=2, evaluate=(), **setting)
    groups, _ = group_runs(collect([tmp_path]).runs)
    [name] = setting
    assert len(groups) == 2 and len({group.label for group in groups}) == 2
    assert any(("missing" if name == "missing_rate" else name) in group.values for group in groups)


def test_the_same_seed_twice_is_named_and_one_left_out(tmp_path):
    first = write_run(tmp_path / "a", seed=1, evaluate=())
    write_run(tmp_path / "b", seed=1, evaluate=())
    groups, unused = group_runs(collect([tmp_path]).runs)
    assert [[run.path for run in group.runs] for group in groups] == [[first]]
    assert unused[
        0
    ].path == tmp_path / "b" and f"seed 1 of the same settings and data is already there, in {first}" in (
        unused[0].reason
    )


def test_labels_are_the_methods_names():
    from rohydr_fast.reporting.settings import labels

    base = {"method": "rohydr", "without": "", "strategy": "three-stage", "lr": 1e-3}
    rows = [
        {**base, "method": "zero"},
        {**base, "method": "mmin"},
        {**base, "without": "hddm,ur"},
        {**base, "strategy": "two-stage"},
        base,
        {**base, "lr": 0.01},
    ]
    assert labels(rows) == [
        "zero-fill",
        "mmin-style",
        "RoHyDR without HDDM, UR",
        "RoHyDR, two-stage",
        "RoHyDR, lr 0.001",
        "RoHyDR, lr 0.01",
    ]


def test_a_run_of_before_methods_is_rohydr(good):
    [run] = collect([good]).runs
    assert run.settings.values["method"] == "rohydr"
