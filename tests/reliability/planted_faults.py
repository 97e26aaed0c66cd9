"""Faults planted in the C++ kernels, one at a time: the tests of values, memory and threads must each find theirs.

A fault is one text of csrc replaced in a copy. What is built of it never touches the package.
python -m tests.reliability.planted_faults LIBRARY ISA CASES SEED runs the cases of `kernel_cases` on such a library.
"""

import importlib.util
import os
import platform
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import compiling

ROOT = Path(__file__).parents[2]
ISA = "avx2" if platform.machine() in ("x86_64", "AMD64") else "portable"
CASES = {"values": 1500, "memory": 300, "threads": 160}
FOUND, CLEAN = 3, 0  # exit codes of a run on a library
# Compiling is what takes the time: without optimisation it is a tenth of it. A race needs the speed.
FLAGS = {
    "values": ["-O0"],
    "memory": ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "threads": ["-O1", "-g1", "-fsanitize=thread"],
}
FLAGS["memory"].append("-fno-sanitize=null,alignment,object-size,pointer-overflow")


@dataclass(frozen=True)
class Fault:
    """`right`, which stands once in csrc/cpu/`file`, becomes `wrong`; `lane` must notice."""

    lane: str
    file: str
    right: str
    wrong: str

    def plant(self, root: Path) -> None:
        path = root / "csrc" / "cpu" / self.file
        text = path.read_text(encoding="utf-8")
        assert text.count(self.right) == 1, f"{self.file} holds {text.count(self.right)} times {self.right!r}"
        path.write_text(text.replace(self.right, self.wrong), encoding="utf-8")

    @property
    def unit(self) -> str:
        """The name of the translation unit that it changes; a header's is the kernels'."""
        return Path(self.file).stem if self.file.endswith(".cpp") else f"kernels_{_isa_of(self.lane)}"


def _values(file: str, right: str, wrong: str) -> Fault:
    return Fault("values", file, right, wrong)


def _memory(file: str, right: str, wrong: str) -> Fault:
    return Fault("memory", file, right, wrong)


