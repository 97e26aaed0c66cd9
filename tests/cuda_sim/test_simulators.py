"""What CUDA C++ promises, checked in the simulator and in the interpreter; what it forbids, refused by both."""

import functools
import re

import numpy as np
import pytest

from . import building, numbers
from .cases import KERNELS
from .ptx.errors import PtxError
from .ptx.module import Module
from .simulation import ORDERS, Simulation, SimulationError

SOURCE = KERNELS / "probes.cu"
LANES = np.arange(64) % 32
FIRST = np.arange(64) - LANES


@functools.cache
def simulated() -> Simulation:
    return Simulation(building.simulator_module([SOURCE]))


@functools.cache
def interpreted() -> Module:
    return Module(building.ptx_of(SOURCE))


def both(name: str, inputs: np.ndarray, shape, dtype, *, block=64, shared_bytes=0) -> np.ndarray:
    """The output of a probe, with the same bits from both simulators and in any order."""
    inputs = numbers.read_only(inputs)
    outputs = []
    for order in ORDERS:
        outputs.append(numbers.poisoned(shape, dtype))
        with simulated().order(order):
            simulated().call(f"launch_{name}", inputs, outputs[-1])
    outputs.append(numbers.poisoned(shape, dtype))
    arguments = [inputs, outputs[-1]]
    interpreted().launch(f"{name}_kernel", grid=1, block=block, arguments=arguments, shared_bytes=shared_bytes)
    for output in outputs[1:]:
        assert output.tobytes() == outputs[0].tobytes()
    return outputs[0]


def words(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, 64, dtype=np.uint32)


def test_functions_of_a_warp():
    value = words(0)
    found = both("warp_functions", value, (14, 64), np.uint32)
    per_warp = value.reshape(2, 32)

    def shuffled(source, inside=True):
        return value[FIRST + np.where(inside, source, LANES)]

    segment8, segment16 = LANES & ~7, LANES & ~15
    weights = np.uint32(1) << np.arange(32, dtype=np.uint32)
    ballot = np.repeat(((per_warp % 3 == 0) * weights).sum(1).astype(np.uint32), 32)
    any_all = np.repeat((per_warp % 64 == 1).any(1) + 2 * (per_warp > 9).all(1), 32)
    reduced = np.repeat(per_warp.sum(1, dtype=np.uint32) ^ per_warp.max(1), 32)
    halves = np.where(LANES < 16, LANES ^ 1, np.minimum(LANES + 2, 99))
    expected = [
        shuffled(value % 32),
        shuffled(segment8 | 3),
        shuffled(LANES ^ 5),
        shuffled(LANES ^ 12, (LANES ^ 12) <= (LANES | 7)),
        shuffled(LANES - 3, LANES >= 3),
        shuffled(LANES - 3, LANES - 3 >= segment16),
        shuffled(LANES + 7, LANES + 7 < 32),
        shuffled(LANES + 7, LANES + 7 <= (LANES | 15)),
        ballot,
        any_all,
        reduced,
        np.full(64, (value % 5 == 0).sum()),
        np.full(64, (value % 7 == 0).any() + 2 * (value > 9).all()),
        shuffled(halves, halves < 32),
    ]
    for row, rule in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row, rule)


def test_the_portable_switch_of_fibers_gives_the_same_bits():
    module = Simulation(building.simulator_module([SOURCE], defines=("ROHYDR_SIM_UCONTEXT",)))
    value, found = words(0), [numbers.poisoned((14, 64), np.uint32) for _ in range(2)]
    module.call("launch_warp_functions", value, found[0])
    simulated().call("launch_warp_functions", value, found[1])
    assert found[0].tobytes() == found[1].tobytes()
    with pytest.raises(SimulationError, match="past the end of its 64"):
        module.call("launch_misdeeds", np.zeros(16, np.float32), 0, 16, 128)
    module.call("launch_warp_functions", value, found[0])


def test_functions_of_bits():
    a = words(1)
    b = a[::-1].copy()
    found = both("bit_functions", a, (8, 64), np.uint32)
    wide_a, wide_b = ([int(x) for x in array] for array in (a, b))

    def signed(x):
        return x - 2**32 if x >= 2**31 else x

    def per_thread(function):
        return np.array([function(x, y) % 2**32 for x, y in zip(wide_a, wide_b, strict=True)], np.uint32)

    def counts(x, y):
        both_set = x & y
        lowest = (both_set & -both_set).bit_length()
        return x.bit_count() + 64 * (32 - y.bit_length()) + 4096 * lowest

    def permuted(x, y):
        pair = (y << 32 | x).to_bytes(8, "little")
        return int.from_bytes(bytes(pair[i] for i in (2, 7, 1, 6)), "little")

    expected = [
        per_thread(lambda x, y: x * y >> 32),
        per_thread(lambda x, y: signed(x) * signed(y) >> 32),
        per_thread(counts),
        per_thread(lambda x, y: int(f"{x:032b}"[::-1], 2)),
        per_thread(permuted),
        per_thread(lambda x, y: (y << 32 | x) >> (32 - y % 32)),
        per_thread(lambda x, y: (y << 32 | x) >> (x % 32)),
    ]
    for row, rule in zip(found, expected, strict=False):
        np.testing.assert_array_equal(row, rule)
    floats = [(array % np.uint32(0x7F000000)).view(np.float32) for array in (a, b)]
    low, high = (numbers.to_bf16(array).astype(np.uint32) for array in floats)
    np.testing.assert_array_equal(found[7], (low | high << 16) ^ numbers.to_tf32(floats[1]).view(np.uint32))


