"""The build: what the module exports, what a broken or absent one leads to, and refusals in one sentence."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rohydr_fast
from rohydr_fast import _native

BUILT, REASON = _native.status()
needs_core = pytest.mark.skipif(not BUILT, reason=REASON)
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")

DRAW = """
from rohydr_fast import _native
from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops import philox
print(_native.status()[1])
print(philox.bits(0, [0], stream=0, count=4).tolist())
try:
    philox.bits(0, [0], stream=0, count=4, backend="cpp")
except BackendUnavailable as error:
    print(error)
"""


def build(source: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def source(repo_root, tmp_path) -> Path:
    """A copy of what a build needs, with no outcome of an earlier build in it."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "MANIFEST.in"):
        shutil.copy2(repo_root / name, tmp_path / name)
    shutil.copytree(repo_root / "csrc", tmp_path / "csrc")
    unwanted = shutil.ignore_patterns("*.so", "build_info.json", "__pycache__")
    shutil.copytree(repo_root / "rohydr_fast", tmp_path / "rohydr_fast", ignore=unwanted)
    return tmp_path


def draw_in(source: Path) -> list[str]:
    """The reason that the copy gives for its core, the numbers it draws, and its refusal of backend="cpp"."""
    environment = {k: v for k, v in os.environ.items() if k != "ROHYDR_FAST_BACKEND"} | {"PYTHONPATH": str(source)}
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_core
@needs_nm
def test_the_module_neither_needs_nor_shows_torch():
    listing = subprocess.run(
        ["nm", "-D", "-C", _native.load().__file__], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "PyInit__C" in listing
    assert not re.findall(r".*\b(?:at|c10|torch|caffe2)::.*", listing)
    assert not re.findall(r".* [TDB] (?!PyInit__C).*", listing), "only the module's entry is exported"
    assert "cudart" not in listing and " U cuda" not in listing


@needs_core
def test_build_info_of_the_module_agrees_with_the_record():
    inside, recorded = _native.load().build_info(), _native.build_info()
    assert inside["version"] == rohydr_fast.__version__
    assert inside["interface"] == _native.INTERFACE
    assert {key: recorded[key] for key in ("compiler", "cuda", "cuda_version", "cuda_architectures")} == {
        key: inside[key] for key in ("compiler", "cuda", "cuda_version", "cuda_architectures")
    }
    assert recorded["cuda_reason"]


def test_setup_is_short_and_the_build_needs_no_torch(repo_root):
    assert len((repo_root / "setup.py").read_text(encoding="utf-8").splitlines()) < 150
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["build-system"]["requires"] == ["setuptools>=77", "pybind11>=3", "cmake>=3.26", "ninja"]
    assert project["tool"]["ruff"]["lint"]["ignore"] == []
    sources = [*(repo_root / "csrc").rglob("*.*"), repo_root / "CMakeLists.txt", repo_root / "setup.py"]
    assert not [path for path in sources if re.search(r"include\s*<(torch|ATen|c10)/|import torch", path.read_text())]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a shared library", "is not a shared library"),
        (b"", "is not a shared library"),
        (b"\x7fELF" + bytes(range(60)), "cannot be loaded here"),
        ("half", "is truncated"),
        (None, "the native core is not built"),
    ],
    ids=["foreign", "empty", "foreign-elf", "truncated", "missing"],
)
def test_a_broken_core_is_refused_with_its_reason_and_the_reference_serves(source, content, reason):
    if content == "half":
        if not BUILT:
            pytest.skip(REASON)
        whole = Path(_native.load().__file__).read_bytes()
        content = whole[: len(whole) // 2]
    if content is not None:
        suffix = _native.EXTENSION_SUFFIXES[0]
        (source / "rohydr_fast" / f"_C{suffix}").write_bytes(content)
    status, numbers, refusal = draw_in(source)
    assert reason in status and "pip install -e ." in status
    assert numbers == str([[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]])
    assert refusal.startswith("philox: backend must be usable, got 'cpp'") and reason in refusal


def test_a_core_of_another_python_is_named(source):
    (source / "rohydr_fast" / "_C.cpython-305-x86_64-linux-gnu.so").write_bytes(b"")
    status = draw_in(source)[0]
    assert "built for another Python (_C.cpython-305-x86_64-linux-gnu.so)" in status


@needs_core
def test_a_core_of_another_version_is_refused(source):
    shutil.copy2(_native.load().__file__, source / "rohydr_fast")
    init = source / "rohydr_fast" / "__init__.py"
    init.write_text(init.read_text(encoding="utf-8").replace(rohydr_fast.__version__, "99.0"), encoding="utf-8")
    assert f"built from version {rohydr_fast.__version__}" in draw_in(source)[0]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ROHYDR_FAST_BUILD": "wrong"}, "ROHYDR_FAST_BUILD must be one of auto, cpp, cuda, none, got 'wrong'"),
        ({"ROHYDR_FAST_BUILD": "cuda", "CUDACXX": "/nowhere/nvcc"}, "needs nvcc, but CUDACXX is /nowhere/nvcc"),
        ({"ROHYDR_FAST_BUILD": "cpp", "CXX": "/nowhere/c++"}, "C++ compiler /nowhere/c++ (from CXX) was not found"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(source, variables, sentence):
    done = build(source, "build_ext", "--inplace", **variables)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("rohydr_fast: ") and sentence in message and message.endswith(".")
    assert "Traceback" not in done.stderr
    assert not list(source.rglob("_C*.so"))


def test_a_missing_tool_is_named_with_its_remedy(source):
    tools = source / "bin"
    tools.mkdir()
    (tools / "c++").symlink_to("/bin/true")
    program = "import shutil, sys, setup"  # as in a Python whose folder holds no cmake and no ninja
    script = f"import sys; sys.executable = {str(tools / 'python')!r}; sys.argv = ['setup.py', 'build_ext']; {program}"
    environment = {**os.environ, "PATH": str(tools), "ROHYDR_FAST_BUILD": "cpp", "PYTHONPATH": str(source)}
    environment.pop("CXX", None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("rohydr_fast: cmake and ninja") and "pip install cmake ninja" in message


def test_none_makes_a_pure_python_package_that_says_so(source):
    (source / "rohydr_fast" / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"of an earlier build")
    done = build(source, "build", "--build-base", "out", ROHYDR_FAST_BUILD="none")
    assert done.returncode == 0, done.stderr
    package = source / "out" / "lib" / "rohydr_fast"
    assert (package / "ops" / "philox" / "reference.py").exists()
    assert not list(package.rglob("*.so"))
    status, numbers, _ = draw_in(package.parent)
    assert "ROHYDR_FAST_BUILD=none" in status
    assert numbers == str([[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]])
