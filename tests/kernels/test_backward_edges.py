"""Gradients of the smallest and largest shapes, of empty batches, and of samples without tokens or keys."""

from collections.abc import Iterable

import pytest
import torch

from rohydr_fast.ops.denoiser.reference import Modulation
from rohydr_fast.ops.reverse_loop.reference import NoiseKey
from tests.ops.gradient_cases import LEAST_WIDTH, direction, problems
from tests.ops.test_gradients import ZERO_CAP

from . import backward, cases, driver
from .test_backward_accuracy import Exact

pytestmark = driver.needs_core

# Of float64: LayerNorm amplifies rounding a thousandfold where it has one or two channels.
FLOAT64_CAP = 1e-8


def gradients_of(operation: str, arguments: dict, **options) -> dict:
    return backward.gradients(operation, arguments, direction(operation, arguments), **options)


def assert_right(operation: str, arguments: dict, isas: Iterable[str], **options) -> None:
    """Against the reference in float64; by the portable kernels in float64 where a width is too small for float32."""
    exact = Exact(operation, arguments)
    wide = arguments["cond_kv"].shape[-1] >= LEAST_WIDTH
    if not wide:
        exact.errors(gradients_of(operation, driver.cast(arguments, torch.float64), **options), FLOAT64_CAP)
    for _ in isas:
        found = gradients_of(operation, arguments, **options)
        assert all(value.isfinite().all() for value in found.values())
        if wide:
            exact.errors(found)


SMALL = [{"tokens": 1}, {"keys": 1}, {"samples": 1}, {"tokens": 1, "keys": 1, "samples": 1}, {"largest_width": 1}]
SMALL += [{"tokens": 1, "keys": 1, "samples": 1, "largest_width": 1}]


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_smallest_sizes(operation, sizes, each_isa):
    for seed in range(10):
        arguments = cases.CASES[operation](seed, scale=1.0, **sizes)
        assert_right(operation, {**arguments, "token_mask": None, "key_mask": None}, each_isa(), offset=seed)


@pytest.mark.parametrize("sizes", [{"channels": 1}, {"layers": 1}, {"steps": 1}, {"channels": 1, "steps": 1}], ids=str)
def test_smallest_chains(sizes, each_isa):
    for seed in range(10):
        arguments = cases.reverse_loop_case(seed, largest_width=16, **sizes)
        if driver.real_tokens(arguments).any():
            assert_right("reverse_loop", arguments, each_isa())


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize(("tokens", "keys"), [(300, 300), (300, 1), (1, 300), (257, 129)])
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_long_sequences(operation, tokens, keys, threads, each_isa):
    limits = {"reverse_loop": {"layers": 1, "steps": 2}, "denoiser": {"layers": 1}}.get(operation, {})
    arguments = cases.CASES[operation](3, largest_width=32, samples=2, tokens=tokens, keys=keys, **limits)
    arguments["token_mask"] = None
    assert_right(operation, arguments, each_isa(), threads=threads)


def test_many_steps_and_layers(each_isa):
    arguments = cases.reverse_loop_case(1, largest_width=8, steps=50, layers=6, samples=2, scale=0.3)
    assert_right("reverse_loop", arguments, each_isa())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_an_empty_batch_and_no_token_at_all_have_gradients_of_zero(operation, threads, isa):
    whole = cases.CASES[operation](2, largest_width=16, samples=3, tokens=4)
    no_token = dict(whole, x=whole["x"][:, :0], token_mask=None)
    if "position" in whole:
        no_token["position"] = whole["position"][:0]
    for arguments in (cases.take(whole, []), no_token):
        for kept in (True, False):
            found = gradients_of(operation, arguments, threads=threads, kept=kept)
            assert all(backward.is_positive_zero(value) for value in found.values())
            assert found["['x']"].shape == arguments["x"].shape


