"""Object files: wide instructions stay where they were asked for.

The linker keeps one of several weak functions with the same name. Were it one that was compiled with AVX-512, a CPU
without it would meet it in a place that never asked for it.
"""

import platform
import re
import shutil
from pathlib import Path

import pytest

from . import compiling

X86 = platform.machine() in ("x86_64", "AMD64")
pytestmark = [
    pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed"),
    pytest.mark.skipif(not X86, reason=f"{platform.machine()} has one instruction set here: nothing could leak"),
]

WIDE = re.compile(r"_(avx2|avx512)$")
# VEX and EVEX encodings: registers wider than 16 bytes, masks, and the mnemonics of packed and scalar floats. No
# mnemonic of the base set begins with v but verr and verw.
WIDE_CODE = re.compile(r"%[yz]mm\d|%k[0-7]\b|\tv(?!err|erw)[a-z]\w*")


@pytest.fixture(scope="module")
def objects() -> dict[Path, Path]:
    """Of the package's build if it is at hand and made from these sources, else compiled here."""
    root = Path(__file__).resolve().parents[2]
    built = compiling.built_objects(root)
    if not built and compiling.COMPILER is None:
        pytest.skip("no build that belongs to these sources, and no compiler to make one")
    return built or compiling.compile_objects(compiling.flags_of_sources(root), compiling.cache_folder(root))


def output_of(*command) -> str:
    done = compiling.run(list(command), timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_with_wide_instructions_exports_one_strong_symbol(objects):
    wide = {source: path for source, path in objects.items() if WIDE.search(source.stem)}
    assert len(wide) == 4, sorted(wide)
    for source, path in wide.items():
        symbols = [line.split() for line in output_of("nm", "--defined-only", "--extern-only", path).splitlines()]
        assert [kind for _, kind, _ in symbols] == ["T"], f"{source.name}: {symbols}"
        assert source.stem in symbols[0][2]


def test_no_other_file_has_wide_instructions(objects):
    others = {source: path for source, path in objects.items() if not WIDE.search(source.stem)}
    assert {"kernels_portable", "normal_portable", "calls", "calls_backward", "packing", "plan", "thread_pool"} <= {
        s.stem for s in others
    }
    for source, path in others.items():
        code = output_of("objdump", "--disassemble", "--no-show-raw-insn", path)
        assert not WIDE_CODE.search(code), f"{source.name}: {WIDE_CODE.search(code)[0]}"


def test_the_search_finds_wide_instructions_where_they_are(objects):
    for source, path in objects.items():
        if WIDE.search(source.stem):
            assert WIDE_CODE.search(output_of("objdump", "--disassemble", "--no-show-raw-insn", path)), source.name
