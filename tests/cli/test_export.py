"""``python -m rohydr_fast.export``: from a saved model to a file that other programs run."""

import json
import sys

import pytest
import torch

from rohydr_fast.export import main
from rohydr_fast.exporting import files
from rohydr_fast.models.rohydr import RoHyDR
from tests.small_model import DIMS, open_up, small_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of two modalities and of little to trace."""
    torch.manual_seed(0)
    model = RoHyDR(small_config(modalities=("a", "t"), dims={m: DIMS[m] for m in "at"}, fusion_heads=2, method="mean"))
    open_up(model)
    model.eval().save_pretrained(tmp_path_factory.mktemp("export") / "model")
    return tmp_path_factory.getbasetemp() / "export0" / "model"


@pytest.fixture
def export(saved, capsys):
    """The command on that model: its exit code and what it printed."""

    def call(*arguments: str):
        return main([str(saved), *arguments]), capsys.readouterr()

    return call


def test_a_model_is_written_and_gives_its_numbers(saved, export, tmp_path):
    out = tmp_path / "new" / "t.pt2"
    code, printed = export("--available", "text", "--out", str(out), "--json")
    assert code == 0 and printed.err == ""
    line, document = printed.out.splitlines()
    assert f"{out}: reads features_t (clips, tokens_t, 6), lengths_t (clips); differs from the model by" in line
    told = json.loads(document)
    assert told["error"] < files.TOLERANCE and told["available"] == ["t"] and told["bytes"] == out.stat().st_size
    assert told["outputs"] == {"prediction": ["clips"], "recovered_a": ["clips", 5, 8]}
    model, features = RoHyDR.from_pretrained(saved), {"t": torch.randn(3, 4, 6)}
    expected = model.recover(features, available="t")
    run = torch.export.load(out).module()
    found, recovered = run(features, {"t": torch.full((3,), 4)}, {}, None)
    torch.testing.assert_close(found, expected.prediction)
    torch.testing.assert_close(recovered["a"], expected.recovered["a"].x.x)


def test_an_output_is_kept_unless_told_otherwise(export, tmp_path, monkeypatch):
    out = tmp_path / "t.onnx"
    out.write_text("mine")
    code, printed = export("--available", "t", "--out", str(out))
    assert code == 2 and "which exists" in printed.err and out.read_text() == "mine"
    made = files.Exported(out, {"lengths_t": ("clips",)}, {}, 0.0)
    monkeypatch.setattr("rohydr_fast.exporting.save_onnx", lambda model, available, path: made)
    code, printed = export("--available", "t", "--out", str(out), "--overwrite")
    assert code == 0 and "reads lengths_t (clips); differs" in printed.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", "x.pt"], 2, "must end in .onnx or .pt2"),
        (["--available", "x"], 2, "must name each of a, t, v"),
        (["--available", "v"], 2, "must be among the model's a, t, got v"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_nothing_written(export, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    found, printed = export("--out", "x.pt2", "--available", "t", *arguments)
    assert found == code and words in printed.err and "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_and_a_missing_package_are_told(export, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["./nowhere", "--available", "t", "--out", "x.onnx"]) == 74
    assert "must be the directory of a trained model" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, printed = export("--available", "t", "--out", "x.onnx")
    assert code == 2 and 'pip install "rohydr_fast[onnx]"' in printed.err and list(tmp_path.iterdir()) == []