def test_no_chain(isa):
    driver.CORE.reverse_loop_backward([], 1)
    driver.CORE.reverse_loop_backward((), 4)


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_samples_without_any_token_have_no_part_in_it(operation, isa):
    arguments = cases.CASES[operation](5, largest_width=16, samples=4, tokens=6)
    arguments["token_mask"] = torch.tensor([[False], [True], [False], [True]]).expand(4, 6).contiguous()
    out_gradient = direction(operation, arguments)
    found = backward.gradients(operation, arguments, out_gradient, threads=2)
    others = backward.gradients(operation, cases.take(arguments, [1, 3]), out_gradient[[1, 3]])
    for name, value in found.items():
        axis = cases.SAMPLE_AXIS.get(name[2:-2])
        if axis is None and value.shape != others[name].shape:  # a row of modulation for each sample
            axis = 0
        if axis is not None:
            value = value.movedim(axis, 0)
            assert backward.is_positive_zero(value[[0, 2]].contiguous()), name
            value = value[[1, 3]].movedim(0, axis)
        assert driver.same_bits(value.contiguous(), others[name]), name
    arguments["token_mask"] = torch.zeros(4, 6, dtype=torch.bool)
    assert all(backward.is_positive_zero(value) for value in gradients_of(operation, arguments).values())


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_samples_without_any_key_attend_to_nothing(operation, each_isa):
    arguments = cases.CASES[operation](16, largest_width=32, samples=3, tokens=5, keys=4, scale=1.0)
    arguments["token_mask"] = None
    for rows in ([[False] * 4, [True, False, True, False], [False] * 4], [[False] * 4] * 3):
        arguments["key_mask"] = torch.tensor(rows)
        assert_right(operation, arguments, each_isa())
        for _ in each_isa():
            found = gradients_of(operation, arguments)["['cond_kv']"]
            assert bool(found.any()) == bool(arguments["key_mask"].any())


@pytest.mark.parametrize("operation", backward.OPERATIONS)
def test_a_single_key_takes_no_gradient_of_its_score(operation, each_isa):
    """Softmax over one key is 1, whatever its score: the gradient of K, and of the queries, is 0 but for rounding."""
    for arguments in problems(operation, 6, samples=3, tokens=5, keys=4, scale=1.0):
        arguments.update(token_mask=None, key_mask=torch.eye(4, dtype=torch.bool)[:3])
        assert_right(operation, arguments, each_isa())
        for _ in each_isa():
            found = gradients_of(operation, arguments)
            of_keys, of_values = found["['cond_kv']"].movedim(-4, 0)
            largest = max(float(value.abs().max()) for value in found.values())
            assert of_values.abs().max() > 1e3 * ZERO_CAP * largest and of_keys.abs().max() <= ZERO_CAP * largest
            queries = [value for name, value in found.items() if name.endswith((".q_weight", ".q_bias"))]
            assert queries and all(value.abs().max() <= ZERO_CAP * largest for value in queries)


def test_one_step_has_no_noise(isa):
    arguments = cases.reverse_loop_case(8, steps=1, largest_width=16)
    other = {**arguments, "noise": NoiseKey(5, torch.zeros_like(arguments["noise"].sample_ids), 3)}
    assert backward.same_bits(gradients_of("reverse_loop", arguments), gradients_of("reverse_loop", other))


def test_a_forward_that_keeps_nothing_of_no_step(isa):
    """Arrays of zero steps are as good as none."""
    arguments = cases.reverse_loop_case(9, steps=2, largest_width=16)
    packed = driver.pack(arguments["weights"], arguments["num_heads"])
    states, tape = backward.kept_by_forward(arguments, packed, 0, kept=True, threads=1)
    assert states.size == tape.size == 0


def test_states_are_what_each_step_starts_from(isa):
    """x_K is the first, and from each the rest of the chain ends in the same x_0."""
    arguments = cases.reverse_loop_case(10, steps=4, largest_width=32)
    packed, real = driver.pack(arguments["weights"], arguments["num_heads"]), driver.real_tokens(arguments)
    expected = driver.native("reverse_loop", arguments, packed=packed)
    for kept in (True, False):
        states, _ = backward.kept_by_forward(arguments, packed, 4, kept=kept, threads=2)
        states = torch.from_numpy(states.copy())
        assert driver.same_bits(states[-1][real], arguments["x"][real])
        for steps in range(1, 5):
            rest = dict(arguments, x=states[steps - 1], coefficients=arguments["coefficients"][:steps])
            rest["modulation"] = Modulation(*(table[:steps] for table in arguments["modulation"]))
            assert driver.same_bits(driver.native("reverse_loop", rest, packed=packed), expected), f"{steps} steps"
