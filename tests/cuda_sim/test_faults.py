"""Faults planted in working kernels: each must be found, in the simulator and in the PTX."""

import pytest

from . import building
from .cases import KERNELS, bf16_matmul, tf32_matmul
from .ptx.errors import PtxError
from .ptx.module import Module
from .simulation import ORDERS, Simulation, SimulationError

MATMUL = bf16_matmul(100, 136, 104)


def planted(tmp_path, name: str, right: str, wrong: str):
    """A copy of a kernel with one text replaced."""
    text = (KERNELS / name).read_text(encoding="utf-8")
    assert text.count(right) == 1
    source = tmp_path / name
    source.write_text(text.replace(right, wrong), encoding="utf-8")
    return source


def found_by_simulator(case, source) -> set[str]:
    """What three thread orders show: errors, and differences from float64."""
    module = Simulation(building.simulator_module([source]))
    found, outputs = set(), set()
    for order in ORDERS:
        with module.order(order, seed=3):
            try:
                output = case.simulate(module)
            except SimulationError as error:
                found.add(str(error))
                continue
        outputs.add(output.tobytes())
        found |= {case.mistake(output)} - {""}
    return found | ({"the bits depend on the order"} if len(outputs) > 1 else set())


def found_by_interpreter(case, source) -> str:
    try:
        output, _ = case.interpret(Module(building.ptx_of(source)))
    except PtxError as error:
        return str(error)
    return case.mistake(output)


@pytest.mark.parametrize(
    "barrier",
    [
        "    __syncthreads();  // the other threads' copies are there too\n",
        "    __syncthreads();  // nobody reads this buffer any more: the next round fills it\n",
    ],
    ids=["before-reading", "before-refilling"],
)
def test_a_missing_barrier(tmp_path, barrier):
    source = planted(tmp_path, "bf16_matmul.cu", barrier, "")
    assert any("wrong elements" in found for found in found_by_simulator(MATMUL, source))
    assert "a race, since another warp" in found_by_interpreter(MATMUL, source)


def test_a_divergent_barrier(tmp_path):
    right = "    __syncthreads();  // the other threads' copies are there too\n"
    source = planted(tmp_path, "bf16_matmul.cu", right, f"    if (warp < 2) {right.strip()}\n")
    for found in found_by_simulator(MATMUL, source):
        assert "divergent barrier: this thread waits at bf16_matmul.cu:" in found
    # There, the warps that do not wait are found first, when they read what others copy.
    assert "a race, since another warp" in found_by_interpreter(MATMUL, source)


def test_a_wait_for_too_few_copies(tmp_path):
    source = planted(tmp_path, "bf16_matmul.cu", "ptx::cp_async_wait<1>()", "ptx::cp_async_wait<2>()")
    assert all("wrong elements" in found and ": nan for" in found for found in found_by_simulator(MATMUL, source))
    assert ": nan for" in found_by_interpreter(MATMUL, source)


def test_a_store_out_of_bounds(tmp_path):
    source = planted(tmp_path, "bf16_matmul.cu", "if (row < m && column < n) c[", "if (column < n) c[")
    for found in found_by_simulator(MATMUL, source):
        assert "an access to device allocation 2, " in found and "bytes past the end of its 54400" in found
    assert "out of bounds" in found_by_interpreter(MATMUL, source)


def test_a_wrong_fragment_column(tmp_path):
    case = tf32_matmul(50, 45, 37)
    source = planted(tmp_path, "tf32_matmul.cu", "kPitchB + tile * 8 + group;", "kPitchB + tile * 8 + (group ^ 1);")
    assert all("wrong elements" in found for found in found_by_simulator(case, source))
    assert "wrong elements" in found_by_interpreter(case, source)
