"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and valgrind, without Python.

csrc/tests/test_cpu_kernels.cpp gives them buffers of exactly the size that they may touch. What is built stays in the
temporary folder until a source file changes.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from . import compiling

pytestmark = compiling.needs_compiler

# Of undefined behaviour, what these kernels could run into: integers, shifts, bounds, booleans. The checks of pointers
# are AddressSanitizer's already, and would double the time that compiling takes.
ADDRESS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
ADDRESS += ["-fno-sanitize=null,alignment,object-size,pointer-overflow"]
# Who waits for whom is the same on every instruction set: that of the longest compilation is left out.
THREAD = ["-O1", "-g1", "-fsanitize=thread"]
THREAD_WITHOUT = ("avx512",)


@functools.cache
def why_not(flag: str) -> str:
    """Why programs with this sanitizer cannot be made or run here; empty when they can."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "main.cpp", Path(folder) / "main"
        source.write_text("int main() { return 0; }\n")
        built = compiling.run([compiling.COMPILER, flag, source, "-o", program], timeout=60)
        if built.returncode != 0:
            return f"{compiling.COMPILER} cannot build with {flag}"
        started = compiling.run([program], timeout=60)
        return "" if started.returncode == 0 else f"programs with {flag} do not start here: {started.stderr[:200]}"


def run_clean(root: Path, flags: list[str], *arguments: str, without: tuple[str, ...] = ()) -> str:
    sanitizer = next(flag for flag in flags if flag.startswith("-fsanitize="))
    if why_not(sanitizer):
        pytest.skip(why_not(sanitizer))
    program = compiling.build_program(root, "test_cpu_kernels", flags, without)
    environment = {name: value for name, value in os.environ.items() if name != "ROHYDR_FAST_CPU"}
    done = compiling.run([program, *arguments], env=environment, timeout=200)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[:4000]
    assert done.stderr == ""
    return done.stdout


def test_no_byte_is_touched_outside_of_any_buffer(repo_root):
    assert "all good" in run_clean(repo_root, ADDRESS, "400")


def test_memory_stays_whole_with_several_callers(repo_root):
    assert "all good" in run_clean(repo_root, ADDRESS, "--callers", "20")


def test_members_of_a_team_do_not_race(repo_root):
    assert "all good" in run_clean(repo_root, THREAD, "160", without=THREAD_WITHOUT)


def test_callers_do_not_race(repo_root):
    assert "all good" in run_clean(repo_root, THREAD, "--callers", "40", without=THREAD_WITHOUT)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_nothing_is_read_before_it_is_written(repo_root):
    """What sanitizers of g++ do not see; valgrind knows no AVX-512."""
    program = compiling.build_program(repo_root, "test_cpu_kernels", ["-O1", "-g1"], THREAD_WITHOUT)
    environment = {name: value for name, value in os.environ.items() if name != "ROHYDR_FAST_CPU"}
    suppressions = repo_root / "csrc" / "tests" / "valgrind.supp"
    command = ["valgrind", "--quiet", "--error-exitcode=9", f"--suppressions={suppressions}", program, "20"]
    done = compiling.run(command, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[:4000]
    assert "all good" in done.stdout
