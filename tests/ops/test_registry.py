"""Choosing a backend: precedence, refusals with reasons, and the one exception for noise."""

import threading

import pytest

from rohydr_fast import _native
from rohydr_fast.errors import BackendUnavailable, UsageError
from rohydr_fast.ops import philox
from rohydr_fast.ops.registry import BACKENDS, OPS, VARIABLE, backend, explain, select

FUSED = [op for op in OPS if op != "philox"]


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def no_native_core(monkeypatch):
    monkeypatch.setattr(_native, "_attempt", lambda: (None, "rohydr_fast._C: the native core is not built."))


def test_names():
    assert BACKENDS == ("reference", "cpp", "triton", "cuda")
    assert set(OPS) == {"philox", "cross_attention", "denoiser_block", "reverse_loop"}


@pytest.mark.parametrize("op", OPS)
def test_every_backend_has_a_verdict_with_a_reason_and_select_agrees(op):
    rows = list(explain(op))
    assert [name for name, _, _ in rows] == list(BACKENDS)
    for name, usable, reason in rows:
        assert isinstance(usable, bool) and reason
        if usable:
            assert select(op, name) == name
        else:
            with pytest.raises(BackendUnavailable) as caught:
                select(op, name)
            message = str(caught.value)
            assert reason.rstrip(".") in message and "'reference'" in message and ".." not in message


@pytest.mark.parametrize("op", FUSED)
def test_only_the_reference_runs_the_fused_operations(op):
    assert [name for name, usable, _ in explain(op) if usable] == ["reference"]
    assert select(op) == select(op, None) == "reference"


def test_noise_is_native_where_the_core_is_built():
    assert select("philox") == ("cpp" if _native.status()[0] else "reference")


@pytest.mark.usefixtures("no_native_core")
def test_noise_falls_to_the_reference_without_the_core_and_a_named_core_is_refused():
    assert select("philox") == "reference"
    with pytest.raises(BackendUnavailable, match=r"the native core is not built\. Usable"):
        select("philox", "cpp")


@pytest.mark.parametrize("op", FUSED)
def test_a_context_or_variable_that_cannot_serve_raises(op, monkeypatch):
    with backend("cpp"), pytest.raises(BackendUnavailable, match="the fused loop is not in it"):
        select(op)
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(BackendUnavailable, match=f"{op}: {VARIABLE} must be usable, got 'triton'"):
        select(op)


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_noise_serves_under_any_named_backend(name, monkeypatch):
    expected = "reference" if name == "reference" else select("philox")
    with backend(name):
        assert select("philox") == expected
        assert philox.bits(0, [1], stream=0, count=3).shape == (1, 3)
    monkeypatch.setenv(VARIABLE, name)
    assert select("philox") == expected


def test_noise_named_as_an_argument_must_be_usable():
    with pytest.raises(BackendUnavailable, match="Triton"):
        philox.bits(0, [1], stream=0, count=3, backend="triton")


def test_precedence_argument_then_context_then_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cuda")
    with backend("reference"):
        assert select("reverse_loop") == "reference"
        with pytest.raises(BackendUnavailable, match="Triton"):
            select("reverse_loop", "triton")
        with backend("auto"):
            assert select("reverse_loop") == "reference"
    assert select("reverse_loop", "reference") == "reference"
    with pytest.raises(BackendUnavailable, match=VARIABLE):
        select("reverse_loop")


def test_context_is_undone_by_an_exception_and_private_to_its_thread():
    with pytest.raises(ZeroDivisionError), backend("cpp"):
        raise ZeroDivisionError
    seen = []
    with backend("cpp"):
        thread = threading.Thread(target=lambda: seen.append(select("reverse_loop")))
        thread.start()
        thread.join()
    assert seen == ["reference"] and select("reverse_loop") == "reference"


@pytest.mark.parametrize("call", [lambda: select("philox", "c++"), lambda: backend("c++").__enter__()])
def test_unknown_backend_lists_the_names(call):
    with pytest.raises(UsageError, match="reference, cpp, triton, cuda or auto, got 'c\\+\\+'"):
        call()


def test_unknown_backend_in_the_variable_names_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(UsageError, match=f"{VARIABLE}: must be one of"):
        select("philox")


def test_empty_variable_means_automatic(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert select("reverse_loop") == "reference"


@pytest.mark.parametrize("call", [select, explain])
def test_unknown_operation_lists_the_operations(call):
    with pytest.raises(UsageError, match="philox, cross_attention, denoiser_block, reverse_loop, got 'softmax'"):
        call("softmax")


def test_explanation_prints_a_table_with_the_choice_and_its_origin():
    text = str(explain("reverse_loop"))
    assert text.startswith("reverse_loop: a call now takes 'reference' (automatic)\n")
    assert len(text.splitlines()) == 1 + len(BACKENDS)
    with backend("cpp"):
        explanation = explain("reverse_loop")
        assert explanation.selected is None and "the fused loop is not in it" in explanation.how
        assert len(explanation) == len(BACKENDS)
