"""Packed weights follow the arrays that they came from: every change is seen, and nothing is packed for nothing."""

import threading

import numpy as np
import pytest
import torch

from tests.ops.gradient_cases import direction

from . import backward, cases, driver

pytestmark = driver.needs_core


def problem_of(operation: str, seed: int, dtype: torch.dtype = torch.float32) -> dict:
    return driver.cast(cases.CASES[operation](seed, largest_width=24, samples=2, scale=0.5), dtype)


WEIGHTED = list(backward.OPERATIONS)
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", WEIGHTED)
def test_any_changed_bit_is_packed_again(operation, dtype, isa):
    """One bit of one element of each array, changed and changed back through numpy."""
    rng = np.random.default_rng(4)
    arguments = problem_of(operation, 31, dtype)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    assert packed.packs == 0 and packed.refresh() and packed.packs == 1 and not packed.refresh()
    first, count = driver.native(operation, arguments, packed=packed), 1
    for tensor in driver.flat(arguments["weights"]):
        bits = tensor.numpy().reshape(-1).view(f"u{tensor.element_size()}")
        mantissa_to_sign = int(rng.integers(0, 8 * tensor.element_size() - 12))
        for place in {0, len(bits) - 1, int(rng.integers(len(bits)))}:
            for bit in (0, mantissa_to_sign, 8 * tensor.element_size() - 1):
                mask = bits.dtype.type(1 << bit)
                bits[place] ^= mask
                changed = driver.native(operation, arguments, packed=packed)
                fresh = driver.native(operation, arguments)
                assert packed.packs == count + 1 and driver.same_bits(changed, fresh)
                bits[place] ^= mask
                assert packed.refresh() and packed.packs == count + 2
                count += 2
    assert driver.same_bits(driver.native(operation, arguments, packed=packed), first) and packed.packs == count


@pytest.mark.parametrize("operation", WEIGHTED)
def test_the_way_back_sees_any_changed_bit(operation, isa):
    """It multiplies by the transposed weights too, which are packed at its first use."""
    rng, arguments = np.random.default_rng(5), problem_of(operation, 31)
    out_gradient = direction(operation, arguments)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])

    def gradients(**options) -> dict:
        return backward.gradients(operation, arguments, out_gradient, **options)

    first = gradients(packed=packed)
    for tensor in driver.flat(arguments["weights"]):
        bits = tensor.numpy().reshape(-1).view("u4")
        for place in {0, len(bits) - 1, int(rng.integers(len(bits)))}:
            bits[place] ^= np.uint32(1 << 31)
            assert backward.same_bits(gradients(packed=packed), gradients())
            bits[place] ^= np.uint32(1 << 31)
    assert backward.same_bits(gradients(packed=packed), first)


@pytest.mark.parametrize("operation", WEIGHTED)
def test_there_and_back_share_what_is_packed(operation, isa):
    arguments = problem_of(operation, 32)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    size = sum(t.numel() * t.element_size() for t in driver.flat(arguments["weights"]))
    for turn in range(3):
        driver.native(operation, arguments, packed=packed)
        backward.gradients(operation, arguments, direction(operation, arguments), packed=packed, kept=turn == 1)
    assert packed.packs <= 2, "once, and once more for the first way back"
    assert 3 * size <= packed.nbytes < 3 * size + 400_000


@pytest.mark.parametrize("operation", WEIGHTED)
def test_unchanged_weights_are_packed_once(operation, isa):
    arguments = problem_of(operation, 32)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    assert packed.packs == 0
    for threads in (1, 2, 3, 1):
        driver.native(operation, arguments, packed=packed, threads=threads)
    assert packed.packs == 1
    size = sum(t.numel() * t.element_size() for t in driver.flat(arguments["weights"]))
    assert 2 * size <= packed.nbytes < 2 * size + 200_000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", WEIGHTED)
def test_bfloat16_weights_are_the_widened_ones(operation, dtype, isa):
    """uint16 arrays hold the bits of bfloat16; any of the arrays may be one."""
    for seed in range(33, 40):
        arguments = problem_of(operation, seed)
        tensors = [t.bfloat16() for t in driver.flat(arguments["weights"])]
        widened = [t.to(dtype).numpy() for t in tensors]
        mixed = [
            tensor.view(torch.int16).numpy().view(np.uint16) if (seed + place) % 3 else wide.astype(np.float32)
            for place, (tensor, wide) in enumerate(zip(tensors, widened, strict=True))
        ]
        double = dtype == torch.float64
        entry = driver.CORE.pack_block if operation == "denoiser_block" else driver.CORE.pack_denoiser
        arguments = driver.cast(arguments, dtype)
        packs = [entry(arrays, arguments["num_heads"], double) for arrays in (widened, mixed)]
        results = [driver.native(operation, arguments, packed=packed) for packed in packs]
        assert driver.same_bits(*results), f"seed {seed}"
        out_gradient = direction(operation, arguments)
        ways_back = [backward.gradients(operation, arguments, out_gradient, packed=packed) for packed in packs]
        assert backward.same_bits(*ways_back), f"seed {seed}"


@pytest.mark.parametrize("operation", WEIGHTED)
def test_another_instruction_set_packs_another_layout(operation, monkeypatch):
    arguments = problem_of(operation, 41)
    expected = {}
    for name in driver.ISAS:
        monkeypatch.setenv("ROHYDR_FAST_CPU", name)
        expected[name] = driver.native(operation, arguments)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    for turn, name in enumerate(3 * driver.ISAS, 1):
        monkeypatch.setenv("ROHYDR_FAST_CPU", name)
        assert driver.same_bits(driver.native(operation, arguments, packed=packed), expected[name])
        assert packed.packs == (turn if len(driver.ISAS) > 1 else 1)


@pytest.mark.parametrize("operation", WEIGHTED)
def test_callers_who_share_weights_that_change_between_their_calls(operation, isa):
    """All callers meet, one changes the weights, all compute: nobody may see what was before."""
    arguments, callers = problem_of(operation, 42), 4
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    number = driver.flat(arguments["weights"])[0].numpy().reshape(-1)
    meeting, wrong, expected = threading.Barrier(callers), [], []

    def prepare(turn: int) -> None:
        number[0] = turn
        expected.append(driver.native(operation, arguments))

    def call(caller: int) -> None:
        for turn in range(30):
            if caller == 0:
                prepare(turn)
            meeting.wait()
            result = driver.native(operation, arguments, packed=packed, threads=1 + caller % 2)
            if not driver.same_bits(result, expected[turn]):
                wrong.append((caller, turn))
            meeting.wait()

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert packed.packs == 30, "each change is packed once, whoever comes first"


def test_weights_outlive_the_arrays_that_the_caller_drops(isa):
    arguments = problem_of("denoiser_block", 43)
    copies = [t.numpy().copy() for t in driver.flat(arguments["weights"])]
    packed = driver.CORE.pack_block(tuple(copies), arguments["num_heads"], False)
    expected = driver.native("denoiser_block", arguments)
    del copies
    rubbish = [np.full(2000, 7.0, np.float32) for _ in range(200)]
    assert driver.same_bits(driver.native("denoiser_block", arguments, packed=packed), expected)
    assert packed.packs == 1 and len(rubbish) == 200
