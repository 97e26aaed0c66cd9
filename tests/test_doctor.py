"""The report of the installation: complete, valid JSON, and available whatever is broken."""

import json
import platform

import pytest
import torch

import rohydr_fast
from rohydr_fast import doctor
from rohydr_fast.ops.registry import BACKENDS, OPS


def test_environment_names_what_a_result_depends_on():
    facts = doctor.environment()
    assert facts["rohydr_fast"] == rohydr_fast.__version__
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert 1 <= facts["cores_available"] <= facts["cores"]
    assert facts["cpu"] and facts["numpy"] and facts["platform"]
    assert {"commit", "dirty", "cuda_devices"} <= set(facts)
    json.dumps(facts, allow_nan=False)


def test_json_report_is_one_object_with_a_verdict_on_every_backend(capsys):
    assert doctor.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"environment", "native", "build", "backends"}
    assert set(document["backends"]) == set(OPS)
    for verdict in document["backends"].values():
        assert [row["backend"] for row in verdict["table"]] == list(BACKENDS)
        assert all(row["reason"] for row in verdict["table"])


def test_text_report_shows_versions_and_reasons(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text and rohydr_fast.__version__ in text
    assert all(f"\n{op}: " in text for op in OPS)
    assert "has no Triton kernel of this operation" in text


def test_report_survives_a_wrong_backend_variable(capsys, monkeypatch):
    monkeypatch.setenv("ROHYDR_FAST_BACKEND", "fast")
    assert doctor.main([]) == 0
    assert "ROHYDR_FAST_BACKEND: must be one of" in capsys.readouterr().out


def test_unknown_option_is_one_sentence_with_exit_code_2(capsys):
    assert doctor.main(["--jsn"]) == 2
    error = capsys.readouterr().err
    assert "--jsn" in error and error.count("\n") == 1


@pytest.mark.parametrize(("changes", "dirty"), [("", False), (" M setup.py", True)])
def test_checkout_state_comes_from_git(monkeypatch, tmp_path, changes, dirty):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "rohydr_fast" / "doctor.py"))
    monkeypatch.setattr(doctor, "_git", lambda root, *words: "0123abc" if words[0] == "rev-parse" else changes)
    assert doctor._checkout() == ("0123abc", dirty)


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "rohydr_fast" / "doctor.py"))
    assert doctor._checkout() == (None, None)
