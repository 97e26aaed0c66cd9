"""Saved models: the same model again, from every place that holds one, and no other."""

import json
import sys

import pytest
import torch

import rohydr_fast
from rohydr_fast import pretrained
from rohydr_fast.config import TrainConfig
from rohydr_fast.errors import DataError, FileAccessError, UsageError
from rohydr_fast.models.rohydr import RoHyDR
from rohydr_fast.training import experiment
from rohydr_fast.training.trainer import tensors_of
from tests.small_data import small_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(data="clips.pkl", epochs=1, steps=2, batch_size=5)
    experiment.start(config, out, small_dataset(valid=12))
    return out


@pytest.fixture
def saved(run, tmp_path):
    RoHyDR.from_pretrained(run).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(first: RoHyDR, second: RoHyDR) -> bool:
    one, other = tensors_of(first), tensors_of(second)
    return (
        first.config == second.config and one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    )


def test_a_run_is_its_best_weights_with_calibration_and_origin(run):
    model = rohydr_fast.RoHyDR.from_pretrained(str(run))
    assert not model.training and same(model, RoHyDR.from_pretrained(run / "checkpoints" / "best"))
    assert model.calibration == json.loads((run / "calibration.json").read_text()) and "a,t,v" in model.calibration
    assert model.origin["data"] == {"name": "clips.pkl", "sha256": "0" * 64}
    assert model.origin["metrics"]["test"] == json.loads((run / "metrics.json").read_text())["test"]


def test_what_is_saved_is_the_same_model_and_says_what_it_is(run, saved):
    model, again = RoHyDR.from_pretrained(run), RoHyDR.from_pretrained(saved)
    assert same(model, again) and (again.calibration, again.origin) == (model.calibration, model.origin)
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (saved / "README.md").read_text()
    assert "clips.pkl" in card and "exact 0.5" in card and f"{model.origin['metrics']['test']['MAE']:.4f}" in card
    again.save_pretrained(saved)
    assert same(RoHyDR.from_pretrained(saved), model)


def test_a_model_of_no_run_is_saved_too(tmp_path):
    model = RoHyDR(TrainConfig(method="mmin").model_config(small_dataset()))
    model.save_pretrained(tmp_path / "model")
    again = RoHyDR.from_pretrained(tmp_path / "model")
    assert (
        same(model, again) and again.origin == {} and "Trained on" not in (tmp_path / "model" / "README.md").read_text()
    )


def test_a_file_or_a_run_is_not_overwritten(run, tmp_path):
    model = RoHyDR.from_pretrained(run)
    (tmp_path / "file").write_text("mine")
    for place in (run, tmp_path / "file"):
        with pytest.raises(UsageError, match="which is a file or a run"):
            model.save_pretrained(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_every_flipped_bit_is_noticed(saved):
    for name in ("config.json", "model.safetensors"):
        content = (saved / name).read_bytes()
        for place in range(0, len(content), max(1, len(content) // 400)):
            (saved / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(DataError):
                RoHyDR.from_pretrained(saved)
        (saved / name).write_bytes(content[:-2])
        with pytest.raises(DataError):
            RoHyDR.from_pretrained(saved)
        (saved / name).write_bytes(content)
    assert isinstance(RoHyDR.from_pretrained(saved), RoHyDR)


def test_a_consistent_description_does_not_make_a_wrong_model_right(saved):
    """Somebody who writes a file also writes its checksum."""
    original = json.loads((saved / "config.json").read_text())
    original.pop("sha256")
    settings = original["model"]

    def refused(words: str, **changes) -> None:
        document = {**original, **changes}
        (saved / "config.json").write_text(pretrained._text(document))
        with pytest.raises(DataError, match=words):
            RoHyDR.from_pretrained(saved)

    refused("must have the format 1", format=2)
    for entry in ("model", "calibration", "origin", "weights"):
        for wrong in (None, [], "x", 3):
            refused(".", **{entry: wrong})
    refused("must be the weights that config.json names", weights={"size": 3, "sha256": "0" * 64})
    refused("must be a width for each set", calibration={"a": -1.0})
    refused("must be a width for each set", calibration={"a": float("nan")})
    refused("must be those that save_pretrained writes", origin={"data": {}})
    refused("must have the shape", model={**settings, "width": 64})
    refused("must have the shape", model={**settings, "width": 2**16, "blocks": 1000})  # no memory is taken before
    for name in ("width", "channels", "train_steps", "mlp_ratio", "blocks"):
        refused(f"{name} must be from 0 to", model={**settings, name: 10**12})
    refused("must be one of rohydr", model={**settings, "method": "magic"})
    (saved / "model.safetensors").unlink()
    refused("got no model.safetensors")


def test_a_directory_of_something_else_is_named(tmp_path):
    with pytest.raises(DataError, match="must hold a trained model, got no config.json"):
        RoHyDR.from_pretrained(tmp_path)


class TestHub:
    def test_a_name_is_fetched(self, saved, monkeypatch):
        import huggingface_hub

        asked = []

        def snapshot(name, *, revision, allow_patterns):
            asked.append((name, revision, allow_patterns))
            return str(saved)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert same(RoHyDR.from_pretrained("people/model", revision="v1"), RoHyDR.from_pretrained(saved))
        assert asked == [("people/model", "v1", ["config.json", "model.safetensors"])]

    def test_what_the_hub_does_not_have_is_a_sentence(self, monkeypatch):
        import huggingface_hub

        def snapshot(*arguments, **options):
            raise OSError("no such model\nand much more")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(FileAccessError, match=r"people/model.*\(no such model\)"):
            RoHyDR.from_pretrained("people/model")

    @pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "runs/x/y"])
    def test_a_path_is_not_asked_of_the_hub(self, name):
        with pytest.raises(FileAccessError, match="got no directory"):
            RoHyDR.from_pretrained(name)

    def test_a_local_directory_needs_no_hub(self, saved, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert isinstance(RoHyDR.from_pretrained(saved), RoHyDR)
        with pytest.raises(FileAccessError, match=r'pip install "rohydr_fast\[hub\]"'):
            pretrained.load("people/model")
