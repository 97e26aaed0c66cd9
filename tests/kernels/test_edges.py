"""The smallest and largest shapes, empty batches, samples without tokens or keys, and the noise inside of a chain."""

import numpy as np
import pytest
import torch

from rohydr_fast.ops.philox import Stream
from rohydr_fast.ops.reverse_loop.reference import DenoiserWeights, NoiseKey

from . import cases, driver
from .test_accuracy import FLOOR_ULPS, check, error

pytestmark = driver.needs_core


def assert_right(operation: str, arguments: dict, **options) -> None:
    exact, real = driver.reference(operation, arguments), driver.real_tokens(arguments)
    result = driver.native(operation, arguments, **options)
    floor = FLOOR_ULPS * torch.finfo(torch.float32).eps
    check(operation, error(result, exact, real), floor, arguments, exact, driver.reference)


SMALL = [{"tokens": 1}, {"keys": 1}, {"samples": 1}, {"tokens": 1, "keys": 1, "samples": 1}, {"largest_width": 1}]
SMALL += [{"tokens": 1, "keys": 1, "samples": 1, "largest_width": 1}]


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize("operation", cases.CASES)
def test_smallest_sizes(operation, sizes, isa):
    for seed in range(20):
        arguments = cases.CASES[operation](seed, **sizes)
        arguments.update({name: None for name in ("token_mask", "key_mask") if name in arguments})
        assert_right(operation, arguments)


@pytest.mark.parametrize("sizes", [{"channels": 1}, {"layers": 1}, {"steps": 1}, {"channels": 1, "steps": 1}], ids=str)
def test_smallest_chains(sizes, isa):
    for seed in range(20):
        arguments = cases.reverse_loop_case(seed, largest_width=16, **sizes)
        if driver.real_tokens(arguments).any():
            assert_right("reverse_loop", arguments)


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize(("tokens", "keys"), [(300, 300), (300, 1), (1, 300), (257, 129)])
@pytest.mark.parametrize("operation", cases.CASES)
def test_long_sequences(operation, tokens, keys, threads, isa):
    limits = {"reverse_loop": {"layers": 1, "steps": 2}, "denoiser": {"layers": 1}}.get(operation, {})
    arguments = cases.CASES[operation](3, largest_width=32, samples=2, tokens=tokens, keys=keys, **limits)
    if not driver.real_tokens(arguments).any():
        arguments["token_mask"] = None
    assert_right(operation, arguments, threads=threads)


def test_many_steps_and_layers(isa):
    assert_right("reverse_loop", cases.reverse_loop_case(1, largest_width=8, steps=50, layers=6, samples=2, scale=0.3))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("operation", cases.CASES)
def test_an_empty_batch_and_no_token_at_all(operation, threads, isa):
    whole = cases.CASES[operation](2, largest_width=16, samples=3, tokens=4)
    assert driver.native(operation, cases.take(whole, []), threads=threads).shape[0] == 0
    no_token = dict(whole)
    for name in ("q", "x", "token_mask"):
        if no_token.get(name) is not None:
            no_token[name] = no_token[name][:, :0]
    if "position" in whole:
        no_token["position"] = whole["position"][:0]
    assert driver.native(operation, no_token, threads=threads).numel() == 0


def test_no_chain(isa):
    driver.CORE.reverse_loop([], 1)
    driver.CORE.reverse_loop((), 4)


@pytest.mark.parametrize("operation", ["reverse_loop", "denoiser", "denoiser_block"])
def test_samples_without_any_token_are_zero_and_leave_the_others_alone(operation, isa):
    arguments = cases.CASES[operation](5, largest_width=16, samples=4, tokens=6)
    arguments["token_mask"] = torch.tensor([[False], [True], [False], [True]]).expand(4, 6).contiguous()
    result = driver.native(operation, arguments, threads=2)
    assert not result[[0, 2]].any()
    assert driver.same_bits(result[[1, 3]], driver.native(operation, cases.take(arguments, [1, 3])))
    arguments["token_mask"] = torch.zeros(4, 6, dtype=torch.bool)
    assert not driver.native(operation, arguments).any()


