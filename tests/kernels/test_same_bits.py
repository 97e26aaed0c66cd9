"""The same numbers give the same bits: for any number of threads, beside any neighbours, padded or cut, every time."""

import threading

import pytest
import torch

from . import cases, driver

pytestmark = driver.needs_core

OPERATIONS = list(cases.CASES)
SEEDS = range(500, 540)


def result_of(operation: str, arguments: dict, **options) -> torch.Tensor:
    return driver.native(operation, arguments, **options)


def samples_of(arguments: dict) -> int:
    return len(arguments["q"] if "q" in arguments else arguments["x"])


def crowded(operation: str, seed: int, **fixed) -> dict:
    """Several short samples, which share groups of rows."""
    sizes = {"samples": 6, "tokens": 1 + seed % 9, "keys": 1 + seed % 11}
    return cases.CASES[operation](seed, largest_width=48, **{**sizes, **fixed})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_for_any_number_of_threads(operation, isa):
    for seed in SEEDS:
        arguments = cases.CASES[operation](seed)
        alone = result_of(operation, arguments)
        for threads in (2, 3, 4, 8):
            threaded = result_of(operation, arguments, threads=threads, offset=threads)
            assert driver.same_bits(threaded, alone), f"seed {seed}, {threads} threads"


@pytest.mark.parametrize("tokens", [64, 70])
def test_for_any_number_of_threads_on_one_long_sample(tokens, isa):
    arguments = cases.reverse_loop_case(7, largest_width=64, samples=1, tokens=tokens, layers=2, steps=3)
    alone = result_of("reverse_loop", arguments)
    for threads in (2, 3, 4, 5, 6, 7, 8, 16):
        assert driver.same_bits(result_of("reverse_loop", arguments, threads=threads), alone), f"{threads} threads"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_for_any_split_and_order_of_the_batch(operation, isa):
    for seed in SEEDS:
        arguments = crowded(operation, seed)
        whole = result_of(operation, arguments)
        for samples in ([0], [1], [5], [0, 1], [2, 3], [4, 5], [3, 1, 4], [5, 4, 3, 2, 1, 0]):
            part = result_of(operation, cases.take(arguments, samples), threads=1 + seed % 3)
            assert driver.same_bits(part, whole[samples]), f"seed {seed}, samples {samples}"


@pytest.mark.parametrize("size", [4, 8, 16, 24])
@pytest.mark.parametrize("keys", [21, 131])
def test_for_any_number_of_queries(keys, size, isa):
    """A query is computed in one lane of many, with other vectors of queries by blocks of keys, or as one of the few
    that are left over: with four heads side by side, or with a head beside it whose scores leave the cheap range."""
    generator = torch.Generator().manual_seed(size)
    q, k, v = (torch.randn(2, count, 6 * size, generator=generator) for count in (56, keys, keys))
    for head, scale in [(0, 1), (0, 1e3), (3, 1e3), (4, 1e3)]:
        q[0, ::3, head * size : (head + 1) * size] *= scale
        case = {"k": k, "v": v, "num_heads": 6, "key_mask": torch.rand(2, keys, generator=generator) < 0.8}
        whole = result_of("cross_attention", {**case, "q": q})
        for count in (*range(1, 21), 31, 33, 34, 48, 50):
            part = result_of("cross_attention", {**case, "q": q[:, 5 : 5 + count].contiguous()}, offset=count % 3)
            assert driver.same_bits(part, whole[:, 5 : 5 + count]), f"{count} queries, head {head} times {scale}"


@pytest.mark.parametrize("width", [8, 16, 20, 32, 64, 128])
def test_for_any_number_of_rows(width, isa):
    """LayerNorm takes as many rows at a time as a vector has lanes where the width is one of a few, else four, and what
    is left: seven rows alone, and among those of five other samples."""
    sizes = {"samples": 6, "tokens": 7, "keys": 9, "layers": 2, "steps": 2}
    arguments = cases.reverse_loop_case(width, network=(width, 4), **sizes)
    whole = result_of("reverse_loop", arguments)
    for sample in range(6):
        assert driver.same_bits(result_of("reverse_loop", cases.take(arguments, [sample])), whole[[sample]])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_beside_samples_with_extreme_scores(operation, isa):
    """Scores beyond the cheap range of softmax, or undefined ones, send a sample another way: its neighbours stay."""
    hits = driver.CORE.softmax_range_hits()
    for seed in SEEDS:
        arguments = crowded(operation, seed)
        before = result_of(operation, arguments)
        for factor in (1e4, float("inf"), float("nan")):
            changed = dict(arguments)
            for name in ("k", "q") if operation == "cross_attention" else ("x", "cond_kv"):
                changed[name] = arguments[name].clone()
                changed[name].movedim(cases.SAMPLE_AXIS[name], 0)[[1, 4]] *= factor
            after = result_of(operation, changed)
            assert driver.same_bits(after[[0, 2, 3, 5]], before[[0, 2, 3, 5]]), f"seed {seed}, factor {factor}"
    assert driver.CORE.softmax_range_hits() > hits, "no score was extreme: this tested nothing"


