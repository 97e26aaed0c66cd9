"""csrc/benchmarks/kernel_parts.cpp is built when asked for: here, so that it keeps up with the kernels."""

from pathlib import Path

import pytest

from tests.kernels import compiling

ROOT = Path(__file__).parents[2]
pytestmark = compiling.needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("kernel_parts") / "kernel_parts"
    source = ROOT / "csrc" / "benchmarks" / "kernel_parts.cpp"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc' / 'include'}"]
    flags.append('-DRH_KERNELS="../cpu/kernels_portable.cpp"')
    done = compiling.run([compiling.COMPILER, *flags, source, "-o", target], timeout=600)
    assert done.returncode == 0, done.stderr
    return target


def test_every_part_of_every_size_has_a_time(program):
    done = compiling.run([program, 7, 5, 2], timeout=300)
    assert done.returncode == 0, done.stderr
    sizes = done.stdout.split("GFLOP/s\n")[1:]
    assert [name in done.stdout for name in ("narrow: W 32, 7 tokens, 5 keys", "paper", "wide")] == [True] * 3
    for size in sizes:
        lines = [line for line in size.splitlines() if line.startswith("  ")]
        assert len(lines) == 11
        assert all(" us" in line for line in lines)


def test_a_size_of_nothing_is_refused(program):
    done = compiling.run([program, 0], timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be 1 or more" in done.stderr
