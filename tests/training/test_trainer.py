"""A whole run: repeatable, resumable anywhere, and the same at rate 0 as with everything available."""

import os
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from rohydr_fast.config import TrainConfig
from rohydr_fast.errors import EXIT_SIGINT, EXIT_SIGTERM, DataError
from rohydr_fast.training import trainer as trainer_module
from rohydr_fast.training.experiment import missing_spec
from rohydr_fast.training.interrupt import Interrupted, StopRequest
from rohydr_fast.training.progress import Progress
from rohydr_fast.training.run_directory import RunDirectory
from rohydr_fast.training.trainer import Trainer, load_model
from tests.small_data import small_dataset

from .interrupting import signal_in_stage

SETTINGS = dict(preset="tiny", epochs=2, batch_size=5, steps=2)  # 2 batches of 3 stages an epoch: 12 stages


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_trainer(tmp_path):
    """A trainer in the run directory `name`, which is made when it is not there."""

    def make(name: str = "run", dataset=None, **settings) -> Trainer:
        config = TrainConfig(**{**SETTINGS, **settings})
        run = RunDirectory(tmp_path / name)
        run.path.mkdir(exist_ok=True)
        return Trainer(dataset or small_dataset(), config, missing_spec(config), run)

    return make


def fit(trainer: Trainer, stop: StopRequest | None = None) -> None:
    listening = StopRequest() if stop is None else nullcontext(stop)
    with Progress(2, 2, stream=open(os.devnull, "w"), interval=1e9) as progress, listening as stop:
        trainer.fit(progress, stop)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([t.double().flatten() for t in trainer_module.tensors_of(trainer.model).values()])


def metrics_bytes(trainer: Trainer) -> bytes:
    return (trainer.run.path / "metrics.jsonl").read_bytes()


def test_batches_of_a_method_that_reads_neighbours_hold_whole_conversations(make_trainer):
    trainer = make_trainer(method="gcnet", batch_size=4)
    split = trainer.dataset.train
    batches = trainer.batches(1)
    assert sorted(np.concatenate(batches)) == list(range(len(split)))
    for rows in batches:
        inside = np.isin(split.conversation[:, 0], split.conversation[rows, 0])
        assert sorted(rows) == np.nonzero(inside)[0].tolist()


@pytest.mark.parametrize("method", ["rohydr", "smcmsa"])
def test_averaged_weights_have_the_buffers_of_the_model(make_trainer, method):
    trainer = make_trainer(method=method, ema=0.9)
    fit(trainer)
    buffers = dict(trainer.model.named_buffers())
    assert buffers and all(torch.equal(other, buffers[name]) for name, other in trainer.averaged.module.named_buffers())
    weights_of = [dict(model.named_parameters()) for model in (trainer.model, trainer.averaged.module)]
    assert any(not torch.equal(p, weights_of[1][name]) for name, p in weights_of[0].items())


def test_the_same_seed_gives_the_same_file_and_weights(make_trainer):
    first, second, other = make_trainer("one"), make_trainer("two"), make_trainer("three", seed=2)
    for trainer in (first, second, other):
        fit(trainer)
    assert metrics_bytes(first) == metrics_bytes(second) != metrics_bytes(other)
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.9},
        {"strategy": "one-stage"},
        {"warm_up": 1},
        {"draws": 2},
        {"anchor": "regress"},
        *({"method": m} for m in ("mean", "imder", "smcmsa", "gcnet")),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "plain",
)
def test_interrupted_after_any_stage_and_resumed_gives_identical_weights(make_trainer, settings):
    whole = make_trainer("whole", **settings)
    fit(whole)
    later = len(whole.runner.stages) - 1
    stages = 2 * 2 * (1 + later) - 2 * later * whole.config.warm_up
    for stop in range(1, stages + 1, 1 if not settings else 4):
        broken = make_trainer(f"stop{stop}", **settings)
        with signal_in_stage(broken.runner, stop), pytest.raises(Interrupted, match="--resume"):
            fit(broken)
        resumed = make_trainer(f"stop{stop}", **settings)
        resumed.restore()
        fit(resumed)
        assert torch.equal(weights(resumed), weights(whole)), f"stopped in stage {stop}"
        assert metrics_bytes(resumed) == metrics_bytes(whole)
        if settings.get("ema"):
            assert torch.equal(resumed.evaluated.classifier.out.weight, whole.evaluated.classifier.out.weight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, EXIT_SIGINT), (signal.SIGTERM, EXIT_SIGTERM)])
def test_signals_have_their_exit_codes_and_handlers_are_put_back(make_trainer, number, code):
    before = signal.getsignal(number)
    trainer = make_trainer()
    with signal_in_stage(trainer.runner, 2, number), pytest.raises(Interrupted) as stopped:
        fit(trainer)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, EXIT_SIGINT), (signal.SIGTERM, EXIT_SIGTERM)])
def test_a_second_signal_acts_at_once_and_has_its_exit_code(number, code):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt) as stopped:
            os.kill(os.getpid(), number)
    assert stopped.value.exit_code == code


def test_a_signal_before_the_first_step_stops_there(make_trainer):
    whole = make_trainer("whole")
    fit(whole)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        trainer = make_trainer()
        with signal_in_stage(trainer.runner, 0) as begun, pytest.raises(Interrupted):
            fit(trainer, stop)
    assert begun == [0]
    resumed = make_trainer()
    resumed.restore()
    fit(resumed)
    assert metrics_bytes(resumed) == metrics_bytes(whole) and torch.equal(weights(resumed), weights(whole))