def test_for_chains_alone_and_together(isa):
    for seed in SEEDS[:8]:
        chains = [cases.reverse_loop_case(seed + 40 * i, largest_width=32, steps=2) for i in range(3)]
        alone = [result_of("reverse_loop", chain) for chain in chains]
        for threads in (1, 3):
            together = driver.native_chains(chains + chains[:1], threads=threads)
            pairs = zip(together, alone + alone[:1], strict=True)
            assert all(driver.same_bits(*pair) for pair in pairs), f"seed {seed}, {threads} threads"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_fifty_times(operation, isa):
    arguments = crowded(operation, 510)
    packed = None if operation == "cross_attention" else driver.pack(arguments["weights"], arguments["num_heads"])
    first = result_of(operation, arguments, packed=packed)
    for turn in range(50):
        again = result_of(operation, arguments, packed=packed, threads=1 + turn % 4, offset=turn % 16)
        assert driver.same_bits(again, first), f"turn {turn}"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_masked_equals_cut(operation, isa):
    """A ragged batch against each sample cut to what exists; a chain's tokens are the first, as noise counts them."""
    ragged = 0
    for seed in range(500, 560):
        arguments = cases.CASES[operation](seed, largest_width=48)
        mask = arguments.get("token_mask")
        if operation == "reverse_loop" and mask is not None and (mask[:, 1:] > mask[:, :-1]).any():
            continue
        whole = result_of(operation, arguments)
        for sample in range(samples_of(arguments)):
            cut, tokens, keys = cases.compacted(arguments, sample)
            if not len(keys) or not len(tokens):
                continue  # a condition without any key is refused
            ragged += mask is not None or arguments["key_mask"] is not None
            alone = result_of(operation, cut)
            assert driver.same_bits(whole[sample, tokens], alone[0]), f"seed {seed}, sample {sample}"
    assert ragged > 20


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_padding_holds(operation, filling, isa):
    masked = 0
    for seed in range(500, 530):
        arguments = cases.CASES[operation](seed, largest_width=48)
        before = result_of(operation, arguments)
        filled = dict(arguments)
        if arguments.get("token_mask") is not None:
            filled["x"] = arguments["x"].masked_fill(~arguments["token_mask"][..., None], filling)
        if arguments["key_mask"] is not None:
            for name in "kv" if operation == "cross_attention" else ("cond_kv",):
                filled[name] = arguments[name].masked_fill(~arguments["key_mask"][..., None], filling)
        masked += any(filled[name] is not arguments[name] for name in arguments)
        assert driver.same_bits(result_of(operation, filled), before), f"seed {seed}"
    assert masked > 10


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_byte_a_mask_says_yes_with(operation, isa):
    """A bool array made by a view of bytes may hold any byte for True."""
    for seed in range(500, 530):
        arguments = cases.CASES[operation](seed, largest_width=48)
        before, other = result_of(operation, arguments), dict(arguments)
        for name in ("token_mask", "key_mask"):
            if arguments.get(name) is not None:
                other[name] = (arguments[name].view(torch.uint8) * (2 + 253 * (seed % 2))).view(torch.bool)
        after = driver.native(operation, other)
        real = driver.real_tokens(arguments)
        assert driver.same_bits(after[real], before[real]), f"seed {seed}"


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_for_eight_callers_at_once(operation, threads, isa):
    """Callers who find the pool of threads busy compute alone."""
    problems = [crowded(operation, seed) for seed in SEEDS[:8]]
    expected = [result_of(operation, problem) for problem in problems]
    start, wrong = threading.Barrier(8), []

    def call(first: int) -> None:
        start.wait()
        for turn in range(16):
            number = (first + turn) % len(problems)
            if not driver.same_bits(result_of(operation, problems[number], threads=threads), expected[number]):
                wrong.append((first, turn))

    callers = [threading.Thread(target=call, args=(first,)) for first in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
