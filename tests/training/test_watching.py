"""TensorBoard's curves and a profile: what is in them, and that a run is the same with and without."""

import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rohydr_fast.config import TrainConfig
from rohydr_fast.errors import UsageError
from rohydr_fast.training import experiment
from rohydr_fast.training.watching import ACTIVE, Watch
from tests.small_data import small_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = TrainConfig(epochs=3, steps=2, batch_size=5)  # 2 batches an epoch


def curves(run) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    experiment.start(CONFIG, folder / "plain", small_dataset())
    experiment.start(CONFIG, folder / "watched", small_dataset(), watch=Watch(tensorboard=True, profile=True))
    return folder


def test_watching_changes_nothing(runs):
    plain, watched = ((runs / name / "metrics.jsonl").read_bytes() for name in ("plain", "watched"))
    assert plain == watched
    assert not (runs / "plain" / "tensorboard").exists() and not (runs / "plain" / "profile").exists()


def test_every_number_of_the_log_is_a_point(runs):
    rows = [json.loads(line) for line in (runs / "watched" / "metrics.jsonl").read_text().splitlines()]
    found = curves(runs / "watched")
    steps = [row for row in rows if row["kind"] == "step"]
    assert [value for _, value in found["step/S3"]] == pytest.approx([row["S3"] for row in steps])
    assert [step for step, _ in found["step/S3"]] == [1, 2, 3, 4, 5, 6]
    valid = [(2 * row["epoch"], row["valid"]["MAE"]) for row in rows if row["kind"] == "epoch"]
    assert [step for step, _ in found["valid/MAE"]] == [step for step, _ in valid]
    assert [value for _, value in found["valid/MAE"]] == pytest.approx([value for _, value in valid])


def test_a_profile_has_the_stages_of_the_batches_that_it_keeps(runs):
    events = json.loads((runs / "watched" / "profile" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert names.count("S1 forward") == ACTIVE and names.count("S3 losses and gradients") == ACTIVE
    assert "S2 forward" in (runs / "watched" / "profile" / "table.txt").read_text()


def test_curves_of_a_resumed_run_go_on(runs, tmp_path):
    run = tmp_path / "run"
    whole = experiment.start(CONFIG, run, small_dataset(), watch=Watch(tensorboard=True))
    assert whole.summary["epochs"] == 3
    experiment.resume(run, small_dataset(), watch=Watch(tensorboard=True))
    assert [step for step, _ in curves(run)["step/S1"]] == [1, 2, 3, 4, 5, 6]


def test_without_tensorboard_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"rohydr_fast\[board\]"):
        experiment.start(CONFIG, tmp_path / "run", small_dataset(), watch=Watch(tensorboard=True))
    assert not (tmp_path / "run").exists()