def test_approximations():
    x = np.concatenate([np.linspace(-9, 9, 60), [1e-40, -1e-40, np.inf, np.nan]]).astype(np.float32)
    found = both("approximations", x, (4, 64), np.float32).astype(np.float64)
    wide = np.where(np.abs(x) < 1e-38, np.copysign(0.0, x), x.astype(np.float64))
    with np.errstate(all="ignore"):
        exact = [np.exp2(wide), 1 / wide, np.tanh(wide)]
    for row, rule, error in zip(found, exact, (2.0**-23, 2.0**-23, 2.0**-11), strict=False):
        np.testing.assert_allclose(row[:60], rule[:60], rtol=error, atol=1e-39)
    np.testing.assert_array_equal(found[:2, 60:], [[1, 1, np.inf, np.nan], [np.inf, -np.inf, 0, np.nan]])
    assert np.abs(found[2, :60] - exact[2][:60]).max() > 2.0**-14  # as inaccurate as on a device


def test_matrices_lie_in_fragments_as_the_isa_says():
    tile = np.arange(256, dtype=np.uint16)
    found = both("matrices", tile, (384,), np.uint32, block=32, shared_bytes=512)
    matrices = tile.reshape(4, 8, 8)
    lane = np.arange(32)

    def fragment(matrix):
        return matrix[lane // 4, 2 * (lane % 4)] | matrix[lane // 4, 2 * (lane % 4) + 1].astype(np.uint32) << 16

    straight, turned = ([fragment(m) for m in kind] for kind in (matrices, matrices.transpose(0, 2, 1)))
    np.testing.assert_array_equal(found, np.concatenate([*straight, *turned, *straight[:2], *turned[:2]]))


@pytest.mark.parametrize("threads", [32, 40])
def test_atomics_add_up(threads):
    numbers_of = np.arange(3 * threads)
    expected = [int(numbers_of[i::3].sum()) for i in range(3)] + [3 * threads - 1]
    for order in ORDERS:
        counters = np.zeros(4, np.int32)
        with simulated().order(order):
            simulated().call("launch_atomics", counters, 3, threads)
        assert counters.tolist() == expected
    counters = np.zeros(4, np.int32)
    interpreted().launch("atomics_kernel", grid=3, block=threads, arguments=[counters])
    assert counters.tolist() == expected


OUTSIDE = "thread (5, 1, 0): an access to"
REFUSED = [  # what, the simulator's words, the interpreter's
    (0, f"{OUTSIDE} device allocation 0, 0 bytes past the end of its 64", "1 threads are out of bounds"),
    (1, "device allocation 0: a store 68 bytes before its 64", "1 threads are out of bounds"),
    (2, f"{OUTSIDE} shared memory 0 bytes past the end of its 128", "1 threads are outside of shared memory"),
    (3, f"{OUTSIDE} shared memory 64 bytes past the end of its 128", "1 threads are outside of shared memory"),
    (5, "it reads lane 21, which took no part", "1 threads read a lane that is not here"),
    (6, "cp.async at probes.cu:", "not aligned to 16 bytes"),
    (7, "block (1, 0, 0), thread (5, 1, 0): __trap() was called", "trap was executed"),
    (8, "divergent warp: lane", "read a lane that is not here"),
]


@pytest.mark.parametrize(("what", "said", "interpreter_said"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_misdeeds_are_refused_by_both(what, said, interpreter_said):
    data = np.zeros(16, np.float32)
    with pytest.raises(SimulationError) as simulator:
        simulated().call("launch_misdeeds", data, what, 16, 128)
    assert str(simulator.value).startswith("rohydr::misdeeds_kernel: ") and said in str(simulator.value)
    with pytest.raises(PtxError) as interpreter:
        interpreted().launch("misdeeds_kernel", grid=2, block=(16, 2), arguments=[what, data, 16], shared_bytes=128)
    assert interpreter_said in str(interpreter.value)


def test_a_deadlock_names_where_threads_wait():
    with pytest.raises(SimulationError) as deadlock:
        simulated().call("launch_misdeeds", np.zeros(16, np.float32), 4, 16, 128)
    places = r"thread \(0, 0, 0\) waits in __syncwarp at probes.cu:\d+; thread \(0, 1, 0\) waits in __syncthreads at"
    assert re.search(f"deadlock; {places}", str(deadlock.value))


def test_a_store_that_reaches_no_guard_is_found_after_the_launch():
    with pytest.raises(SimulationError) as simulator:
        simulated().call("launch_misdeeds", np.zeros(15, np.float32), 0, 15, 128)
    assert "device allocation 0: a store 0 bytes past the end of its 60" in str(simulator.value)


def test_the_simulator_works_on_after_a_failure():
    test_misdeeds_are_refused_by_both(*REFUSED[0])
    test_matrices_lie_in_fragments_as_the_isa_says()


@pytest.mark.parametrize(("shared_bytes", "error"), [(227 * 1024 + 1, 1), (128, 0), (227 * 1024, 0)])
def test_launches_beyond_the_limits_are_refused(shared_bytes, error):
    data = np.zeros(16, np.float32)
    if error == 0:
        simulated().call("launch_misdeeds", data, 99, 16, shared_bytes)
    else:
        with pytest.raises(SimulationError, match=f"refused with cudaError {error}"):
            simulated().call("launch_misdeeds", data, 99, 16, shared_bytes)
    with pytest.raises(SimulationError, match="refused with cudaError 9"):
        simulated().call("launch_atomics", np.zeros(4, np.int32), 1, 1025)
    with pytest.raises(SimulationError, match="refused with cudaError 9"):
        simulated().call("launch_atomics", np.zeros(4, np.int32), 0, 32)
