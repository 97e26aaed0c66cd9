"""What nvcc makes of a CUDA source: registers, memory and instructions of each kernel, on each architecture."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.cuda_sim import building

# Spills are warnings of ptxas that -Werror does not reach, so the log is searched.
PTXAS = "-Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage"
_FIELDS = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spills": r"(\d+) bytes spill stores",
    "shared": r"(\d+) bytes smem",
    "barriers": r"used (\d+) barriers",
}


def architectures(root: Path) -> list[str]:
    """-gencode flags for what CMakeLists.txt builds."""
    text = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    names = re.search(r'set\(CMAKE_CUDA_ARCHITECTURES "([^"]*)"\)', text)[1].split(";")
    return [
        f"-gencode=arch=compute_{number},code={'sm' if kind == 'real' else 'compute'}_{number}"
        for number, _, kind in (name.partition("-") for name in names)
    ]


def compile_all(root: Path, source: Path) -> tuple[Path, str]:
    """The fat binary of a CUDA source for all architectures, warnings being errors, and ptxas's log."""
    includes = [f"-I{folder}" for folder in building.INCLUDES[:2]]
    command = [building.nvcc(), *building.NVCC_FLAGS, *architectures(root), PTXAS, *includes, "-fatbin", source]
    target = building.cached(f"{source.stem}.fatbin", command, [source])
    log = building.produce(target, command)
    if "warning" in log:
        raise building.CompileError(f"{source.name}: {log}")
    return target, log


def readable(mangled: str) -> str:
    """A kernel's name with its template arguments, without namespaces and parameters."""
    filter_program = shutil.which("c++filt")
    if filter_program is None:
        pytest.fail("c++filt was not found, so kernels have no names. Install binutils.", pytrace=False)
    name = subprocess.run([filter_program, mangled], capture_output=True, text=True, check=True, timeout=60).stdout
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|\brohydr::|^void ", "", name.strip())
    return re.sub(r"\(.*\)$", "", name) if ">" not in name else name[: name.rindex(">") + 1]


def usage(log: str) -> dict[str, dict[str, dict[str, int]]]:
    """kernel -> architecture -> resources, from ptxas's log."""
    found = defaultdict(dict)
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        name, architecture = re.match(r"Compiling entry function '(\w+)' for '(\w+)'", part).groups()
        values = {field: re.search(pattern, part) for field, pattern in _FIELDS.items()}
        found[readable(name)][architecture] = {field: int(match[1]) if match else 0 for field, match in values.items()}
    return dict(found)


def instructions(binary: Path) -> dict[str, dict[str, Counter]]:
    """kernel -> architecture -> how often each machine instruction occurs, by its first word."""
    found: dict = defaultdict(lambda: defaultdict(Counter))
    architecture = kernel = ""
    for line in _cuobjdump("-sass", binary).splitlines():
        if match := re.search(r"code for (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            kernel = readable(match[1])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", line):
            found[kernel][architecture][match[1]] += 1
    return {name: dict(counts) for name, counts in found.items()}


def ptx_versions(binary: Path) -> list[str]:
    """The virtual architectures whose PTX a fat binary holds."""
    return re.findall(r"\.(\w+)\.ptx", _cuobjdump("-lptx", binary))


def _cuobjdump(option: str, binary: Path) -> str:
    folders = [Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin", Path("/usr/local/cuda/bin")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    programs = {name: shutil.which(name, path=path) for name in ("cuobjdump", "nvdisasm")}
    if None in programs.values():
        missing = " and ".join(name for name, place in programs.items() if place is None)
        remedy = 'Run: pip install -e ".[test]"'
        pytest.fail(f"{missing} not found, so no machine code can be read. {remedy}", pytrace=False)
    command = [programs["cuobjdump"], option, str(binary)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout
