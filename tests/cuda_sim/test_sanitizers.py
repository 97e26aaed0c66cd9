"""Kernels under AddressSanitizer and UndefinedBehaviorSanitizer: arrays of a thread, integers, shifts, alignment."""

import json
import os
import subprocess
import sys

import pytest

from . import building
from .cases import all_cases

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


def call(modules: dict) -> subprocess.CompletedProcess:
    """Run the module `sanitized` with the sanitizer's library loaded first, which Python itself does not have."""
    names = ("libasan.so", "libstdc++.so")
    libraries = [building.run([building.CXX, f"-print-file-name={name}"]).stdout.strip() for name in names]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": str(building.ROOT),
    }
    argument = json.dumps({name: str(path) for name, path in modules.items()})
    command = [sys.executable, "-m", "tests.cuda_sim.sanitized", argument]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=building.ROOT, timeout=200)


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
