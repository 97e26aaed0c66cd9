"""Choosing a backend: precedence, refusals with reasons, and the one exception for noise."""

import threading

import pytest
import torch

from rohydr_fast import _native
from rohydr_fast.errors import BackendUnavailable, UsageError
from rohydr_fast.ops import philox
from rohydr_fast.ops.registry import BACKENDS, OPS, VARIABLE, backend, explain, select
from rohydr_fast.ops.support import NO_NATIVE_GRADIENT
from tests.native_spy import needs_core

FUSED = [op for op in OPS if op != "philox"]
DIFFERENTIABLE = ("denoiser_block", "denoiser", "reverse_loop")
BEST = "cpp" if _native.status()[0] else "reference"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("ROHYDR_FAST_CPU", raising=False)


@pytest.fixture
def no_native_core(monkeypatch):
    monkeypatch.setattr(_native, "_attempt", lambda: (None, "rohydr_fast._C: the native core is not built."))


def test_names():
    assert BACKENDS == ("reference", "cpp", "triton", "cuda")
    networks = {"cross_attention", "denoiser_block", "denoiser"}
    assert set(OPS) == {"philox", "conditioning", "diffusion_loss", "reverse_loop"} | networks


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


@pytest.mark.parametrize("op", OPS)
def test_the_core_is_taken_where_it_is_built(op):
    assert select(op) == select(op, None) == BEST
    assert [name for name, usable, _ in explain(op) if usable][:2] == ["reference", "cpp"][: 1 + (BEST == "cpp")]


@needs_core
@pytest.mark.parametrize("op", OPS)
def test_the_reason_of_the_core_names_its_compiler_and_instruction_set(op):
    reason = dict((name, why) for name, _, why in explain(op))["cpp"]
    core = _native.load()
    expected = f"the native core is loaded ({core.build_info()['compiler']}), instruction set {core.cpu_isa()}"
    assert reason == expected and core.cpu_isa() in core.cpu_isas()


@pytest.mark.usefixtures("no_native_core")
@pytest.mark.parametrize("op", OPS)
def test_without_the_core_the_reference_runs_and_a_named_core_is_refused(op):
    assert select(op) == select(op, device="cpu", needs_grad=False) == "reference"
    with pytest.raises(BackendUnavailable, match=r"the native core is not built\. Usable: 'reference', or 'auto'"):
        select(op, "cpp")


CANNOT = [
    (dict(device="cuda"), "runs tensors on the CPU, and these are on cuda"),
    (dict(device="meta"), "runs tensors on the CPU, and these are on meta"),
    (dict(dtype="bfloat16"), "computes float32 and float64, and these are bfloat16"),
    (dict(dtype="float16"), "computes float32 and float64, and these are float16"),
    (dict(transformed=True), "does not run inside torch.func transforms"),
]


REFUSED = [(op, *case) for op in FUSED for case in CANNOT]
REFUSED += [
    ("cross_attention", dict(needs_grad=True), "has no backward pass of attention alone; gradients need the reference"),
    *[
        (op, dict(needs_grad=True, grad_of=("x", name)), f"has no gradient with respect to {name}; the reference has")
        for op in DIFFERENTIABLE
        for name in NO_NATIVE_GRADIENT
    ],
]


@needs_core
@pytest.mark.parametrize(("op", "facts", "reason"), REFUSED, ids=lambda value: str(value).split(" ")[0])
def test_what_the_core_cannot_do_goes_to_the_reference_and_is_refused_by_name(op, facts, reason):
    assert select(op, **facts) == "reference"
    with pytest.raises(BackendUnavailable, match=f"which is not: the native core {reason}.* Usable: 'reference'"):
        select(op, "cpp", **facts)
    with backend("cpp"), pytest.raises(BackendUnavailable, match=reason):
        select(op, **facts)


