"""``python -m rohydr_fast.data``: exit codes, tables for people, one JSON object for programs."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rohydr_fast.data import containers, describe, load
from rohydr_fast.data.__main__ import main


@pytest.fixture
def file(make_tree, tmp_path):
    path = str(tmp_path / "MOSI.npz")
    containers.write(make_tree(), path)
    return path


def last_json(capsys):
    lines = capsys.readouterr().out.splitlines()
    return json.loads(lines[-1])


def test_check(file, capsys):
    assert main(["check", file]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{file}: valid\nsha256 {load(file).sha256}\n")
    assert "values that are not finite: none" in text and "aligned with each other: a, t, v" in text


def test_check_json(file, capsys):
    assert main(["check", file, "--json"]) == 0
    document = last_json(capsys)
    assert document["splits"]["train"]["clips"] == 6 and document["sha256"] == load(file).sha256
    assert document["splits"]["valid"]["features"]["audio"] | {"length_quartiles": 0} == {
        "steps": 7, "dim": 3, "dtype": "float32", "absent": 0, "lengths_from": "rows", "length_quartiles": 0,
    }  # fmt: skip
    assert sum(document["splits"]["test"]["labels"]["histogram"].values()) == 5
    assert document["published"] is None and document["duplicate_ids"] == 0


def test_check_counts_what_is_wrong(make_tree, tmp_path, capsys):
    tree = make_tree()
    tree["train"]["audio"][0, 0, 0] = -np.inf
    tree["valid"]["text"][0, 0, :2] = np.nan
    tree["test"]["id"] = ["train$_$0", "b", "c", "d", "e"]
    tree["test"]["vision"][:] = 0
    path = str(tmp_path / "d.safetensors")
    containers.write(tree, path)
    assert main(["check", path]) == 65
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"rohydr_fast.data: error: {path}: features must be finite")
    assert "valid text (2 nan). Use --nonfinite zero" in captured.err and captured.err.count("\n") == 1
    assert main(["check", path, "--nonfinite", "zero", "--json"]) == 0
    document = last_json(capsys)
    assert document["nonfinite"]["train/audio"] == {"nan": 0, "+inf": 0, "-inf": 1}
    assert document["nonfinite"]["valid/text"]["nan"] == 2 and document["duplicate_ids"] == 1
    assert document["splits"]["test"]["features"]["vision"]["absent"] == 5 and len(document["notes"]) == 3
    assert main(["check", path, "--nonfinite", "zero"]) == 0
    assert capsys.readouterr().out.count("note: ") == 3


def test_describe(file, capsys):
    assert main(["describe", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("train ", "valid ", "test ")) for line in lines) == 12
    assert main(["describe", file, "--json"]) == 0
    entry = last_json(capsys)["splits"]["train"]["features"]["text"]
    train = load(file).train
    real = np.concatenate([train.features["t"][row, :n] for row, n in enumerate(train.lengths["t"])])
    assert entry["mean"] == pytest.approx(real.mean(), abs=1e-6) and entry["std"] == pytest.approx(real.std(), abs=1e-6)
    assert entry["max"] == pytest.approx(real.max()) and entry["tokens"] == len(real)


def test_describe_on_a_terminal(file, capsys, monkeypatch):
    document = describe.summary(load(file))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    describe.print_table(*describe.feature_table(document))
    assert "┃" in capsys.readouterr().out


def test_check_synthetic(capsys):
    assert main(["check", "synthetic", "--json"]) == 0
    assert last_json(capsys)["file"] == "synthetic"


@pytest.mark.parametrize("suffix", [".pkl", ".npz", ".safetensors"])
def test_convert(file, tmp_path, capsys, suffix):
    out = str(tmp_path / f"out{suffix}")
    assert main(["convert", file, "--out", out, "--json"]) == 0
    assert last_json(capsys) | {"sha256": 0} == {
        "file": file, "out": out, "bytes": os.path.getsize(out), "left_out": [], "sha256": 0,
    }  # fmt: skip
    assert np.array_equal(load(out).train.features["v"], load(file).train.features["v"])
    assert main(["convert", file, "--out", out]) == 2
    assert "must not exist yet" in capsys.readouterr().err
    assert main(["convert", file, "--out", out, "--overwrite"]) == 0


def test_convert_refuses_what_it_could_not_read_back(make_tree, tmp_path, capsys):
    tree = make_tree()
    tree["train"]["regression_labels"][0] = 7
    path, out = str(tmp_path / "bad.npz"), tmp_path / "out.npz"
    containers.write(tree, path)
    assert main(["convert", path, "--out", str(out)]) == 65 and not out.exists()


def test_convert_may_replace_its_own_input(file, capsys):
    before = load(file).train.labels
    assert main(["convert", file, "--out", file, "--overwrite"]) == 0
    assert np.array_equal(load(file).train.labels, before)


@pytest.mark.parametrize("call", ["write", "fsync", "chmod", "replace"])
def test_a_failed_output_is_named_and_nothing_is_left(file, tmp_path, monkeypatch, capsys, call):
    folder = tmp_path / "new"
    folder.mkdir()

    def fail(place, *args, **kwargs):
        known = () if isinstance(place, int) else (str(place),)
        raise OSError(errno.ENOSPC, "No space left on device", *known)

    if call == "write":
        monkeypatch.setattr(containers.npz, "write", lambda file, *rest: fail(3))
    else:
        monkeypatch.setattr(os, call, fail)
    out = str(folder / "d.npz")
    assert main(["convert", file, "--out", out]) == 74
    assert f"{out}: No space left on device" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_an_output_in_a_folder_that_is_not_there_is_named(file, tmp_path, capsys):
    out = str(tmp_path / "nowhere" / "d.npz")
    assert main(["convert", file, "--out", out]) == 74
    assert f"{out}: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("unaligned", [False, True])
def test_synth(tmp_path, capsys, unaligned):
    out = str(tmp_path / "d.npz")
    command = ["synth", "--like", "mosi", "--clips", "8", "--out", out, "--seed", "5"]
    assert main([*command, *(["--unaligned"] if unaligned else [])]) == 0
    assert "nothing in it is real" in capsys.readouterr().out
    dataset = load(out)
    assert len(dataset.train) == 8 and dataset.train.features["a"].shape[1] == (375 if unaligned else 50)
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "check,describe,convert,synth"),
        (["check"], 2, "file"),
        (["check", "a.pkl", "--nonfinite", "drop"], 2, "nonfinite"),
        (["check", "absent.pkl"], 74, "absent.pkl: the file does not exist. Check the path."),
        (["check", "absent"], 74, "must end in"),
        (["check", "."], 74, "got a directory"),
        (["convert", "a.pkl"], 2, "out"),
        (["convert", "absent.pkl", "--out", "b.npz"], 74, "does not exist"),
        (["synth", "--like", "sims", "--out", "b.npz"], 2, "like"),
        (["synth", "--like", "mosi", "--out", "b.csv"], 2, "must end in"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_output_folder_must_exist(file, capsys):
    assert main(["convert", file, "--out", os.path.join(os.path.dirname(file), "no", "d.npz")]) == 74
    assert "rohydr_fast.data: error: " in capsys.readouterr().err


def test_published_digests():
    assert describe.published_name("d3994fd2" + "0" * 50 + "02e5f9") == "MOSI aligned_50"
    assert describe.published_name("0" * 64) is None


@pytest.mark.parametrize("command", ["check", "describe", "convert", "synth"])
def test_help_needs_no_torch(command):
    code = (
        "import sys; from rohydr_fast.data.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_real_file(real_file, capsys):
    assert main(["check", real_file("mosi/mosi.pkl")]) == 0
    text = capsys.readouterr().out
    assert "30 in test" in text and "modalities: a, t" in text