FAULTS = [
    _values("kernels/gemm.h", "bias == nullptr ? Vector<T, N>{} : load<T, N>(bias + v * N)", "Vector<T, N>{}"),
    _values("kernels/gemm.h", "multiply_add<T, N>(load<T, N>(gate + column), value, ", "(value + "),
    _values("kernels/gemm.h", "position + token[row] * position_stride", "position + row * position_stride"),
    _values("kernels/attention.h", "for (Index d = 1; d < (D ? D : depth)", "for (Index d = 2; d < (D ? D : depth)"),
    _values("kernels/attention.h", "for (; j < kv.count; ++j) {", "for (; j + 1 < kv.count; ++j) {"),
    _values("kernels/attention.h", "kv.count > 0 ? T(1) / sum : sum", "T(1) / sum"),
    _values("kernels/attention.h", "if (__builtin_expect(hits == 0, 1)) {", "if (true) {"),
    _values("kernels/few_queries.h", "kv.count > 0 ? 1 / sum[r * kSideHeads + h] : 0", "1 / sum[r * kSideHeads + h]"),
    _values("kernels/few_queries.h", "r * kNext + (group + g) * kTogether", "r * kNext + g * kTogether"),
    _values("kernels/key_blocks.h", "sum[i % V] = sum[i % V] + weight;", "sum[i % V] = sum[0] + weight;"),
    _values(
        "kernels/rows.h", "(load<T, N>(row + i * N) - mean[r]) * inverse[r]", "load<T, N>(row + i * N) * inverse[r]"
    ),
    _values(
        "kernels/attention.h", "within && (lanes_at_most<T, N>(bound, T(kScoreLimit)) & inside) == inside", "within"
    ),
    _values("kernels/attention.h", "size > most[v] ? size : most[v]", "most[v]"),
    _values("kernels/rows.h", "share + T(kLayerNormEpsilon)", "share + T(1e-3)"),
    _values(
        "kernels/rows.h",
        "(load<T, N>(x + place[r] + whole) - mean[r]) * inside",
        "load<T, N>(x + place[r] + whole) - mean[r]",
    ),
    _values("kernels/loop.h", "kHalfLog2e * 0.5 * (c[2] - c[3])", "kHalfLog2e * 0.5 * (c[3] - c[2])"),
    _values("kernels/loop.h", "static_cast<std::uint32_t>(step)", "static_cast<std::uint32_t>(step - 1)"),
    _values("kernels/denoiser.h", "{keys, keys + denoiser.width, m.qkv_stride", "{keys, keys, m.qkv_stride"),
    _values("kernels/denoiser.h", "cross_keys(layer, i), tape.cross_q", "cross_keys(0, i), tape.cross_q"),
    _values("kernels/backward.h", "mean_product[r] * share", "mean_product[r]"),
    _values("kernels/backward.h", "T(1) - sigmoid", "T(1) + sigmoid"),
    _values("kernels/backward.h", "load<T, N>(sums + c + v * N) + sum[v]", "sum[v]"),
    _values("kernels/backward.h", "load<T, N>(branch + place + v * N)", "load<T, N>(branch + place)"),
    _values("kernels/attention_backward.h", "slope[j] = slope[j] - dot;", ";"),
    _values("kernels/few_gradients.h", "r < lanes && i < kStep", "i < kStep"),
    _values("kernels/few_gradients.h", "few_values<D, R>(slopes, to_keys, ", "few_values<D, R>(slopes, kv, "),
    _values("kernels/key_value_gradients.h", "of_value + load<float, N>(v_gradient + place)", "of_value"),
    _values("kernels/loop_backward.h", "* sigma * change", "* change"),
    _values("packing.cpp", "if (std::memcmp(kept, array.data, bytes) != 0) return false;", "kept += 0 * bytes;"),
    _values(
        "packing.cpp", "queries - column); ++c) line[c] *= scale;", "queries - column - 1); ++c) line[c] *= scale;"
    ),
    _values("packing.cpp", "std::copy_n(w + k * depth + column, real, line)", "std::copy_n(w + k * depth, real, line)"),
    _values("kernels/weights.h", "row < whole_rows ? whole_columns : 0", "whole_columns"),
    _memory("kernels/denoiser.h", "c < columns; ++c) to[c] = rows[", "c <= columns; ++c) to[c] = rows["),
    _memory("kernels/denoiser.h", "c < columns; ++c) to[c] = from[c]", "c <= columns; ++c) to[c] = from[c]"),
    _memory(
        "kernels/attention.h",
        "for (int j = 0; j < Count; ++j) key[j] = kv.keys + kv.index[first + j]",
        "for (int j = 0; j < Count; ++j) key[j] = kv.keys + kv.index[first + j + 1]",
    ),
    _memory("plan.cpp", "t < batch.tokens; ++t", "t <= batch.tokens; ++t"),
    _memory("packing.cpp", "std::memcmp(kept, array.data, bytes)", "std::memcmp(kept, array.data, bytes + 8)"),
    _memory(
        "packing.cpp",
        "return round_up(columns, lanes_) * depth + lines(columns);",
        "return round_up(columns, lanes_) * depth;",
    ),
    _memory("kernels/weights.h", "const Index whole = count / N * N;", "const Index whole = count / N * N + N;"),
    Fault("threads", "kernels/denoiser.h", "m.qkv[meetings++ % 2]", "m.qkv[0 * meetings++]"),
]


def _isa_of(lane: str) -> str:
    return ISA if lane == "values" else "portable"


def _others(lane: str) -> tuple[str, ...]:
    """Instruction sets that a lane's program is built without."""
    return () if lane == "values" else ("avx2", "avx512", "neon")


def why_not() -> str:
    """Why nothing can be built here; empty when it can."""
    if compiling.COMPILER is None:
        return "no C++ compiler: neither CXX nor g++ nor c++"
    return "" if compiling.built_objects(ROOT) else "no finished build of the native core in this checkout"


def _clean_objects(lane: str) -> dict[str, Path]:
    """Without a fault: what the one changed object is linked with."""
    if lane == "values":
        return {f"{place.parent.name}/{place.stem}": place for place in compiling.built_objects(ROOT).values()}
    flags = {path: [*own, *FLAGS[lane]] for path, own in compiling.flags_of_sources(ROOT, _others(lane)).items()}
    built = compiling.compile_objects(flags, compiling.cache_folder(ROOT, *FLAGS[lane], *_others(lane)))
    return {f"{source.parent.name}/{source.stem}.cpp": place for source, place in built.items()}


