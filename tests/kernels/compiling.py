"""Compiles csrc/cpu outside of CMake, with the flags that CMakeLists.txt gives each file."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: neither CXX nor g++ nor c++")
WIDE = {"x86_64": ["avx2", "avx512"], "AMD64": ["avx2", "avx512"], "aarch64": ["neon"], "arm64": ["neon"]}


def flags_of_sources(root: Path, without: tuple[str, ...] = ()) -> dict[Path, list[str]]:
    """Every source file of csrc/cpu that this machine's build has, and its flags; `without` these instruction sets."""
    text = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    isa_flags = {name: flags.split() for name, flags in re.findall(r'set\(isa_flags_(\w+) ?([^)"]*)', text)}
    isas = ["portable", *(isa for isa in WIDE.get(platform.machine(), []) if isa not in without)]
    common = ["-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    common += ["-Wall", "-Wextra", "-Werror"]
    common += [f"-I{root / 'csrc' / 'include'}", *(f"-DROHYDR_HAS_{isa.upper()}" for isa in isas)]
    folder = root / "csrc" / "cpu"
    flags = {}
    for path in sorted(folder.glob("*.cpp")):
        if not path.stem.startswith("kernels_"):
            flags[path] = [*common, *(["-ffp-contract=off"] if path.stem == "philox" else [])]
    for file in ("kernels_${isa}.cpp", "noise/normal_${isa}.cpp"):
        # Generator expressions are left out: they change the speed only.
        options = re.search(re.escape(file) + r'\s+PROPERTIES\s+COMPILE_OPTIONS "([^"$]*)', text)[1]
        for isa in isas:
            path = folder / file.replace("${isa}", isa)
            flags[path] = [*common, *options.strip(";").split(";"), *isa_flags[isa]]
    return flags


def run(command: list, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def cache_folder(root: Path, *key: str, tests: bool = False) -> Path:
    """A folder for what is built from the sources as they are now; it outlives the test run.

    Args:
        key: what else it depends on, such as flags.
        tests: from csrc/tests too, and not only from csrc/cpu and csrc/include.
    """
    digest = hashlib.sha256(repr((COMPILER, key, tests)).encode())
    parts = [root / "csrc" / name for name in ("cpu", "include", *(["tests"] if tests else []))]
    sources = [path for part in parts for kind in ("*.cpp", "*.h") for path in part.rglob(kind)]
    for path in sorted([root / "CMakeLists.txt", *sources]):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"rohydr_fast_kernels_{os.getuid()}" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def built_objects(root: Path) -> dict[Path, Path]:
    """The objects of the package's last build, by source; empty where they are not all there or older than a source.

    The bindings are one object, whose source is the file that CMake made to include them.
    """
    for library in root.glob("build/*/CMakeFiles/rohydr_cpu.dir"):
        core = {source: library / f"{source.relative_to(root)}.o" for source in flags_of_sources(root)}
        unity = (library.parent / "_C.dir" / "Unity").glob("*.cxx")
        bindings = {source: source.with_name(f"{source.name}.o") for source in unity}
        places = core | bindings
        if (
            bindings
            and all(map(Path.exists, places.values()))
            and _is_of_now(root, library.parents[1], places.values())
        ):
            return places
    return {}


def _is_of_now(root: Path, build: Path, objects: Iterable[Path]) -> bool:
    """Whether the objects are those of the sources as they are.

    Ninja knows what each was made from, but not once the environment is gone that pip built in. Then all sources must
    be older than all objects.
    """
    if shutil.which("ninja") and "no work to do" in run(["ninja", "-n", "-C", build], timeout=60).stdout:
        return True
    folders = [root / "csrc" / name for name in ("cpu", "include", "bindings")]
    sources = [path for folder in folders for kind in ("*.cpp", "*.h") for path in folder.rglob(kind)]
    newest = max(path.stat().st_mtime for path in [root / "CMakeLists.txt", *sources])
    return newest < min(path.stat().st_mtime for path in objects)


def compile_objects(flags: dict[Path, list[str]], folder: Path) -> dict[Path, Path]:
    """Objects of source files, by source; those that are there already are taken."""
    objects = {source: folder / f"{source.stem}.o" for source in flags}

    def compile_one(source: Path) -> None:
        unfinished = objects[source].with_suffix(f".{os.getpid()}")
        done = run([COMPILER, *flags[source], "-c", source, "-o", unfinished], timeout=900)
        assert done.returncode == 0, done.stderr
        unfinished.rename(objects[source])

    missing = [source for source, path in objects.items() if not path.exists()]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, missing))
    return objects


def build_program(root: Path, name: str, extra: list[str], without: tuple[str, ...] = ()) -> Path:
    """The program csrc/tests/<name>.cpp, linked with csrc/cpu but for the instruction sets `without`."""
    key = (*extra, *without)
    folder = cache_folder(root, *key, tests=True)
    program = folder / name
    if not program.exists():
        flags = {path: [*own, *extra] for path, own in flags_of_sources(root, without).items()}
        objects = compile_objects(flags, cache_folder(root, *key))
        source = root / "csrc" / "tests" / f"{name}.cpp"
        unfinished = folder / f"{name}.{os.getpid()}"
        command = [COMPILER, *next(iter(flags.values())), source, *objects.values(), "-o", unfinished, "-pthread"]
        done = run(command, timeout=900)
        assert done.returncode == 0, done.stderr
        unfinished.rename(program)
    return program
