"""The same numbers give the same gradients to the bit: for any number of threads, kept or computed again, beside any
neighbours, padded or cut, every time.
"""

import threading

import pytest
import torch

from rohydr_fast.ops.denoiser.reference import Modulation
from tests.ops.gradient_cases import direction

from . import backward, cases, driver

pytestmark = driver.needs_core

SEEDS = range(600, 612)
OF_SAMPLES = ("['x']", "['cond_kv']")  # every other gradient is a sum over the batch


def gradients_of(operation: str, arguments: dict, **options) -> dict:
    return backward.gradients(operation, arguments, direction(operation, arguments), **options)


def crowded(operation: str, seed: int) -> dict:
    """Several short samples, which share groups of rows."""
    sizes = {"samples": 6, "tokens": 1 + seed % 9, "keys": 1 + seed % 11}
    return cases.CASES[operation](seed, largest_width=48, **sizes)


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_for_any_number_of_threads(operation, isa):
    for seed in SEEDS:
        arguments = cases.CASES[operation](seed, largest_width=64)
        alone = gradients_of(operation, arguments)
        for threads in (2, 3, 4, 8):
            found = gradients_of(operation, arguments, threads=threads, offset=threads, kept=threads % 2 == 0)
            assert backward.same_bits(found, alone), f"seed {seed}, {threads} threads"


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_for_any_number_of_threads_with_many_groups(operation, isa):
    """More groups of rows than are added up one by one."""
    arguments = cases.CASES[operation](7, largest_width=24, samples=21, tokens=40, keys=5)
    arguments["token_mask"] = None
    alone = gradients_of(operation, arguments)
    for threads in (2, 5, 8, 9, 16):
        found = gradients_of(operation, arguments, threads=threads, kept=threads % 2 == 0)
        assert backward.same_bits(found, alone), f"{threads} threads"


def test_kept_or_computed_again_for_any_last_steps(isa):
    for seed in SEEDS:
        arguments = cases.reverse_loop_case(seed, largest_width=48)
        for steps in range(1, len(arguments["coefficients"]) + 1):
            kept, again = (gradients_of("reverse_loop", arguments, steps=steps, kept=kept) for kept in (True, False))
            assert backward.same_bits(kept, again), f"seed {seed}, the last {steps}"


def test_the_last_steps_are_a_shorter_chain(isa):
    """That starts where they do: x_0 too is the same."""
    for seed in SEEDS:
        arguments = cases.reverse_loop_case(seed, largest_width=48, steps=5)
        packed = driver.pack(arguments["weights"], arguments["num_heads"])
        for steps in (1, 2, 4):
            states, _ = backward.kept_by_forward(arguments, packed, steps, kept=False, threads=1)
            shorter = dict(arguments, x=torch.from_numpy(states[-1].copy()))
            shorter["modulation"] = Modulation(*(table[:steps] for table in arguments["modulation"]))
            shorter["coefficients"] = arguments["coefficients"][:steps]
            assert driver.same_bits(*(driver.native("reverse_loop", chain) for chain in (arguments, shorter)))
            found = gradients_of("reverse_loop", arguments, steps=steps)
            assert backward.same_bits(found, gradients_of("reverse_loop", shorter)), f"seed {seed}, the last {steps}"