def build(fault: Fault | None, lane: str, folder: Path) -> Path:
    """The library, or the program of csrc/tests, with the fault in it; without one, compiled in the same way."""
    root = folder / "root"
    shutil.copytree(ROOT / "csrc", root / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", root)
    if fault is not None:
        fault.plant(root)
    unit = fault.unit if fault is not None else f"kernels_{_isa_of(lane)}"
    flags = compiling.flags_of_sources(root, _others(lane))
    source = next(path for path in flags if path.stem == unit)
    changed = compiling.compile_objects({source: [*flags[source], *FLAGS[lane], "-w"]}, folder)[source]
    objects = {**_clean_objects(lane), f"{source.parent.name}/{source.stem}.cpp": changed}
    if lane == "values":
        target = folder / "_C.so"
        command = [compiling.COMPILER, "-shared", *objects.values(), "-o", target, "-pthread"]
    else:
        target = folder / "test_cpu_kernels"
        program = ROOT / "csrc" / "tests" / "test_cpu_kernels.cpp"
        command = [compiling.COMPILER, *flags[source], *FLAGS[lane], "-w", program, *objects.values()]
        command += ["-o", target, "-pthread"]
    done = compiling.run(command, timeout=900)
    assert done.returncode == 0, done.stderr
    absent = _absent(target) if lane == "values" else []
    if absent:
        stubs = folder / "stubs.c"
        stubs.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in absent))
        done = compiling.run([*command, "-x", "c", stubs], timeout=900)
        assert done.returncode == 0, done.stderr
    return target


def _absent(library: Path) -> list[str]:
    """Functions of ours that it lacks: bindings of a build with CUDA name nvcc's objects, which nothing here calls."""
    done = compiling.run(["nm", "--dynamic", "--undefined-only", library], timeout=60)
    assert done.returncode == 0, done.stderr
    return [line.split()[-1] for line in done.stdout.splitlines() if "6rohydr" in line]


def notices(lane: str, target: Path, seed: int) -> bool:
    """Whether the lane finds something wrong with what was built."""
    environment = {name: value for name, value in os.environ.items() if name != "ROHYDR_FAST_CPU"}
    if lane == "values":
        arguments = [sys.executable, "-m", "tests.reliability.planted_faults", target, ISA, CASES[lane], seed]
        done = compiling.run(arguments, cwd=ROOT, env=environment, timeout=900)
        assert done.returncode in (FOUND, CLEAN), f"exit code {done.returncode}: {done.stderr[-2000:]}"
        return done.returncode == FOUND
    done = compiling.run([target, CASES[lane]], env=environment, timeout=900)
    return done.returncode != 0


def run(count: int, seed: int) -> dict[str, int | str]:
    """Plants `count` of the faults, and none, which nobody may notice."""
    reason = why_not()
    if reason:
        return {"skipped": reason}
    chosen = random.Random(seed).sample(FAULTS, min(count, len(FAULTS)))
    counts = {}
    for lane in FLAGS:
        own: list[Fault | None] = [fault for fault in chosen if fault.lane == lane]
        if not own:
            continue
        for fault in [None, *own]:
            with tempfile.TemporaryDirectory() as folder:
                found = notices(lane, build(fault, lane, Path(folder)), seed)
            assert found == (fault is not None), (
                f"the tests of {lane} do not notice {fault}" if fault else f"{lane}: not clean"
            )
        counts[f"{lane} faults found"] = len(own)
    return counts


def main(library: str, isa: str, cases: int, seed: int) -> int:
    """`kernel_cases` on a library instead of the package's own."""
    spec = importlib.util.spec_from_file_location("rohydr_fast._C", library)
    sys.modules["rohydr_fast._C"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from tests.kernels import driver

    from . import kernel_cases

    driver.ISAS = [isa]
    try:
        kernel_cases.run(cases, seed)
    except AssertionError as failure:
        print(failure)
        return FOUND
    return CLEAN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
