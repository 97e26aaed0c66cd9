"""Compiles CUDA sources without a GPU: for the simulator with g++, and to PTX and machine code with nvcc.

What is compiled lies in the temporary folder, by the content of everything that it depends on.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KERNELS = ROOT / "csrc" / "cuda"
INCLUDES = [KERNELS, ROOT / "csrc" / "include", HERE]
CXX = "g++"  # the simulator uses its extensions
SIMULATOR_FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-ffp-contract=off", "-DROHYDR_CUDA_SIM"]
SIMULATOR_FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Every module has a simulator of its own: none of its variables may become one with another module's.
SIMULATOR_FLAGS += ["-fno-gnu-unique", "-Wl,-Bsymbolic"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-clobbered"]
NVCC_FLAGS = ["-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra"]


class CompileError(Exception):
    """A compiler refused a source; the message is what it said."""


@functools.cache
def nvcc() -> str:
    """The CUDA compiler. Without one the test fails, or is skipped where no CUDA part is wanted."""
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found and shutil.which(found):
        return found
    mode = os.environ.get("ROHYDR_FAST_BUILD")
    if mode in ("cpp", "none"):
        pytest.skip(f"nvcc was not found, and ROHYDR_FAST_BUILD={mode} wants no CUDA part")
    pytest.fail(
        "nvcc was found neither in CUDACXX nor in PATH nor in /usr/local/cuda/bin, so no CUDA kernel can be tested. "
        "Install the CUDA toolkit, or set ROHYDR_FAST_BUILD=cpp to test without CUDA.",
        pytrace=False,
    )


@functools.cache
def toolkit_includes() -> list[Path]:
    """The folders of NVIDIA's headers, as nvcc itself would search them."""
    command = [nvcc(), "--dryrun", "-c", "kernel.cu"]
    plan = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    line = re.search(r"INCLUDES=(.*)", plan)
    if line is None:
        pytest.fail(f"{nvcc()} --dryrun named no include folder. Its output was: {plan[:400]}", pytrace=False)
    return [Path(folder) for folder in re.findall(r'-I"?([^"\s]+)', line[1])]


def run(command: list) -> subprocess.CompletedProcess:
    """Run a compiler; its output is kept.

    Raises:
        CompileError: it failed.
    """
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} was not found, and CUDA kernels are tested with it. Install it.", pytrace=False)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(map(str, command[:2]))} failed:\n{done.stderr[-6000:]}")
    return done


def cached(name: str, command: list, sources: list[Path], extra_text: str = "") -> Path:
    """The folder for the product `name` of a command, filled by a caller who does not find it there."""
    digest = hashlib.sha256(repr([str(part) for part in command]).encode() + extra_text.encode())
    headers = [path for folder in INCLUDES for kind in ("*.h", "*.cuh") for path in folder.rglob(kind)]
    for path in sorted([*sources, *headers]):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"rohydr_fast_cuda_{os.getuid()}" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def produce(target: Path, command: list) -> str:
    """Run a command that ends in an output file, unless the target is there; returns what it wrote to stderr."""
    log = target.with_suffix(".log")
    if not (target.exists() and log.exists()):
        unfinished = target.with_suffix(f".{os.getpid()}")
        log.write_text(run([*command, "-o", unfinished]).stderr, encoding="utf-8")
        unfinished.rename(target)
    return log.read_text(encoding="utf-8")


def simulator_module(sources: list[Path], *, sanitize: bool = False, defines: tuple[str, ...] = ()) -> Path:
    """A shared object of CUDA sources (.cu) and their entries (.cpp), compiled for the simulator."""
    includes = [f"-I{folder}" for folder in INCLUDES] + [f"-isystem{folder}" for folder in toolkit_includes()]
    flags = [*SIMULATOR_FLAGS, *(SANITIZE if sanitize else []), *(f"-D{name}" for name in defines)]
    command = [CXX, *flags, *includes, "-x", "c++", *sources]
    target = cached(f"{sources[0].stem}.so", command, sources)
    produce(target, command)
    return target


def ptx_of(source: Path, *, architecture: str = "compute_80", flags: tuple[str, ...] = ()) -> str:
    """The PTX that nvcc makes of a CUDA source."""
    includes = [f"-I{folder}" for folder in INCLUDES]
    command = [nvcc(), *NVCC_FLAGS, *flags, f"-arch={architecture}", "-ptx", *includes, source]
    target = cached(f"{source.stem}.ptx", command, [source])
    produce(target, command)
    return target.read_text(encoding="utf-8")
