"""Kernels without a GPU: against float64, in three thread orders, from the sources and from their PTX."""

import functools

import numpy as np
import pytest

from . import building
from .cases import all_cases
from .ptx.module import Module
from .simulation import ORDERS, Simulation

CASES = {case.name: case for case in all_cases()}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@functools.cache
def simulated(sources: tuple) -> Simulation:
    return Simulation(building.simulator_module(list(sources)))


@functools.cache
def interpreted(source) -> Module:
    return Module(building.ptx_of(source))


@each_case
def test_simulated_kernel_agrees_with_float64_in_any_thread_order(case):
    module = simulated(case.sources)
    outputs = []
    for order in ORDERS:
        with module.order(order, seed=7):
            outputs.append(case.simulate(module))
        assert not case.mistake(outputs[-1])
    assert all(output.tobytes() == outputs[0].tobytes() for output in outputs)


@each_case
def test_interpreted_ptx_gives_the_bits_of_the_simulator(case):
    output, _ = case.interpret(interpreted(case.sources[0]))
    assert not case.mistake(output)
    assert output.tobytes() == case.simulate(simulated(case.sources)).tobytes()


def test_instructions_are_counted_for_each_warp():
    case = CASES["bf16_matmul-100x136x72"]
    _, profile = case.interpret(interpreted(case.sources[0]))
    assert profile.warps == 6 * 4
    assert profile["mma"] == 3 * 2 * 8  # slices, halves of a slice, tiles
    assert profile["ldmatrix"] == 3 * 2 * 5
    assert profile["bar.sync"] == 3 * 2
    assert profile["cp.async.cg"] == 3 * 4  # 2 operands of 256 pieces for 128 threads
    assert 500 < profile.total() < 900


def test_conflicts_of_banks_are_counted(tmp_path):
    case = CASES["bf16_matmul-64x64x32"]
    _, profile = case.interpret(interpreted(case.sources[0]))
    # 1 slice: 5 ldmatrix.x4 of 4 passes in each of 2 steps for 4 warps, and 4 x 128 copies of 16 bytes in passes of 8.
    # The padding keeps ldmatrix free of conflicts; the two rows of 80 bytes that 8 copies fill share 4 banks.
    assert profile.traffic.extra_passes == 4 * 128 // 8
    assert profile.traffic.passes == 2 * 5 * 4 * 4 + 2 * 4 * 128 // 8
    assert profile.traffic.bytes == 2 * 64 * 32 * 2 + 64 * 64 * 4

    source = tmp_path / "unpadded.cu"
    padded = "constexpr int kPitch = kSlice + 8;"
    text = case.sources[0].read_text(encoding="utf-8")
    assert text.count(padded) == 1
    source.write_text(text.replace(padded, "constexpr int kPitch = kSlice;"), encoding="utf-8")
    output, profile = case.interpret(Module(building.ptx_of(source)))
    assert not case.mistake(output)
    # Rows of 64 bytes: 8 rows of a matrix lie in 2 groups of banks, so a pass becomes 4.
    assert profile.traffic.extra_passes == 3 * 2 * 5 * 4 * 4


def test_an_input_that_is_written_to_is_found():
    case = CASES["layer_norm-7x33"]
    x, scale, shift = case.inputs
    output = case.fresh()
    output.flags.writeable = False
    with pytest.raises(Exception, match="was written to"):
        simulated(case.sources).call(case.entry, x, scale, shift, output, *case.scalars)
    with pytest.raises(Exception, match="was written to"):
        interpreted(case.sources[0]).launch(
            case.kernel, grid=case.grid, block=case.block, arguments=[x, scale, shift, output, *case.scalars]
        )


def test_an_output_that_stays_unwritten_is_a_mistake():
    case = CASES["tf32_matmul-50x45x37"]
    output = case.simulate(simulated(case.sources))
    output[-1, -1] = np.nan
    assert case.mistake(output).startswith("1 wrong elements, the first at (49, 44)")