@pytest.mark.parametrize("operation", cases.CASES)
def test_samples_without_any_key_attend_to_nothing(operation, isa):
    arguments = cases.CASES[operation](6, largest_width=16, samples=3, tokens=5, keys=4)
    arguments["key_mask"] = torch.tensor([[False] * 4, [True, False, True, False], [False] * 4])
    if "token_mask" in arguments:
        arguments["token_mask"] = None
    assert_right(operation, arguments)
    if operation == "cross_attention":
        result = driver.native(operation, arguments)
        assert not result[[0, 2]].view(torch.uint8).any() and result[1].all()


SEEDS = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
SAMPLE_IDS = [0, 1, 2**32 - 1, 2**32, 2**47, 2**48 - 1]


def chain_of_noise(samples: int, tokens: int, channels: int, steps: int, seed: int, modality: int, dtype) -> dict:
    """A chain without network: prediction and v are 0, so that x_(i-1) = c_x x_i + sigma z_i with sigma = 1 exactly."""
    draw, width = cases.Drawer(1), 3
    zero_out = torch.zeros(2 * channels, width), torch.zeros(2 * channels)
    weights = DenoiserWeights(*draw.linear(width, channels, 1.0), (draw.block(width, 5, 1.0),), *zero_out)
    arguments = cases.reverse_loop_case(0, samples=samples, tokens=tokens, channels=channels, steps=steps, layers=1)
    coefficients = torch.zeros(steps, 4)  # log beta = log btilde = 0
    coefficients[:, 0] = torch.tensor([1.0] + [0.0] * (steps - 1))  # the last step hands on what the one before made
    sizes = {"position": (tokens, width), "cond_kv": (1, 2, samples, 2, width)}
    tables = arguments["modulation"]._replace(
        blocks=draw.normal(steps, 1, 9, width), final=draw.normal(steps, 2, width)
    )
    arguments.update({name: draw.normal(*shape) for name, shape in sizes.items()}, weights=weights, modulation=tables)
    ids = torch.tensor((SAMPLE_IDS * samples)[:samples])
    arguments.update(coefficients=coefficients, num_heads=1, key_mask=None, token_mask=None)
    arguments["noise"] = NoiseKey(seed, ids, modality)
    return driver.cast(arguments, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [2, 3, 9])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 16, 33])
def test_noise_has_the_bits_of_philox(channels, steps, dtype, isa):
    """x_0 is the noise of step 2, wherever in the stream the runs of a mask begin."""
    tokens, samples = 11, 6
    for number, seed in enumerate(SEEDS):
        arguments = chain_of_noise(samples, tokens, channels, steps, seed, (0, 7, 255)[number % 3], dtype)
        noise = arguments["noise"]
        expected = np.empty((samples, tokens * channels), dtype=np.float32)
        driver.CORE.philox_normal(seed, noise.sample_ids.numpy(), noise.modality, 2, Stream.STEP, expected)
        expected = torch.from_numpy(expected).view(samples, tokens, channels).to(dtype)
        assert driver.same_bits(driver.native("reverse_loop", arguments, threads=1 + number % 3), expected)
        mask = torch.from_numpy(np.random.default_rng(number).random((samples, tokens)) < 0.6)
        masked = driver.native("reverse_loop", {**arguments, "token_mask": mask}, threads=1 + number % 3)
        assert driver.same_bits(masked, torch.where(mask[..., None], expected, torch.zeros((), dtype=dtype)))


def test_one_step_has_no_noise(isa):
    arguments = cases.reverse_loop_case(8, steps=1, largest_width=16)
    other = {**arguments, "noise": NoiseKey(5, torch.zeros_like(arguments["noise"].sample_ids), 3)}
    assert driver.same_bits(driver.native("reverse_loop", arguments), driver.native("reverse_loop", other))
