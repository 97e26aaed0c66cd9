"""Choosing a backend: precedence, refusals with reasons, and the one exception for noise."""

import threading
from importlib import import_module

import pytest
import torch

from rohydr_fast import _native, doctor
from rohydr_fast.errors import BackendUnavailable, UsageError
from rohydr_fast.ops import philox
from rohydr_fast.ops.registry import (
    BACKENDS,
    OPS,
    VARIABLE,
    backend,
    explain,
    register_backend,
    select,
    unregister_backend,
)
from rohydr_fast.ops.reverse_loop import first_undefined_steps, reverse_loops
from rohydr_fast.ops.support import NO_NATIVE_GRADIENT
from tests.native_spy import needs_core
from tests.ops.inputs import attention_inputs, block_inputs, denoiser_inputs, loop_inputs, loss_inputs, make_chain

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


def without_gradient(*, needs_grad=False, **call):
    return (False, "mine has no gradient") if needs_grad else (True, "mine runs everywhere")


@pytest.fixture
def register():
    """`register_backend`, which a test need not undo."""
    added = []

    def call(op, name="mine", function=lambda *args, **options: None, usable=without_gradient, **options):
        register_backend(op, name, function, usable=usable, **options)
        added.append((op, name))

    yield call
    for op, name in added:
        if name in dict((row[0], row) for row in explain(op)):
            unregister_backend(op, name)


