"""The implementations of the operations on CUDA, on tensors of the CPU: the simulator stands in for the kernels."""

import ctypes

import pytest
import torch

from rohydr_fast import _native
from rohydr_fast.ops import cuda_calls
from rohydr_fast.ops.chain_lists import ChainLists
from rohydr_fast.ops.denoiser_block import cuda as block_cuda
from rohydr_fast.ops.gradients import FAKE
from rohydr_fast.ops.reverse_loop import Chain, cuda
from rohydr_fast.ops.reverse_loop.native import _lists
from tests.cuda_sim import denoiser_blocks, reverse_loops
from tests.cuda_sim import test_denoiser_block as blocks
from tests.cuda_sim import test_reverse_loop as loops
from tests.cuda_sim.test_reverse_loop_backward import gradients_of_reference
from tests.ops.test_cuda_loop import CORE, needs_cuda_build

pytestmark = needs_cuda_build
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
LOOP_SIZES = ("samples", "tokens", "keys", "channels", "layers", "hidden", "steps")
LOOP_TABLES = ("x", "out", "position", "block_modulation", "final_modulation", "coefficients", "token_mask", "key_mask")
RESULTS = ("modulation_gradient", "cond_gradient", "weight_gradients")


def offsets_of(addresses: list[int]) -> ctypes.Array:
    """What the entries take for weights: bytes from the first; the memory of all is this process's."""
    return (ctypes.c_int64 * len(addresses))(*[address - addresses[0] for address in addresses])


def call(module, entry: str, *arguments) -> None:
    library = module.simulation()._library
    function = getattr(library, entry)
    function.restype = ctypes.c_int
    values = [ctypes.c_int64(value) if isinstance(value, int) else value for value in arguments]
    error = function(*values)
    library.rohydr_sim_release_all()
    assert error == 0, library.rohydr_sim_error().decode()


class SimulatedCore:
    """The native core with a device. What cp.async reads, scratch memory and tables, is the simulator's, which asks
    whose memory it is."""

    def __init__(self):
        self.scratches: list[int] = []  # sizes, in order of the requests

    def __getattr__(self, name):
        found = getattr(CORE, name)
        if not name.endswith("_cuda_scratch"):
            return found

        def remember(*sizes):
            self.scratches.append(found(*sizes))
            return self.scratches[-1]

        return remember

    def loop(self, fields: dict) -> list:
        weights = fields["weights"]
        given = [fields[name] for name in (*LOOP_SIZES, *LOOP_TABLES, "cond_kv")]
        given += [weights[0], offsets_of(weights), fields["sample_ids"]]
        seed = ctypes.c_uint64(fields["seed"])
        return [*given, seed, *[fields[name] for name in ("modality", "scratch", "states", "kept_steps")]]

    def with_scratch(self, module, fields: dict) -> dict:
        library = module.simulation()._library
        return fields | {"scratch": library.rohydr_sim_allocate(self.scratches[-1])}

    def reverse_loop_cuda(self, chains, width, heads, half, device, stream):
        library, given = reverse_loops.simulation()._library, []
        for fields, scratch in zip(chains, self.scratches[-len(chains) :], strict=True):
            rows = 4 * width * fields["steps"]
            sizes = {"block_modulation": 9 * fields["layers"] * rows, "final_modulation": 2 * rows}
            copies = {name: library.rohydr_sim_allocate(size) for name, size in sizes.items()}
            for name, size in sizes.items():
                ctypes.memmove(copies[name], fields[name], size)
            given += self.loop(fields | copies | {"scratch": library.rohydr_sim_allocate(scratch)})
        call(reverse_loops, "reverse_loop", len(chains), width, heads, int(half), *given)

    def reverse_loop_backward_cuda(self, fields, width, heads, half, device, stream):
        fields = self.with_scratch(reverse_loops, fields)
        results = [fields[name] for name in ("block_modulation_gradient", "final_modulation_gradient", *RESULTS[1:])]
        call(reverse_loops, "reverse_loop_backward", width, heads, int(half), *self.loop(fields), *results)

    def denoiser_block_cuda(self, fields, half, device, stream, backward):
        fields = self.with_scratch(denoiser_blocks, fields)
        names = ("samples", "tokens", "keys", "hidden", "width", "num_heads", "modulation_rows")
        sizes = (ctypes.c_int64 * 9)(*[fields[name] for name in names], half, backward)
        weights = fields["weights"]
        inputs = [fields[name] for name in ("x", "modulation", "cond_kv", "token_mask", "key_mask")]
        names = ("x_gradient", "out_gradient", *RESULTS) if backward else ("out", *["none"] * 4)
        results = [fields.get(name, 0) for name in names]
        memory = (weights[0], offsets_of(weights), fields["scratch"])
        call(denoiser_blocks, "denoiser_block", sizes, *inputs, *memory, *results)


