"""``python -m rohydr_fast.train`` and ``evaluate`` as people call them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from rohydr_fast import evaluate, train
from rohydr_fast.data import containers
from tests.small_data import small_tree as tree

QUICK = ["--epochs", "1", "--steps", "2", "--batch-size", "5"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data.npz"
    containers.write(tree(), str(path))
    return path


@pytest.fixture
def finished(tmp_path, data_file):
    """The directory of a finished run on the small file."""
    out = tmp_path / "run"
    assert train.main(["--data", str(data_file), "--missing-rate", "mixed", "--out", str(out), *QUICK]) == 0
    return out


def sentence(captured) -> str:
    """The one line on stderr that is not progress."""
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in captured.err, captured.err
    return lines[0]


def test_a_run_prints_a_table_and_json_and_leaves_everything_behind(tmp_path, data_file, capsys):
    out = tmp_path / "run"
    assert train.main(["--data", str(data_file), "--out", str(out), "--json", *QUICK]) == 0
    printed = capsys.readouterr().out
    document = json.loads(printed.splitlines()[-1])
    wanted = "run_dir data preset epochs seconds train_samples_per_s realised_missing_rate valid test"
    assert set(wanted.split()) <= set(document)
    assert {"Has0_acc_2", "Non0_acc_2", "Non0_F1_score", "Mult_acc_7", "MAE", "Corr"} <= set(document["test"])
    assert "| RoHyDR" in printed and "| majority" in printed and str(out) in printed
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {
        "config.yaml", "env.json", "metrics.jsonl", "metrics.json", "table.md", "predictions/test-exact-0.5.npz",
        "checkpoints/best/model.safetensors", "checkpoints/last/manifest.json", "checkpoints/last/state.json",
    } <= names  # fmt: skip
    environment = json.loads((out / "env.json").read_text())
    assert len(environment["data"]["sha256"]) == 64 and environment["torch"] == torch.__version__


def test_predictions_reproduce_the_printed_metrics(finished):
    document = json.loads((finished / "metrics.json").read_text())
    with np.load(finished / "predictions" / "test-mixed.npz", allow_pickle=False) as kept:
        mae = np.abs(kept["prediction"] - kept["label"]).mean()
        assert kept["missing"].shape == (6, 3) and len(kept["id"]) == 6
    assert document["test"]["MAE"] == pytest.approx(float(mae), rel=1e-6)


def test_several_seeds_make_several_runs_and_one_table(tmp_path, data_file, capsys):
    out = tmp_path / "runs"
    assert train.main(["--data", str(data_file), "--seeds", "1", "2", "--out", str(out), "--json", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "+-" in printed and "(2)" in printed
    document = json.loads(printed.splitlines()[-1])
    assert [run["seed"] for run in document["runs"]] == [1, 2]
    assert sorted(p.name for p in out.iterdir()) == ["seed1", "seed2"]


def test_a_config_file_is_read_and_flags_override_it(tmp_path, data_file, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {data_file}\nseed: 7\nlambda_c: 0.4\nepochs: 1\nsteps: 2\nbatch_size: 5\n")
    out = tmp_path / "run"
    assert train.main(["--config", str(config), "--seed", "8", "--out", str(out)]) == 0
    stored = (out / "config.yaml").read_text()
    assert "seed: 8" in stored and "lambda_c: 0.4" in stored


@pytest.mark.parametrize(
    ("protocol", "rows"), [(["fractions"], 8), (["batch-table", "--missing-rate", "0.7"], 1), (["mixed"], 1),
                           (["per-modality", "--missing-rate", "a=0.5,t=0.2"], 1)]
)  # fmt: skip
def test_evaluate_under_every_protocol_of_training(finished, capsys, protocol, rows):
    assert evaluate.main([str(finished), "--protocol", *protocol, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(document["rows"]) == rows


@pytest.mark.parametrize(
    "arguments",
    [["--protocol", "per-modality"], ["--protocol", "fixed", "--missing-rate", "0.3"], ["--protocol", "x"],
     ["--protocol", "exact", "--missing-rate", "2"], ["--samples", "0"], ["--split", "train"]],
)  # fmt: skip
def test_a_wrong_evaluation_is_one_sentence(finished, capsys, arguments):
    capsys.readouterr()
    assert evaluate.main([str(finished), *arguments]) == 2
    assert "must" in sentence(capsys.readouterr())


@pytest.mark.parametrize(("protocol", "rows"), [("rates", 8), ("fixed", 7), ("natural", 1)])
def test_evaluate_every_protocol(finished, capsys, protocol, rows):
    assert evaluate.main([str(finished), "--protocol", protocol, "--samples", "2", "--json"]) == 0
    printed = capsys.readouterr().out
    document = json.loads(printed.splitlines()[-1])
    assert len(document["rows"]) == rows
    if protocol == "rates":
        realised = [row["realised_missing_rate"] for row in document["rows"].values()]
        assert realised[0] == 0 and realised[-1] == pytest.approx(12 / 18)  # 0.7 is above the highest possible
        assert (finished / "evaluations" / "rates-test-samples2.md").exists()
    complete = document["rows"][{"rates": "exact 0.0", "fixed": "{a,t,v}", "natural": "natural"}[protocol]]
    assert complete["realised_missing_rate"] == 0


def test_another_sampler_is_another_evaluation(finished, capsys):
    documents = []
    for options in ([], ["--sampler", "ddim", "--steps", "1"], ["--sampler", "dpm++2m", "--steps", "3"]):
        assert evaluate.main([str(finished), "--protocol", "fixed", "--json", *options]) == 0
        documents.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [(d["sampler"], d["steps"], d["eta"]) for d in documents] == [
        ("ancestral", 2, 0.0), ("ddim", 1, 0.0), ("dpm++2m", 3, 0.0),
    ]  # fmt: skip
    found = [document["rows"]["{t}"] for document in documents]
    assert len({row["MAE"] for row in found}) == 3
    for row in found:
        assert row["uncertainty"]["conformal"]["nominal"] == 0.8 and set(row["recovery"]) == {"a", "v"}
    names = {path.stem for path in (finished / "evaluations").glob("*.json")}
    assert names == {"fixed-test", "fixed-test-samplerddim-steps1", "fixed-test-samplerdpm-2m-steps3"}
    assert len(list((finished / "predictions").glob("test-fixed-t*.npz"))) == 6  # {t} and {t,v}, three times


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sampler", "euler"], "sampler: must be one of ancestral"),
        (["--steps", "0"], "steps must be between 1 and the 1000"),
        (["--eta", "0.5"], "eta: belongs to the sampler ddim"),
    ],
)
def test_an_impossible_sampler_is_a_sentence(finished, capsys, options, words):
    capsys.readouterr()
    assert evaluate.main([str(finished), *options]) == 2
    assert words in sentence(capsys.readouterr())


def test_a_method_without_a_chain_has_no_sampler(tmp_path, data_file, capsys):
    out = tmp_path / "mean"
    assert train.main(["--data", str(data_file), "--method", "mean", "--out", str(out), "--json", *QUICK]) == 0
    assert "mean-fill" in capsys.readouterr().out
    assert evaluate.main([str(out), "--steps", "3"]) == 2
    assert "must be given for a run of --method rohydr" in sentence(capsys.readouterr())


def test_several_runs_are_evaluated_into_one_table(finished, tmp_path, data_file, capsys):
    other = tmp_path / "other"
    assert train.main(["--data", str(data_file), "--out", str(other), "--seed", "2", *QUICK]) == 0
    assert evaluate.main([str(finished), str(other), "--protocol", "fixed", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "(2)" in printed and len(json.loads(printed.splitlines()[-1])["runs"]) == 2


def test_rate_0_and_everything_available_evaluate_alike(finished, capsys):
    rows = {}
    for protocol in ("rates", "fixed", "natural"):
        evaluate.main([str(finished), "--protocol", protocol, "--json"])
        rows |= json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows["exact 0.0"] == rows["{a,t,v}"] == rows["natural"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--missing-rate", "1.5"], 2, "must lie in"),
        (["--missing-rate", "nan"], 2, "must lie in"),
        (["--available", ""], 2, "unavailable"),
        (["--available", "x"], 2, "must name each of a, t, v"),
        (["--preset", "huge"], 2, "must be one of tiny, paper, wide"),
        (["--protocol", "sometimes"], 2, "must be one of"),
        (["--chain-grad", "last-0"], 2, "last-K"),
        (["--without", "everything"], 2, "must be one of hddm"),
        (["--steps", "0"], 2, "between 1 and 1000"),
        (["--epochs", "many"], 2, "epochs"),
        (["--seeds", "1", "1"], 2, "differ"),
        (["--lambda-c", "2"], 2, "between 0 and 1"),
        (["--warm-up", "3"], 2, "must leave an epoch for the other stages, got 3 of 3"),
        (["--warm-up", "1", "--strategy", "one-stage"], 2, "needs a stage 1 of its own"),
        (["--draws", "0"], 2, "--draws: must be 1 or more"),
        (["--draws", "2", "--method", "mean"], 2, "belongs to --method rohydr"),
        (["--anchor", "regress", "--without", "hddm"], 2, "belongs to --method rohydr"),
        (["--anchor", "magic"], 2, "must be one of none, regress"),
        (["--beta-end", "1"], 2, "0 < beta_start <= beta_end < 1"),
        (["--data", "synthetic:10/10"], 2, "synthetic:TRAIN/VALID/TEST"),
        (["--data", "synthetic:10/0/10"], 2, "every split must have a clip"),
        (["--data", "synthetic:9999999/1/1"], 2, "at most 1 GiB"),
        (["--device", "abacus"], 2, "must be a device"),
        (["--unknown"], 2, "--unknown"),
        (["--backend", "triton"], 69, "the Triton kernels run on a CUDA device"),
        (["--backend", "cuda"], 69, "cuda"),
        (["--data", "nowhere.pkl"], 74, "nowhere.pkl"),
        (["--resume", "nowhere"], 74, "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call_is_one_sentence_an_exit_code_and_nothing_written(
    tmp_path, monkeypatch, capsys, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments) == code
    assert words in sentence(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--available", "v"], "available"), (["--outputs", "2"], "--outputs"), (["--steps", "9999"], "steps")],
)
def test_what_cannot_be_on_this_file_is_refused_before_anything_is_written(tmp_path, capsys, arguments, words):
    path = tmp_path / "data.npz"
    without_vision = tree()
    for split in without_vision.values():
        split["vision"] = np.zeros_like(split["vision"])
    containers.write(without_vision, str(path))
    out = tmp_path / "run"
    assert train.main(["--data", str(path), "--out", str(out), *arguments]) == 2
    assert words in sentence(capsys.readouterr()) and not out.exists()


def test_a_modality_that_no_clip_has_is_left_out_and_said(tmp_path, capsys):
    path = tmp_path / "data.npz"
    without_vision = tree()
    for split in without_vision.values():
        split["vision"] = np.zeros_like(split["vision"])
    containers.write(without_vision, str(path))
    arguments = ["--data", str(path), "--missing-rate", "0.7", "--out", str(tmp_path / "run"), "--json", *QUICK]
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "No training clip has vision" in printed and "highest possible 0.5" in printed
    assert json.loads(printed.splitlines()[-1])["realised_missing_rate"] == 0.5


def test_resume_takes_no_other_setting(finished, capsys):
    for setting in (["--epochs", "9"], ["--lr", "0.001"]):  # its default too: the run may have another
        assert train.main(["--resume", str(finished), *setting]) == 2
        assert setting[0] in sentence(capsys.readouterr())


def damage(checkpoint) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_resume_auto_takes_the_newest_run_and_its_newest_valid_checkpoint(tmp_path, data_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", str(data_file), *QUICK, "--epochs", "3", "--patience", "0"]
    for seed in ("1", "2"):
        assert train.main([*arguments, "--seed", seed, "--out", f"runs/seed{seed}"]) == 0
    newest = tmp_path / "runs" / "seed2" / "checkpoints"
    whole, log = (
        (newest / "last" / "model.safetensors").read_bytes(),
        (tmp_path / "runs/seed2/metrics.jsonl").read_bytes(),
    )
    damage(newest / "last")
    capsys.readouterr()
    assert train.main(["--resume", "runs/seed2"]) == 65  # not without being asked
    assert f"Delete {newest.relative_to(tmp_path)}/last" in sentence(capsys.readouterr())
    assert train.main(["--resume", "auto"]) == 0
    printed = capsys.readouterr().out
    assert "last was not used and is kept as last.damaged" in printed and "The checkpoint is damaged" in printed
    assert (newest / "last" / "model.safetensors").read_bytes() == whole and (newest / "last.damaged").is_dir()
    assert (tmp_path / "runs/seed2/metrics.jsonl").read_bytes() == log
    for name in ("last", "last.previous"):
        damage(newest / name)
    assert train.main(["--resume", "auto"]) == 65 and "The checkpoint is damaged" in sentence(capsys.readouterr())
    assert train.main(["--resume", "auto", "--out", "runs/seed1"]) == 0
    assert train.main(["--resume", "auto", "--out", "nowhere"]) == 74


def test_resuming_a_finished_run_prints_its_table_again(finished, capsys):
    capsys.readouterr()
    assert train.main(["--resume", str(finished)]) == 0
    assert "| RoHyDR" in capsys.readouterr().out


def bad_features() -> np.ndarray:
    x = np.ones((10, 4, 6), np.float32)
    x[3, 1, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"audio": None}, "audio"),
        ({"regression_labels": np.full(10, 3.5, np.float32)}, "[-3, 3]"),
        ({"regression_labels": np.zeros(9, np.float32)}, "9"),
        ({"text": np.ones((10, 4, 6, 2), np.float32)}, "text"),
        ({"text": bad_features()}, "--nonfinite zero"),
    ],
    ids=["missing key", "label out of range", "unequal N", "dimension", "nan"],
)
def test_a_bad_file_is_one_sentence_and_exit_65(tmp_path, capsys, changes, words):
    path = tmp_path / "bad.npz"
    containers.write(tree(**changes), str(path))
    out = tmp_path / "run"
    assert train.main(["--data", str(path), "--out", str(out)]) == 65
    assert words in sentence(capsys.readouterr()) and not out.exists()


def test_nan_is_zeroed_when_asked_and_said(tmp_path, capsys):
    path = tmp_path / "bad.npz"
    containers.write(tree(text=bad_features()), str(path))
    assert train.main(["--data", str(path), "--nonfinite", "zero", "--out", str(tmp_path / "run"), *QUICK]) == 0
    assert "note:" in capsys.readouterr().out


def test_an_existing_run_is_not_overwritten(finished, data_file, capsys):
    assert train.main(["--data", str(data_file), "--out", str(finished), *QUICK]) == 2
    assert "--resume" in sentence(capsys.readouterr())


def test_a_flipped_bit_in_a_checkpoint_is_exit_65(finished, capsys):
    path = finished / "checkpoints" / "best" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert evaluate.main([str(finished)]) == 65
    assert "model.safetensors" in sentence(capsys.readouterr())


def test_evaluating_on_another_file_is_refused(finished, tmp_path, capsys):
    other = tmp_path / "other.npz"
    containers.write(tree(regression_labels=np.ones(10, np.float32)), str(other))
    assert evaluate.main([str(finished), "--data", str(other)]) == 65
    assert "SHA-256" in sentence(capsys.readouterr())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal_saves_and_the_printed_command_goes_on(tmp_path, data_file, number, code, repo_root):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rohydr_fast.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo_root)}
    start = [*command, "--data", str(data_file), "--out", str(out), "--epochs", "300", "--patience", "0"]
    process = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (out / "checkpoints" / "last").exists():
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"--resume {out}" in errors and "Traceback" not in errors
    rows = len((out / "metrics.jsonl").read_text().splitlines())
    again = subprocess.Popen(
        [*command, "--resume", str(out)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if len((out / "metrics.jsonl").read_text().splitlines()) > rows + 2:
            break
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 143, errors
