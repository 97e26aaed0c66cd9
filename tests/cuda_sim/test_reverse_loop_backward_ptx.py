"""The PTX of the way back through the loop for sm_80 in the interpreter: no race, and the numbers of the simulator."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch

from . import building, reverse_loops
from .numbers import poisoned
from .ptx.module import Module, Struct
from .test_denoiser_block import out_gradient_of
from .test_denoiser_block_ptx import GRADIENT, SHARED_BYTES, condition_bytes
from .test_reverse_loop import make

LOOP = f"{GRADIENT}6QQQqq3I4xi4x"  # LoopGradientParameters, with its PhiloxRequest
CHUNKS = f"<{LOOP}{LOOP}i4x"  # LoopGradientChunks of csrc/cuda/reverse_loop_backward.cuh
JOB, JOBS_MAX = "4q5i4x", 48
JOBS = f"<{JOB * JOBS_MAX}i4xQQq3i4xqQ"  # WeightJobs of csrc/cuda/weight_gradients.cuh
SUM = "<Qq2iQQi4x"  # ModulationSum there
TYPES = {False: ("float32", "f", 4, 4), True: ("bfloat16", "13__nv_bfloat16", 2, 8)}
"""Source, mangled name, bytes of a number, and numbers between the rows of a tile in shared memory."""
TILE = 64  # kGradientTile
CASES = {
    # One sample of 15 rows, each next step in the other buffer of the weight gradients; two layers one after the other.
    "one-tile": (2, (32, 4), dict(samples=1, tokens=19, keys=10, channels=5, layers=2)),
    # 35 and 14 of 96 rows: pairs of tiles without rows, and three parts of weight gradients; more columns than a tile.
    "two-samples": (29, (32, 1), dict(samples=2, tokens=70, keys=21, channels=19, layers=1)),
}
"""Seed, width and heads, and sizes."""


class Call(NamedTuple):
    """A simulated call: its arguments, what it gave, and where the parts of its scratch memory start."""

    given: list
    simulated: dict[str, np.ndarray]
    places: list[int]

    @property
    def sizes(self) -> list[int]:
        """Samples, tokens, keys, channels, layers, hidden, steps."""
        return self.given[3:10]

    def part(self, number: int) -> np.ndarray:
        """A part of the scratch memory, a copy."""
        begin, end = self.places[number : number + 2]
        return self.given[24][begin:end].copy()

    @property
    def parts(self) -> int:
        """Of the weight gradients."""
        return self.places[13]

    @property
    def words(self) -> list[int]:
        """Of gradient_words.h."""
        return self.places[14:]


@functools.cache
def module(bf16: bool) -> Module:
    return Module(building.ptx_of(building.KERNELS / f"reverse_loop_backward_{TYPES[bf16][0]}.cu"))


def case_of(name: str, bf16: bool) -> dict:
    seed, network, sizes = CASES[name]
    tokens, keys = torch.arange(sizes["tokens"]), torch.arange(sizes["keys"])
    if sizes["samples"] == 1:
        token_mask, key_mask = (tokens % 5 != 1)[None], None
    else:
        token_mask, key_mask = torch.stack([tokens % 2 == 0, tokens % 5 == 0]), torch.stack([keys % 3 != 1, keys > 4])
    return make(seed, network, bf16=bf16, steps=2, **sizes) | {"token_mask": token_mask, "key_mask": key_mask}


def simulate(case: dict, bf16: bool) -> Call:
    _, states = reverse_loops.run_with_states(case, len(case["coefficients"]), bf16=bf16)
    given, simulated = reverse_loops.gradient_arguments(case, out_gradient_of(case, bf16), states, bf16=bf16)
    reverse_loops.simulation().call("reverse_loop_backward", *given)
    return Call(given, simulated, reverse_loops.backward_places(given[3:10], given[:3]))


def interpret(case: dict, call: Call, bf16: bool) -> dict[str, np.ndarray]:
    """All gradients, by chunks of one step as the host launches them: a chunk's way back makes the tape of the next."""
    width, heads, _, samples, tokens, keys, channels, layers, hidden, steps = call.given[:10]
    states, _, position, blocks, final, coefficients, token_mask = call.given[10:17]
    ids, seed, modality = call.given[21:24]
    weights, biases, transposed, condition, counts, numbers = [call.part(i) for i in range(6)]
    row_counts = poisoned(call.part(6).shape, np.uint8)
    memory = [[poisoned(call.part(i).shape, np.uint8) for i in (7, 8)] for _ in range(2)]  # tape and streams, twice
    rows = poisoned((samples * (9 * layers + 2) * width,), np.float32)
    x = reverse_loops.as_float(out_gradient_of(case, bf16)).copy()
    found = {"x": x, "cond_kv": np.zeros_like(call.simulated["cond_kv"])}
    found |= {name: poisoned(call.simulated[name].shape, np.float32) for name in ("blocks", "final", "weights")}

    def gradient(step: int) -> list:
        tape, streams = memory[step % 2]
        fields = [width, hidden, channels, layers, TYPES[bf16][2], heads, tokens, keys, *call.words]
        fields += [samples, 0, samples, int(step <= steps), token_mask, weights, transposed, condition, biases]
        return [*fields, counts, numbers, row_counts, tape, streams, rows, found["cond_kv"]]

    def loop(step: int) -> list:
        tables = [states, x, position, blocks, final, coefficients]
        return [*gradient(step), *tables, seed % 2**64, ids, samples, 0, modality, 0, 1, step]

    instance = f"I{TYPES[bf16][1]}Li{width}ELb0"
    for step in range(steps + 1):  # the first makes a tape alone
        back = samples if step > 0 else 0
        module(bf16).launch(
            f"reverse_loop_backward_kernel{instance}",
            grid=back + (samples if step < steps else 0),
            block=512,
            arguments=[Struct(CHUNKS, *loop(step), *loop(step + 1), back)],
            shared_bytes=call.words[SHARED_BYTES],
        )
        if step == 0:
            continue
        module(bf16).launch(
            f"condition_gradient_kernel{instance}",
            grid=(samples, layers, -(-heads * -(-keys // 16) // 8)),
            block=256,
            arguments=[Struct(f"<{GRADIENT}", *gradient(step))],
            shared_bytes=condition_bytes(call.words[10], width, heads, bf16),
        )
        add_weights(call, memory[step % 2][1], row_counts, found["weights"], step == 1, bf16)
        step_of = [found[name][step - 1 : step] for name in ("blocks", "final")]
        add_modulation(rows, samples, *step_of, True, bf16)
    return found


def jobs_of(sizes: list[int], width: int) -> list[list[int]]:
    """WeightJob of each matrix: in, six of each block, out; with `sizes` as `Call.sizes` has them."""
    _, _, _, channels, layers, hidden, _ = sizes
    depth, wide, columns = [-(-n // 16) * 16 for n in (channels, hidden, 16 * -(-channels // 8))]
    block = [
        (3 * width, width, 3 * width, width, 0),
        *[(width, width, width, width, 0)] * 3,
        (hidden, width, wide, width, 0),
        (width, hidden, width, wide, 0),
    ]
    last = (2 * channels, width, columns, width, channels)
    found, place, to = [], 0, 0
    for out, of, padded_out, padded_of, paired in [(width, channels, width, depth, 0), *block * layers, last]:
        found.append([place, place + padded_of, to, to + out * of, out, of, padded_out, padded_of, paired])
        place, to = place + padded_of + padded_out, to + (out * of + out)
    return found


def add_weights(
    call: Call, streams: np.ndarray, row_counts: np.ndarray, to: np.ndarray, first: bool, bf16: bool
) -> None:
    """Adds the gradients of all weights of one step, as one row, to `to`, which the first fills."""
    _, mangled, size, pad = TYPES[bf16]
    samples, tokens, *_ = call.sizes
    jobs = jobs_of(call.sizes, call.given[0])
    some = poisoned((call.parts, to.size), np.float32)
    rest = [0] * (9 * (JOBS_MAX - len(jobs)))
    facts = [samples, 1, -(-tokens // 32) * 32, call.parts, to.size, some]
    tiles = max(-(-job[6] // TILE) * -(-job[7] // TILE) for job in jobs)
    module(bf16).launch(
        f"weight_gradient_kernelI{mangled}",
        grid=(tiles, len(jobs), call.parts),
        block=128,
        arguments=[Struct(JOBS, *sum(jobs, []), *rest, len(jobs), streams, row_counts, *facts)],
        shared_bytes=4 * 32 * (TILE + pad) * size,
    )
    add_parts(some, to, first, bf16)


def add_parts(parts: np.ndarray, to: np.ndarray, first: bool, bf16: bool) -> None:
    """`to` (N) becomes the sum of the parts (P, N), or with `first` false has it added."""
    arguments = [parts, len(parts), to.size, int(first), to]
    module(bf16).launch("add_parts_kernel", grid=-(-to.size // 256), block=256, arguments=arguments)


def add_modulation(
    rows: np.ndarray, samples: int, blocks: np.ndarray, final: np.ndarray, first: bool, bf16: bool
) -> None:
    """Gradients of both tables become the sums of the samples' rows of each step, or with `first` false have them
    added."""
    numbers = [array.size // len(array) for array in (blocks, final)]
    module(bf16).launch(
        "modulation_sum_kernel",
        grid=(-(-sum(numbers) // 256), len(blocks)),
        block=256,
        arguments=[Struct(SUM, rows, samples, *numbers, blocks, final, int(first))],
    )


TYPE = pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])


@TYPE
@pytest.mark.parametrize("name", CASES)
def test_the_interpreter_finds_no_race_and_gives_what_the_simulator_gives(name, bf16):
    case = case_of(name, bf16)
    call = simulate(case, bf16)
    found = interpret(case, call, bf16)
    assert found.keys() == call.simulated.keys()
    for key, array in found.items():
        wanted = call.simulated[key]
        assert wanted.any(), key
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=2e-3 if bf16 else 2e-5, err_msg=key)


@TYPE
def test_later_groups_are_added_in_order(bf16):
    """Six parts and six samples: four of each in the unrolled part of the loop."""
    generator = np.random.default_rng(0)
    parts, weights, rows, blocks, final = [
        generator.standard_normal(shape, np.float32) for shape in [(6, 300), (300,), (2, 6, 352), (2, 288), (2, 64)]
    ]
    wanted_weights, wanted_rows = weights.copy(), np.concatenate([blocks, final], axis=1)
    for part in parts:
        wanted_weights += part
    for sample in range(6):
        wanted_rows += rows[:, sample]
    add_parts(parts, weights, False, bf16)
    add_modulation(rows, 6, blocks, final, False, bf16)
    np.testing.assert_array_equal(weights, wanted_weights)
    np.testing.assert_array_equal(np.concatenate([blocks, final], axis=1), wanted_rows)
