"""Gradients of reverse loops are the same bits however they are computed: kept or computed again, together or alone."""

import pytest
import torch
from torch import Tensor

from rohydr_fast.ops.denoiser import native
from rohydr_fast.ops.reverse_loop import Chain, Modulation, reverse_loops
from tests.kernels.cases import take
from tests.kernels.driver import ISAS
from tests.native_spy import needs_core, spy_on_core
from tests.ops.gradient_cases import CASES, chain_of, direction, gradients, problems, with_leaves
from tests.ops.inputs import make_chain, make_denoiser
from tests.ops.operations import tape_size

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]

SMALL = dict(largest_width=48, tokens=9, keys=11)


def states_bytes(arguments: dict, steps: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of x_t at so many steps: the least that a gradient can do with."""
    return steps * arguments["x"].numel() * dtype.itemsize


def same(first: dict[str, Tensor | None], second: dict[str, Tensor | None]) -> bool:
    assert first.keys() == second.keys()
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def wanting(arguments: dict, dtype=torch.float32, **options) -> tuple[Chain, dict[str, Tensor]]:
    """The chain of a problem and its leaves."""
    given, leaves = with_leaves(arguments, dtype)
    return chain_of(given, **options), leaves


def loop_of(operation: str, steps: int) -> dict[str, int]:
    return dict(steps=steps) if operation == "reverse_loop" else {}


def of_samples(operation: str, arguments: dict, samples: list[int]) -> dict:
    """The same problem for these samples only."""
    modulation = arguments["modulation"]
    if operation != "denoiser":
        return take(arguments, samples)
    rows = Modulation(*[table[samples] for table in modulation]) if modulation.final.dim() == 3 else modulation
    return {**take({**arguments, "modulation": torch.empty(0)}, samples), "modulation": rows}


@pytest.mark.parametrize("grad_steps", [None, 2])
@pytest.mark.parametrize(
    ("isa", "dtype"), [*[(isa, torch.float32) for isa in ISAS], ("portable", torch.float64)], ids=str
)
def test_activations_kept_or_computed_again_give_the_same_bits(isa, dtype, grad_steps, monkeypatch):
    monkeypatch.setenv("ROHYDR_FAST_CPU", isa)
    calls = spy_on_core(monkeypatch)
    for arguments in problems("reverse_loop", 8, steps=4):
        out_gradient, steps = direction("reverse_loop", arguments), grad_steps or 4
        found = []
        for tapes, memory in ((1, None), (0, states_bytes(arguments, steps, dtype))):
            calls.clear()
            options = dict(grad_steps=grad_steps, max_memory=memory, backend="cpp")
            found.append(gradients("reverse_loop", arguments, out_gradient, dtype, **options))
            assert [call.tapes for call in calls] == [tapes, tapes]
        assert same(*found)


@pytest.mark.parametrize(
    ("isa", "dtype"), [*[(isa, torch.float32) for isa in ISAS], ("portable", torch.float64)], ids=str
)
def test_a_pass_that_kept_its_activations_has_the_gradients_of_one_that_did_not(isa, dtype, monkeypatch):
    monkeypatch.setenv("ROHYDR_FAST_CPU", isa)
    calls = spy_on_core(monkeypatch)
    for arguments in problems("denoiser", 8):
        out_gradient, found = direction("denoiser", arguments), []
        for tapes in (1, 0):
            calls.clear()
            with monkeypatch.context() as patch:
                if tapes == 0:
                    patch.setattr(native, "tape_size", lambda *arguments: 0)
                found.append(gradients("denoiser", arguments, out_gradient, dtype, backend="cpp"))
            assert [call.tapes for call in calls] == [tapes, tapes]
        assert same(*found)


def test_memory_is_counted_to_the_byte_and_all_chains_keep_everything_or_none(monkeypatch):
    calls = spy_on_core(monkeypatch)
    for arguments in problems("reverse_loop", 5, steps=3):
        pair = [wanting(arguments)[0], wanting(arguments, grad_steps=1)[0]]
        needed = 4 * sum(map(tape_size, pair)) + states_bytes(arguments, 3 + 1)
        for memory, tapes in ((needed, 2), (needed - 1, 0)):
            reverse_loops(pair, max_memory=memory)
            assert calls[-1].tapes == tapes


def test_what_a_tape_does_not_hold_is_not_read():
    """torch fills what is not written with NaN when it is asked for deterministic algorithms."""
    for arguments in problems("reverse_loop", 6, steps=2, **SMALL):
        out_gradient, found = direction("reverse_loop", arguments), []
        for poison in (False, True):
            torch.use_deterministic_algorithms(poison)
            try:
                found.append(gradients("reverse_loop", arguments, out_gradient, backend="cpp"))
            finally:
                torch.use_deterministic_algorithms(False)
        assert same(*found)


@pytest.mark.parametrize("grad_steps", [1, 2, 4, 5, 9])
def test_the_last_steps_have_the_gradients_of_the_reference(grad_steps):
    for arguments in problems("reverse_loop", 5, steps=5, **SMALL):
        out_gradient = direction("reverse_loop", arguments)
        found, expected = (
            gradients("reverse_loop", arguments, out_gradient, torch.float64, grad_steps=grad_steps, backend=name)
            for name in ("cpp", "reference")
        )
        assert (found["['x']"] is None) == (expected["['x']"] is None) == (grad_steps < 5)
        for name, value in expected.items():
            if value is not None:
                torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10 * float(value.abs().max()))
        earlier = found["['modulation'].blocks"][grad_steps:], found["['modulation'].final"][grad_steps:]
        assert not any(rows.any() for rows in earlier)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_step_is_no_graph(backend):
    (arguments,) = problems("reverse_loop", 1, steps=3, **SMALL)
    chain, leaves = wanting(arguments)
    without, full = reverse_loops([chain._replace(grad_steps=0), chain], backend=backend)
    assert without.grad_fn is None and not without.requires_grad and torch.equal(without, full.detach())
    full.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())


@pytest.mark.parametrize("max_memory", [None, 10**5], ids=["kept", "again"])
def test_several_chains_have_the_bits_of_each_alone(max_memory, monkeypatch):
    calls = spy_on_core(monkeypatch)
    cases = [CASES["reverse_loop"](seed, **SMALL, steps=steps) for seed, steps in ((1, 5), (2, 1), (3, 3))]
    chains, leaves = zip(*map(wanting, cases), strict=True)
    chains = [chains[0]._replace(grad_steps=2), *chains[1:]]
    outs = reverse_loops(chains, max_memory=max_memory)
    loss = sum((out * direction("reverse_loop", case)).sum() for out, case in zip(outs, cases, strict=True))
    loss.backward()
    assert [(call.op, call.chains) for call in calls] == [("reverse_loop", 3), ("reverse_loop_backward", 3)]
    assert [call.tapes for call in calls] == [0 if max_memory else 3] * 2
    for case, chain, found in zip(cases, chains, leaves, strict=True):
        options = dict(grad_steps=chain.grad_steps, backend="cpp")
        alone = gradients("reverse_loop", case, direction("reverse_loop", case), **options)
        assert same({name: leaf.grad for name, leaf in found.items()}, alone)


def test_chains_of_one_denoiser_add_up():
    denoiser, found = make_denoiser(), []
    chains = [make_chain(denoiser), make_chain(denoiser, batch=1, tokens=9, masked=False, seed=5, steps=2)]
    parameters = chains[0].weights.tensors()
    for calls in ([chains], [chains[:1], chains[1:]]):
        loss = sum(out.square().sum() for group in calls for out in reverse_loops(group))
        found.append(torch.autograd.grad(loss, parameters))
    for together, one_by_one in zip(*found, strict=True):
        assert torch.equal(together, one_by_one)


@pytest.mark.parametrize("unused", [0, 1])
def test_a_result_that_nobody_used_has_no_gradient_and_costs_none(unused, monkeypatch):
    calls = spy_on_core(monkeypatch)
    cases = [CASES["reverse_loop"](seed, **SMALL, steps=2) for seed in (1, 2)]
    chains, leaves = zip(*map(wanting, cases), strict=True)
    outs = reverse_loops(chains)
    used = 1 - unused
    out_gradient = direction("reverse_loop", cases[used])
    outs[used].backward(out_gradient)
    assert calls[-1].op == "reverse_loop_backward" and calls[-1].chains == 1
    assert all(leaf.grad is None for leaf in leaves[unused].values())
    alone = gradients("reverse_loop", cases[used], out_gradient, backend="cpp")
    assert same({name: leaf.grad for name, leaf in leaves[used].items()}, alone)


def test_the_way_back_can_be_taken_twice():
    (arguments,) = problems("reverse_loop", 1, steps=3, **SMALL)
    chain, leaves = wanting(arguments)
    out = reverse_loops([chain])[0]
    found = [torch.autograd.grad(out.square().sum(), list(leaves.values()), retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("operation", CASES)
def test_bits_do_not_depend_on_the_threads_or_the_run(operation):
    (arguments,) = problems(operation, 1, samples=11, largest_width=32, tokens=7, keys=5, **loop_of(operation, 3))
    out_gradient = direction(operation, arguments)
    first = gradients(operation, arguments, out_gradient, backend="cpp")
    for threads in (2, 3, 4, 8):
        torch.set_num_threads(threads)
        assert same(gradients(operation, arguments, out_gradient, backend="cpp"), first)


def test_bits_do_not_change_in_250_runs():
    sizes = dict(samples=9, largest_width=16, tokens=3, keys=4, channels=3, layers=1, steps=2)
    (arguments,) = problems("reverse_loop", 1, **sizes)
    chain, leaves = wanting(arguments)
    out_gradient, leaves, first = direction("reverse_loop", arguments), list(leaves.values()), None
    torch.set_num_threads(3)
    for run in range(250):
        found = torch.autograd.grad(reverse_loops([chain])[0], leaves, out_gradient)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), run


@pytest.mark.parametrize("operation", CASES)
def test_what_belongs_to_a_sample_does_not_depend_on_its_batch(operation):
    """The gradients of weights are sums over the batch; those of x and of the condition are each sample's own."""
    for arguments in problems(operation, 4, samples=5, largest_width=48, **loop_of(operation, 3)):
        out_gradient = direction(operation, arguments)
        whole = gradients(operation, arguments, out_gradient, backend="cpp")
        for part in ([0], [3, 1], [4, 2, 0]):
            found = gradients(operation, of_samples(operation, arguments, part), out_gradient[part], backend="cpp")
            assert torch.equal(found["['x']"], whole["['x']"][part])
            assert torch.equal(found["['cond_kv']"], whole["['cond_kv']"].index_select(-3, torch.tensor(part)))
