"""Builds `rohydr_fast._C`: setuptools calls CMake and ninja, and CMakeLists.txt describes the build.

ROHYDR_FAST_BUILD chooses what is built. auto (default): C++ always, CUDA when nvcc is found. cpp: C++ only.
cuda: both, or an error without nvcc. none: pure Python, served by the reference backend.
ROHYDR_FAST_WERROR=1 makes warnings errors, for those who work on the sources.
Neither a network nor a GPU nor torch is needed. The outcome is written to rohydr_fast/build_info.json.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpp", "cuda", "none")
MODE = os.environ.get("ROHYDR_FAST_BUILD") or "auto"


def stop(sentence):
    raise SystemExit(f"rohydr_fast: {sentence}")


if MODE not in MODES:
    stop(f"ROHYDR_FAST_BUILD must be one of {', '.join(MODES)}, got {MODE!r}. Set it to one of them or unset it.")


def find_tool(name):
    """Look in PATH, then beside the interpreter: a virtual environment need not be activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def find_nvcc():
    """The CUDA compiler and how it was found, or (None, why not)."""
    named = os.environ.get("CUDACXX")
    if named:
        found = shutil.which(named)
        return found, f"CUDACXX is {named}" if found else f"CUDACXX is {named}, which is not a program"
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return found, f"nvcc is {found}" if found else "nvcc was found neither in PATH nor in /usr/local/cuda/bin"


def cuda_plan():
    """The CUDA compiler to use or None, and the reason."""
    if MODE == "cpp":
        return None, "ROHYDR_FAST_BUILD=cpp"
    nvcc, reason = find_nvcc()
    if MODE == "cuda" and nvcc is None:
        stop(f"ROHYDR_FAST_BUILD=cuda needs nvcc, but {reason}. Install the CUDA toolkit or set CUDACXX to its nvcc.")
    return nvcc, reason


def require_tools():
    """cmake and ninja, after checking that a C++ compiler and pybind11 are there too."""
    named = os.environ.get("CXX", "").split()
    if not any(shutil.which(name) for name in named[:1] or ["c++", "g++", "clang++"]):
        what = f"the C++ compiler {named[0]} (from CXX)" if named else "a C++ compiler"
        stop(f"{what} was not found. Install g++ or clang++ with C++20, or set ROHYDR_FAST_BUILD=none.")
    tools = {name: find_tool(name) for name in ("cmake", "ninja")}
    try:
        import pybind11

        tools["pybind11"] = pybind11.get_cmake_dir()
    except ImportError:
        tools["pybind11"] = None
    missing = [name for name, where in tools.items() if where is None]
    if missing:
        names = " and ".join(missing)
        stop(f"{names} not found. Run: pip install {' '.join(missing)}, or install with pip's build isolation.")
    return tools["cmake"], tools["ninja"], tools["pybind11"]


def write_build_info(package_dir, **facts):
    package_dir.mkdir(parents=True, exist_ok=True)
    info = {"requested": MODE, "python": platform.python_version(), **facts}
    (package_dir / "build_info.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n", encoding="utf-8")


class BuildPython(build_py):
    """Starts a wheel from an empty folder, so that files deleted from the checkout do not live on in it."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if MODE == "none":
            package_dir = ROOT / "rohydr_fast" if self.editable_mode else Path(self.build_lib) / "rohydr_fast"
            for stale in package_dir.glob("_C.*.so"):
                stale.unlink()
            write_build_info(package_dir, native=False, cuda=False, cuda_reason="ROHYDR_FAST_BUILD=none")


class BuildNative(build_ext):
    """Runs CMake in a build folder that stays, so that a second build compiles what changed only."""

    def build_extension(self, ext):
        nvcc, cuda_reason = cuda_plan()
        cmake, ninja, pybind11_dir = require_tools()
        kind = "cuda" if nvcc else "cpp"
        work = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{kind}"
        work.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        configure = [cmake, "-S", str(ROOT), "-B", str(work), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_dir}"]
        configure += [f"-DROHYDR_VERSION={self.distribution.get_version()}", f"-DROHYDR_CUDA={'ON' if nvcc else 'OFF'}"]
        configure += [f"-DROHYDR_WERROR={'ON' if os.environ.get('ROHYDR_FAST_WERROR') == '1' else 'OFF'}"]
        configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}"] if nvcc else []
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(work), "--parallel", jobs], check=True)
            subprocess.run([cmake, "--install", str(work), "--prefix", str(target)], check=True)
        except subprocess.CalledProcessError:
            way_out = "cpp builds without CUDA" if nvcc else "none installs without the native core"
            stop(f"the native build failed; its output above says why. Repair it, or ROHYDR_FAST_BUILD={way_out}.")
        toolchain = json.loads((work / "toolchain.json").read_text(encoding="utf-8"))
        write_build_info(target, native=True, cuda=nvcc is not None, cuda_reason=cuda_reason, **toolchain)

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        built = Path(self.get_ext_fullpath("rohydr_fast._C")).resolve().parent  # the checkout: inplace is set here
        info = Path(self.build_lib).resolve() / "rohydr_fast" / "build_info.json"
        shutil.copy2(info, built / info.name)


setup(
    ext_modules=[] if MODE == "none" else [Extension("rohydr_fast._C", sources=[])],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
)