@pytest.fixture(autouse=True)
def a_device(monkeypatch):
    core = SimulatedCore()
    monkeypatch.setattr(_native, "load", lambda: core)
    for module in (cuda_calls, cuda, block_cuda):
        monkeypatch.setattr(module, "stream_of", lambda tensor: (0, 0))


def close(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> bool:
    """By the caps of the kernels' own tests, and the rounding of the result."""
    assert found.dtype == dtype and found.shape == exact.shape
    return blocks.distance(found, exact) <= (blocks.CAPS[False] if dtype == torch.float32 else 0.03)


@DTYPES
@pytest.mark.parametrize("seed", [1, 2])
def test_a_block(dtype, seed):
    bf16 = dtype == torch.bfloat16
    case = blocks.make(seed, (64, 4), bf16=bf16, tokens=9, keys=7)
    gradient = blocks.out_gradient_of(case, bf16)
    given, rows = loops.convert(case, dtype), loops.real(case)
    modulation = given["modulation"] if given["modulation"].dim() == 3 else given["modulation"][None]
    arguments = (given["x"], modulation, given["cond_kv"], list(given["weights"]), given["num_heads"])
    masks = (given["token_mask"], given["key_mask"])
    out = block_cuda.run(*arguments, *masks)
    assert close(out[rows], blocks.reference(**loops.convert(case, torch.float64))[rows], dtype)
    x, of_rows, cond_kv, weights = block_cuda.run_backward(gradient.to(dtype), *arguments, *masks)
    exact = blocks.gradients_of_reference(case, gradient, torch.float64)
    assert close(x[rows], exact["x"][rows], dtype)
    assert close(of_rows, exact["modulation"].view(of_rows.shape), dtype)
    assert close(cond_kv, exact["cond_kv"], dtype)
    assert [weight.shape for weight in weights] == [weight.shape for weight in case["weights"]]
    assert close(torch.cat([weight.ravel() for weight in weights]), exact["weights"], dtype)


@DTYPES
@pytest.mark.parametrize("steps", [(3, 2), (1, 0)], ids=str)
def test_two_loops_of_which_one_may_have_no_gradient(dtype, steps):
    bf16 = dtype == torch.bfloat16
    cases = [loops.make(6 + i, (64, 4), bf16=bf16, tokens=9 + i, keys=7, steps=3 - i) for i in range(2)]
    chains = [Chain(**{"grad_steps": None, **loops.convert(case, dtype)}) for case in cases]
    x, *lists = _lists(chains)
    outs, states, tapes = cuda.run_with_states(x, *lists, list(steps), [0, 0])
    assert [state.shape for state in states] == [(n, *start.shape) for n, start in zip(steps, x, strict=True)]
    assert all(state.dtype == torch.float32 for state in states) and not any(tape.numel() for tape in tapes)
    gradients = [blocks.out_gradient_of(case, bf16).to(dtype) for case in cases]
    wanted = [gradient if count else None for gradient, count in zip(gradients, steps, strict=True)]
    found = cuda.run_backward(wanted, states, tapes, *lists)
    faked = FAKE["reverse_loops_backward"](wanted, states, tapes, *lists)
    for real, fake in zip(found, faked, strict=True):
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]
    counts = ChainLists(*lists).weight_counts
    for i, (case, count) in enumerate(zip(cases, steps, strict=True)):
        rows, start = loops.real(case), sum(counts[:i])
        assert close(outs[i][rows], loops.reference(**loops.convert(case, torch.float64))[rows], dtype)
        named = {name: part[i] for name, part in zip(("x", "blocks", "final", "cond_kv"), found[:4], strict=True)}
        named["weights"] = torch.cat([t.ravel() for t in found[4][start : start + counts[i]]])
        if count == 0:
            assert not any(gradient.any() for gradient in named.values())
            continue
        exact = gradients_of_reference(case, gradients[i].float(), torch.float64, count)
        assert not named["blocks"][count:].any() and not named["final"][count:].any()
        named |= {"blocks": named["blocks"][:count], "final": named["final"][:count]}
        if "x" not in exact:
            assert not named["x"].any()
        for name, gradient in exact.items():
            places = rows if name == "x" else slice(None)
            assert close(named[name][places], gradient[places], dtype), name


def test_nothing_is_called_for_what_is_empty(monkeypatch):
    monkeypatch.setattr(SimulatedCore, "denoiser_block_cuda", None)
    case = blocks.make(2, (64, 4), tokens=4, keys=3, samples=2)
    arguments = (case["x"][:0], case["modulation"][:1], case["cond_kv"][:, :0], list(case["weights"]), 4, None, None)
    assert block_cuda.run(*arguments).shape == (0, 4, 64)
    found = block_cuda.run_backward(case["x"][:0], *arguments)
    assert not any(gradient.any() for gradient in (*found[:3], *found[3]))