def test_a_signal_in_the_last_validation_is_not_lost(make_trainer, monkeypatch):
    def validate(*arguments, original=trainer_module.evaluate_split, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(trainer_module, "evaluate_split", validate)
    trainer = make_trainer(epochs=1)
    with pytest.raises(Interrupted):
        fit(trainer)
    assert trainer.cursor.finished
    again = make_trainer(epochs=1)
    again.restore()
    fit(again)
    assert metrics_bytes(again) == metrics_bytes(trainer) and torch.equal(weights(again), weights(trainer))


def test_a_run_without_a_checkpoint_starts_over(make_trainer):
    whole = make_trainer("whole")
    fit(whole)
    trainer = make_trainer("empty")
    trainer.run.append({"kind": "step", "left": "by a killed process"})
    trainer.restore()
    fit(trainer)
    assert metrics_bytes(trainer) == metrics_bytes(whole)


def test_resuming_a_finished_run_changes_nothing(make_trainer):
    trainer = make_trainer()
    fit(trainer)
    content = metrics_bytes(trainer)
    again = make_trainer()
    again.restore()
    fit(again)
    assert metrics_bytes(again) == content and torch.equal(weights(again), weights(trainer))


def test_rate_0_equals_everything_available_bit_for_bit(make_trainer):
    zero, complete = make_trainer("zero", missing_rate="0"), make_trainer("complete", available="a,t,v")
    for trainer in (zero, complete):
        fit(trainer)
    assert torch.equal(weights(zero), weights(complete))
    assert metrics_bytes(zero) == metrics_bytes(complete)


@pytest.mark.parametrize(
    "settings",
    [
        {"missing_rate": "mixed"},
        {"missing_rate": "a=0.5,t=0.2"},
        {"protocol": "fractions"},
        {"protocol": "batch-table"},
        {"protocol": "natural"},
        {"available": "t"},
        {"outputs": 7},
        {"chain_grad": "last-1", "prediction": "eps", "diffusion_loss": "hybrid"},
    ],
    ids=str,
)
def test_every_protocol_and_option_trains(make_trainer, settings):
    trainer = make_trainer(epochs=1, **settings)
    fit(trainer)
    rows = trainer.run.rows()
    assert [row["kind"] for row in rows] == ["step", "step", "epoch"]
    assert np.isfinite(rows[-1]["valid"]["MAE"])


def test_a_warm_up_runs_stage_1_alone(make_trainer):
    trainer = make_trainer(epochs=3, warm_up=2)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    original, moved = trainer.runner.run, {}

    def run(stage, batch, *, epoch, **place):
        terms = original(stage, batch, epoch=epoch, **place)
        now = dict(trainer.model.named_parameters())
        moved[epoch] = {name.split(".")[0] for name, p in now.items() if not torch.equal(p, before[name])}
        return terms

    trainer.runner.run = run
    fit(trainer)
    steps = [row for row in trainer.run.rows() if row["kind"] == "step"]
    assert {(row["epoch"], "S2" in row, "S3" in row) for row in steps} == {(1, 0, 0), (2, 0, 0), (3, 1, 1)}
    assert all("S1" in row for row in steps)
    later = {"fusion", "mr", "discriminator", "classifier"}
    assert "recovery" in moved[2] and not later & moved[2] and later <= moved[3]


def test_patience_begins_after_the_warm_up(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=9, warm_up=3, patience=2)
    values = iter([0.5, 0.6, 0.7, 0.6, 0.6, 0.4])
    monkeypatch.setattr(trainer_module, "metrics", lambda *a: {"MAE": next(values), "Non0_acc_2": None})
    fit(trainer)
    assert trainer.cursor.epoch - 1 == 5


def test_early_stopping_waits_for_patience(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=9, patience=2)
    values = iter([1.0, 0.5, 0.6, 0.7, 0.4])
    monkeypatch.setattr(trainer_module, "metrics", lambda *a: {"MAE": next(values), "Non0_acc_2": None})
    fit(trainer)
    assert trainer.cursor.epoch - 1 == 4 and trainer.cursor.best_epoch == 2
    assert load_model(trainer.run.checkpoint("best"))[1]["cursor"]["best_epoch"] == 2


def test_the_test_split_is_not_read_in_training(make_trainer):
    dataset = small_dataset()
    object.__setattr__(dataset, "test", None)
    fit(make_trainer(dataset=dataset))


def test_a_checkpoint_of_other_data_or_another_model_is_refused(make_trainer):
    fit(make_trainer(epochs=1))
    dataset = small_dataset()
    object.__setattr__(dataset, "sha256", "1" * 64)
    with pytest.raises(DataError, match="another data file"):
        make_trainer(dataset=dataset).restore()
    with pytest.raises(DataError, match="shape|such tensor|must not be there"):
        make_trainer(without="mr").restore()


def test_a_flipped_bit_is_refused(make_trainer):
    trainer = make_trainer(epochs=1)
    fit(trainer)
    path = trainer.run.checkpoint("last") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="model.safetensors"):
        make_trainer(epochs=1).restore()
