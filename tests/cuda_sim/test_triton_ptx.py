"""The interpreter runs what Triton emits, too: pipelined copies, shuffled shared memory, predicated vectors."""

import json
import os
import subprocess
import sys

import pytest

from . import building
from .cases import bf16_matmul
from .ptx.module import Module

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def program() -> dict:
    """Compiled in a process of its own: another test may have switched Triton to its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(building.ROOT)
    command = [sys.executable, "-m", "tests.cuda_sim.triton_program"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=building.ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", [(100, 136, 104), (64, 64, 32), (1, 7, 200)], ids=str)
def test_a_matrix_product_of_triton_agrees_with_float64(program, size):
    case = bf16_matmul(*size)
    output = case.fresh()
    profile = Module(program["ptx"]).launch(
        "matmul_kernel",
        grid=case.grid,
        block=128,
        shared_bytes=program["shared_bytes"],
        arguments=[*case.inputs, output, *size],
    )
    assert not case.mistake(output)
    assert profile["mma"] > 0 and profile["cp.async"] > 0 and profile["ldmatrix"] > 0
