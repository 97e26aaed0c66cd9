"""``python -m rohydr_fast.sample``: from a run and a file to recovered representations."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

import rohydr_fast
from rohydr_fast import train
from rohydr_fast.data import collate, containers, load
from rohydr_fast.models.rohydr import RoHyDR
from tests.small_data import small_tree

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data.npz and run, trained on it."""
    folder = tmp_path_factory.mktemp("sample")
    containers.write(small_tree(), str(folder / "data.npz"))
    arguments = ["--epochs", "1", "--steps", "2", "--batch-size", "5", "--missing-rate", "mixed"]
    assert train.main(["--data", str(folder / "data.npz"), "--out", str(folder / "run"), *arguments]) == 0
    return folder


@pytest.fixture
def sample(place, capsys):
    """The command on that data and run: its exit code and what it printed."""
    from rohydr_fast.sample import main

    def call(*arguments: str, file: str = "data.npz"):
        code = main([str(place / file), "--model", str(place / "run"), *arguments])
        return code, capsys.readouterr()

    capsys.readouterr()
    return call


def test_a_file_is_recovered_and_predicted(place, sample, tmp_path):
    out = tmp_path / "new" / "recovered.safetensors"
    code, printed = sample("--available", "a,t", "--samples", "3", "--seed", "7", "--out", str(out), "--json")
    assert code == 0 and "6 clips, vision recovered for 6" in printed.out
    assert json.loads(printed.out.splitlines()[-1]) == {
        "out": str(out), "clips": 6, "recovered": {"v": 6}, "samples": 3,
    }  # fmt: skip
    dataset = load(str(place / "data.npz"))
    with safe_open(out, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
        assert json.loads(file.metadata()["ids"]) == dataset.test.ids
    model = RoHyDR.from_pretrained(place / "run")
    expected = model.recover(collate(dataset.test, range(6), "atv"), "a,t", samples=3, seed=7)
    torch.testing.assert_close(found["prediction"], expected.prediction)
    torch.testing.assert_close(found["recovered_v"], expected.recovered["v"].x.x)
    torch.testing.assert_close(found["high"], expected.high)
    assert set(found) == {
        "prediction", "std", "low", "high", "draws_low", "draws_high", "label", "rows_v", "lengths_v", "recovered_v",
    }  # fmt: skip


def test_an_output_is_kept_unless_told_otherwise(sample, tmp_path):
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    code, printed = sample("--out", str(out))
    assert code == 2 and "which exists" in printed.err and out.read_text() == "mine"
    code, printed = sample("--out", str(out), "--overwrite")
    assert code == 0 and "nothing was missing" in printed.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", "x.pt"], 2, "must end in .safetensors"),
        (["--split", "all"], 2, "must be train, valid or test"),
        (["--available", "x"], 2, "must name each of a, t, v"),
        (["--samples", "0"], 2, "samples must be 1 or more"),
        (["--backend", "cuda"], 69, "cuda"),
        (["--device", "abacus"], 2, "must be a device of this machine"),
        (["--model", "./nowhere"], 74, "must be the directory of a trained model"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_nothing_written(sample, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, printed = sample("--out", "x.safetensors", *arguments)
    assert found == code and words in printed.err and "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "name"), [("audio", "audio"), ("text", "text")])
def test_features_of_another_width_name_the_file(place, sample, tmp_path, key, name):
    tree = small_tree()
    for split in tree.values():
        split[key] = split[key][..., :-1]
    containers.write(tree, str(place / f"narrow_{key}.npz"))
    code, printed = sample("--out", str(tmp_path / "x.safetensors"), file=f"narrow_{key}.npz")
    assert code == 65 and f"narrow_{key}.npz: {name} must have" in printed.err and "as in training" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_modality_has_it_recovered(place, sample, tmp_path):
    """Its features are zeros of any width, as readers ask for."""
    tree = small_tree()
    for split in tree.values():
        split["vision"] = np.zeros((len(split["vision"]), 1, 1), np.float32)
    containers.write(tree, str(place / "blind.npz"))
    code, printed = sample("--out", str(tmp_path / "x.safetensors"), file="blind.npz")
    assert code == 0 and "vision recovered for 6" in printed.out


def test_the_function_of_the_same_name_can_still_be_called():
    """Importing the command puts the module where the function stood."""
    from rohydr_fast.diffusion.sampler import sample
    from rohydr_fast.models.denoiser import Denoiser

    denoiser = Denoiser(channels=8, width=16, num_blocks=1, num_heads=2).eval()
    cond = torch.randn(2, 5, 16)
    with torch.inference_mode():
        assert torch.equal(rohydr_fast.sample(denoiser, cond, steps=2), sample(denoiser, cond, steps=2))