def test_for_chains_alone_and_together(isa):
    """Three chains, and the first once more with the weights of the first."""
    for seed in SEEDS[:6]:
        chains = [cases.reverse_loop_case(seed + 40 * i, largest_width=32, steps=1 + i) for i in range(3)]
        alone = [gradients_of("reverse_loop", chain) for chain in chains]
        packed = [driver.pack(chain["weights"], chain["num_heads"]) for chain in chains]
        for threads in (1, 3):
            calls = [
                backward.WayBack(
                    "reverse_loop", chain, direction("reverse_loop", chain), packed=own, kept=(seed + i) % 2 == 0
                )
                for i, (chain, own) in enumerate(zip([*chains, chains[0]], [*packed, packed[0]], strict=True))
            ]
            together = backward.run(*calls, threads=threads)
            pairs = zip(together, [*alone, alone[0]], strict=True)
            assert all(backward.same_bits(*pair) for pair in pairs), f"seed {seed}, {threads} threads"


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_what_belongs_to_a_sample_for_any_split_and_order_of_the_batch(operation, isa):
    for seed in SEEDS:
        arguments = crowded(operation, seed)
        out_gradient = direction(operation, arguments)
        whole = backward.gradients(operation, arguments, out_gradient)
        for samples in ([0], [5], [0, 1], [3, 1, 4], [5, 4, 3, 2, 1, 0]):
            some = cases.take(arguments, samples)
            part = backward.gradients(operation, some, out_gradient[samples], threads=1 + seed % 3)
            for name in OF_SAMPLES:
                expected = whole[name].index_select(cases.SAMPLE_AXIS[name[2:-2]], torch.tensor(samples))
                assert driver.same_bits(part[name], expected), f"seed {seed}, samples {samples}, {name}"


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_what_belongs_to_a_sample_beside_others_with_extreme_scores(operation, isa):
    hits = driver.CORE.softmax_range_hits()
    for seed in SEEDS:
        arguments = crowded(operation, seed)
        before = gradients_of(operation, arguments)
        for factor in (1e4, float("inf"), float("nan")):
            changed = dict(arguments)
            for name in ("x", "cond_kv"):
                changed[name] = arguments[name].clone()
                changed[name].movedim(cases.SAMPLE_AXIS[name], 0)[[1, 4]] *= factor
            after = gradients_of(operation, changed, kept=seed % 2 == 0)
            for name in OF_SAMPLES:
                own, other = (found[name].movedim(cases.SAMPLE_AXIS[name[2:-2]], 0) for found in (after, before))
                others = [0, 2, 3, 5]
                assert driver.same_bits(own[others], other[others]), f"seed {seed}, factor {factor}, {name}"
    assert driver.CORE.softmax_range_hits() > hits, "no score was extreme: this tested nothing"


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_fifty_times(operation, isa):
    arguments = crowded(operation, 610)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    first = gradients_of(operation, arguments, packed=packed)
    for turn in range(50):
        again = gradients_of(operation, arguments, packed=packed, threads=1 + turn % 4, offset=turn % 16)
        assert backward.same_bits(again, first), f"turn {turn}"


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_masked_equals_cut(operation, isa):
    """One sample of a ragged batch against what exists of it; a chain's tokens are the first, as noise counts them."""
    ragged = 0
    for seed in range(600, 660):
        arguments = cases.CASES[operation](seed, largest_width=32, samples=1)
        mask, keys_mask = arguments["token_mask"], arguments["key_mask"]
        if operation == "reverse_loop" and mask is not None and (mask[:, 1:] > mask[:, :-1]).any():
            continue
        cut, tokens, keys = cases.compacted(arguments, 0)
        if not len(keys) or not len(tokens) or (mask is None and keys_mask is None):
            continue  # a condition without any key is refused
        out_gradient = direction(operation, arguments)
        whole = backward.gradients(operation, arguments, out_gradient)
        whole["['x']"], whole["['cond_kv']"] = whole["['x']"][:, tokens], whole["['cond_kv']"][..., keys, :]
        assert backward.same_bits(whole, backward.gradients(operation, cut, out_gradient[:, tokens])), f"seed {seed}"
        ragged += 1
    assert ragged > 10


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_whatever_padding_holds(operation, filling, isa):
    masked = 0
    for seed in SEEDS:
        arguments = cases.CASES[operation](seed, largest_width=48)
        before, filled = gradients_of(operation, arguments), dict(arguments)
        if arguments["token_mask"] is not None:
            filled["x"] = arguments["x"].masked_fill(~arguments["token_mask"][..., None], filling)
        if arguments["key_mask"] is not None:
            filled["cond_kv"] = arguments["cond_kv"].masked_fill(~arguments["key_mask"][..., None], filling)
        masked += any(filled[name] is not arguments[name] for name in arguments)
        after = backward.gradients(operation, filled, direction(operation, arguments, filling), kept=seed % 2 == 0)
        assert backward.same_bits(after, before), f"seed {seed}"
    assert masked > 5


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_whatever_byte_a_mask_says_yes_with(operation, isa):
    for seed in SEEDS:
        arguments = cases.CASES[operation](seed, largest_width=48)
        before, other = gradients_of(operation, arguments), dict(arguments)
        for name in ("token_mask", "key_mask"):
            if arguments[name] is not None:
                other[name] = (arguments[name].view(torch.uint8) * (2 + 253 * (seed % 2))).view(torch.bool)
        after = backward.WayBack(operation, other, direction(operation, arguments))
        after.arguments = arguments  # whose masks torch can read
        assert backward.same_bits(backward.run(after)[0], before), f"seed {seed}"


def test_float64_on_every_instruction_set(each_isa):
    """It has portable kernels only."""
    for operation in backward.OPERATIONS:
        arguments = driver.cast(crowded(operation, 611), torch.float64)
        first, *others = (gradients_of(operation, arguments) for _ in each_isa())
        assert all(backward.same_bits(found, first) for found in others), operation


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_for_eight_callers_at_once(operation, threads, isa):
    """Callers who find the pool of threads busy compute alone."""
    problems = [crowded(operation, seed) for seed in SEEDS[:8]]
    expected = [gradients_of(operation, problem) for problem in problems]
    start, wrong = threading.Barrier(8), []

    def call(first: int) -> None:
        start.wait()
        for turn in range(8):
            number = (first + turn) % len(problems)
            found = gradients_of(operation, problems[number], threads=threads, kept=turn % 2 == 0)
            if not backward.same_bits(found, expected[number]):
                wrong.append((first, turn))

    callers = [threading.Thread(target=call, args=(first,)) for first in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