@needs_core
@pytest.mark.parametrize("op", FUSED)
def test_what_the_core_can_do_it_does(op):
    for dtype in ("float32", "torch.float64"):
        facts = dict(device="cpu", dtype=dtype, transformed=False)
        assert select(op, **facts, needs_grad=False, grad_of=NO_NATIVE_GRADIENT) == "cpp"
        assert op not in DIFFERENTIABLE or select(op, **facts, needs_grad=True, grad_of=("x",)) == "cpp"


@needs_core
@pytest.mark.parametrize("op", OPS)
def test_a_wrong_instruction_set_in_the_variable_is_an_error_and_not_a_slow_run(op, monkeypatch):
    monkeypatch.setenv("ROHYDR_FAST_CPU", "sse9")
    for name in ("auto", "cpp"):
        with pytest.raises(UsageError, match="ROHYDR_FAST_CPU: must be one of .*portable.*, got 'sse9'"):
            select(op, name)
    explanation = explain(op)
    assert explanation.selected is None and "'sse9'" in explanation.how
    assert [row for row in explanation if row[0] == "cpp"][0][1:2] == (False,)
    assert select(op, "reference") == "reference"
    with pytest.raises(BackendUnavailable, match="Triton"):
        select(op, "triton")
    monkeypatch.setenv("ROHYDR_FAST_CPU", "portable")
    assert select(op) == "cpp" and "instruction set portable" in str(explain(op))


@pytest.mark.parametrize("op", FUSED)
def test_a_context_or_variable_that_cannot_serve_raises(op, monkeypatch):
    reasons = "has no CUDA kernel|shows no CUDA device|built without CUDA"
    with backend("cuda"), pytest.raises(BackendUnavailable, match=reasons):
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
            assert select("reverse_loop") == BEST
    assert select("reverse_loop", "reference") == "reference"
    with pytest.raises(BackendUnavailable, match=VARIABLE):
        select("reverse_loop")


def test_context_is_undone_by_an_exception_and_private_to_its_thread():
    with pytest.raises(ZeroDivisionError), backend("triton"):
        raise ZeroDivisionError
    seen = []
    with backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(select("reverse_loop")))
        thread.start()
        thread.join()
    assert seen == [BEST] and select("reverse_loop") == BEST


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
    assert select("reverse_loop") == BEST


def test_an_explanation_can_be_of_given_tensors():
    x = torch.zeros(2, 3)
    verdicts = dict((name, usable) for name, usable, _ in explain("reverse_loop", x, torch.zeros(2, dtype=torch.bool)))
    assert verdicts == {name: usable for name, usable, _ in explain("reverse_loop")} | {"cuda": False, "triton": False}
    reasons = dict((name, why) for name, _, why in explain("reverse_loop", x.bfloat16()))
    assert "these are bfloat16" in reasons["cpp"] and explain("reverse_loop", x.bfloat16()).selected == "reference"
    wanted = explain("cross_attention", x.requires_grad_())
    assert "no backward pass" in dict((name, why) for name, _, why in wanted)["cpp"] and wanted.selected == "reference"
    with torch.no_grad():
        assert explain("cross_attention", x).selected == BEST
    assert "these are on meta" in str(explain("denoiser", torch.zeros(2, device="meta")))
    with pytest.raises(UsageError, match="one device, got cpu and meta"):
        explain("denoiser", x, torch.zeros(2, device="meta"))
    with pytest.raises(UsageError, match="must be given tensors after the operation, got int"):
        explain("denoiser", 3)


@pytest.mark.parametrize("call", [select, explain])
def test_unknown_operation_lists_the_operations(call):
    names = ", ".join(OPS)
    with pytest.raises(UsageError, match=f"{names}, got 'softmax'"):
        call("softmax")


def test_explanation_prints_a_table_with_the_choice_and_its_origin():
    text = str(explain("reverse_loop"))
    assert text.startswith(f"reverse_loop: a call now takes '{BEST}' (automatic)\n")
    assert len(text.splitlines()) == 1 + len(BACKENDS)
    with backend("cuda"):
        explanation = explain("reverse_loop")
        assert explanation.selected is None and "a call now raises: reverse_loop: the backend" in explanation.how
        assert len(explanation) == len(BACKENDS)