class TestRegistered:
    def test_it_is_explained_and_named_and_taken_only_where_it_is_named(self, register):
        register("denoiser")
        assert list(explain("denoiser"))[len(BACKENDS) :] == [("mine", True, "mine runs everywhere")]
        assert select("denoiser") == BEST and select("denoiser", "mine") == "mine"
        with backend("mine"):
            assert select("denoiser") == "mine" and explain("denoiser").selected == "mine"
            assert select("philox") == BEST
        assert len(explain("denoiser_block")) == len(BACKENDS)

    def test_its_reason_is_that_of_a_refusal_and_it_is_among_the_usable_ones(self, register):
        register("denoiser")
        with pytest.raises(BackendUnavailable, match="got 'mine', which is not: mine has no gradient. Usable: 'refer"):
            select("denoiser", "mine", needs_grad=True)
        with pytest.raises(BackendUnavailable, match="Usable: .*'mine', or 'auto'"):
            select("denoiser", "cuda")
        with pytest.raises(UsageError, match="reference, cpp, triton, cuda, mine or auto, got 'thine'"):
            select("denoiser", "thine")

    def test_other_operations_are_not_served(self, register):
        register("denoiser")
        register("reverse_loop")
        words = "denoiser_block: backend must be usable, got 'mine', which is not: it is registered for denoiser, rev"
        with pytest.raises(BackendUnavailable, match=words):
            select("denoiser_block", "mine")
        with backend("mine"):
            assert "it is registered for denoiser, reverse_loop alone" in explain("denoiser_block").how

    def test_the_automatic_choice_takes_it_first_where_it_asked_for_that_and_is_usable(self, register):
        register("denoiser", automatic=True)
        assert select("denoiser") == select("denoiser", device="cuda") == "mine"
        assert select("denoiser", needs_grad=True) == BEST
        assert select("denoiser", "reference") == "reference"

    def test_the_variable_may_name_it(self, register, monkeypatch):
        monkeypatch.setenv(VARIABLE, "mine")
        with pytest.raises(UsageError, match=f"{VARIABLE}: must be one of"):
            select("denoiser")
        register("denoiser")
        assert select("denoiser") == "mine"

    def test_it_is_gone_when_it_is_taken_back(self, register):
        register("denoiser")
        with backend("mine"):
            unregister_backend("denoiser", "mine")
            with pytest.raises(BackendUnavailable, match="which is not: it is not registered any more"):
                select("denoiser")
        with pytest.raises(UsageError, match="must be one of reference, cpp, triton, cuda or auto, got 'mine'"):
            select("denoiser", "mine")
        assert len(explain("denoiser")) == len(BACKENDS)

    def test_the_report_of_the_installation_shows_it(self, register, capsys):
        register("denoiser", "a_name_of_many_letters")
        assert doctor.main([]) == 0
        assert "\n  a_name_of_many_letters yes  mine runs everywhere\n" in capsys.readouterr().out
        assert doctor.report()["backends"]["denoiser"]["table"][-1]["backend"] == "a_name_of_many_letters"

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (dict(op="softmax"), "op: must be one of"),
            (dict(op="philox"), "op must not be 'philox'"),
            (dict(name="cpp"), "name must be an identifier other than reference, cpp, triton, cuda, auto, got 'cpp'"),
            (dict(name="auto"), "name must be an identifier"),
            (dict(name="my kernel"), "name must be an identifier"),
            (dict(usable=lambda **call: True), "usable must return whether it is and the reason as text, got True"),
            (dict(usable=lambda **call: (True, "")), "usable must return"),
        ],
    )
    def test_what_cannot_be_registered_is_refused(self, register, given, words):
        with pytest.raises(UsageError, match=words):
            register(**{"op": "denoiser", **given})
        assert len(explain("denoiser")) == len(BACKENDS)

    def test_a_name_is_registered_once_and_taken_back_once(self, register):
        register("denoiser")
        with pytest.raises(UsageError, match="'mine' must be new for denoiser. Call unregister_backend before."):
            register("denoiser")
        for op, name in (("denoiser", "cpp"), ("denoiser", "thine"), ("conditioning", "mine")):
            with pytest.raises(UsageError, match=f"name must be registered for {op}, got '{name}'. Registered: "):
                unregister_backend(op, name)

    @pytest.mark.parametrize("op", FUSED)
    def test_its_function_gets_the_arguments_of_the_reference(self, op, register):
        module = import_module(f"rohydr_fast.ops.{op}")
        public, reference, calls = getattr(module, op), getattr(module.reference, op), []

        def function(*args, **options):
            calls.append(options)
            return reference(*args, **options)

        given = ARGUMENTS[op]()
        expected = public(**given, backend="reference")
        register(op, function=function)
        with backend("mine"), torch.autocast("cpu", torch.bfloat16):
            found = public(**given)
        leaves = [torch.utils._pytree.tree_leaves(out) for out in (found, expected)]
        assert len(calls) == 1 and all(torch.equal(a, b) for a, b in zip(*leaves, strict=True))

    def test_a_compiled_call_takes_it(self, register):
        from rohydr_fast.ops.cross_attention import cross_attention

        register("cross_attention", function=lambda q, k, v, *, num_heads, key_mask: q + 1)
        given = attention_inputs()
        compiled = torch.compile(cross_attention, fullgraph=True, backend="eager")
        assert torch.equal(compiled(**given, backend="mine"), given["q"] + 1)

    def test_what_a_chain_of_it_lost_is_looked_for_by_the_reference(self, register):
        chain = make_chain()
        register("reverse_loop", function=lambda x, *args, **options: x)
        with backend("mine"):
            assert torch.equal(reverse_loops([chain])[0], chain.x)
            assert first_undefined_steps([chain, chain._replace(x=chain.x * torch.nan)]) == [None, 5]


def conditioning_inputs() -> dict:
    shapes = [(16, 5), (16, 16), (144, 16), (32, 16), (32, 16)]
    weights = [torch.randn(shape) for shape in shapes]
    biases = [torch.randn(rows) for rows, _ in shapes]
    return {"features": torch.randn(3, 5), "encoded": torch.randn(2, 4, 16), "weights": weights, "biases": biases}


ARGUMENTS = {
    "conditioning": conditioning_inputs,
    "cross_attention": attention_inputs,
    "denoiser_block": block_inputs,
    "denoiser": denoiser_inputs,
    "diffusion_loss": loss_inputs,
    "reverse_loop": loop_inputs,
}
