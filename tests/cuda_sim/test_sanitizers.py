"""Kernels under AddressSanitizer and UndefinedBehaviorSanitizer: arrays of a thread, integers, shifts, alignment."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from . import building, denoiser_blocks, reverse_loops
from .cases import all_cases
from .test_denoiser_block import make as make_block
from .test_denoiser_block import out_gradient_of
from .test_reverse_loop import make

MISDEEDS = """
#include "device.cuh"
__global__ void misdeed(float* data, int what) {
  float kept[4] = {};
  const int place = what == 0 ? 4 : 3;
  kept[(place + static_cast<int>(threadIdx.x)) % 8] = 1.0f;
  if (what == 1) *reinterpret_cast<float4*>(data + 1) = float4{kept[0], kept[1], kept[2], kept[3]};
  data[0] = kept[what % 4];
}
extern "C" int launch_misdeed(float* data, std::int64_t what) {
  return ROHYDR_LAUNCH(misdeed, 1, 1, 0, nullptr, data, static_cast<int>(what));
}
"""


def under_sanitizers(*arguments: str) -> subprocess.CompletedProcess:
    """Run a module with the sanitizers' library loaded first, which Python itself does not have."""
    names = ("libasan.so", "libstdc++.so")
    libraries = [building.run([building.CXX, f"-print-file-name={name}"]).stdout.strip() for name in names]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": str(building.ROOT),
    }
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=building.ROOT, timeout=200)


def call(modules: dict) -> subprocess.CompletedProcess:
    """Run the module `sanitized`."""
    argument = json.dumps({name: str(path) for name, path in modules.items()})
    return under_sanitizers("tests.cuda_sim.sanitized", argument)


def test_no_kernel_does_what_a_sanitizer_forbids():
    cases = [case for case in all_cases() if case.name.startswith(("bf16_matmul", "philox"))]
    modules = {case.name: building.simulator_module(list(case.sources), sanitize=True) for case in cases}
    done = call(modules)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert done.stdout.startswith("all good: 2 kernels compiled for the CPU, 27 launches"), done.stdout
    assert done.stderr == ""


@pytest.fixture(scope="module")
def misdeeds(tmp_path_factory):
    source = tmp_path_factory.mktemp("misdeeds") / "misdeeds.cu"
    source.write_text(MISDEEDS, encoding="utf-8")
    return building.simulator_module([source], sanitize=True)


@pytest.mark.parametrize(("what", "said"), [(0, "index 4 out of bounds"), (1, "misaligned address")])
def test_the_sanitizers_see_what_they_are_for(misdeeds, what, said):
    done = call({f"misdeed {what}": misdeeds})
    assert done.returncode != 0
    assert "misdeeds.cu:" in done.stderr and said in done.stderr, done.stderr[:2000]


def test_the_sanitizers_are_silent_where_nothing_is_wrong(misdeeds):
    done = call({"misdeed 2": misdeeds})
    assert done.returncode == 0 and done.stderr == "", done.stderr[:2000]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_the_reverse_loop_under_the_sanitizers(bf16, tmp_path):
    case = make(1, (64, 8), bf16=bf16, tokens=37, keys=70, channels=5)
    arguments, outs = reverse_loops.arguments(case, bf16=bf16)
    np.savez(tmp_path / "call.npz", *arguments)
    module = building.simulator_module(reverse_loops.SOURCES, sanitize=True)
    done = under_sanitizers("tests.cuda_sim.sanitized_call", str(module), "reverse_loop", str(tmp_path / "call.npz"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "call.npz.outputs.npy")
    assert np.array_equal(found, reverse_loops.run(case, bf16=bf16)[0].numpy())


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_the_way_back_through_a_block_under_the_sanitizers(bf16, tmp_path):
    case = make_block(1, (64, 8), bf16=bf16, tokens=37, keys=70)
    arguments, _ = denoiser_blocks.arguments(case, out_gradient_of(case, bf16), bf16=bf16)
    np.savez(tmp_path / "call.npz", *arguments)
    module = building.simulator_module(denoiser_blocks.SOURCES, sanitize=True)
    done = under_sanitizers("tests.cuda_sim.sanitized_call", str(module), "denoiser_block", str(tmp_path / "call.npz"))
    assert done.returncode == 0, done.stderr[-3000:]
