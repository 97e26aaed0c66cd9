"""The kernels of this folder and csrc/cuda with random inputs and what float64 says of the result. numpy only: the
sanitized modules are called in a process without torch."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import building, numbers
from .ptx.module import Struct

KERNELS = building.HERE / "kernels"


@dataclass(frozen=True)
class Case:
    """One call of one kernel.

    Attributes:
        sources: what is compiled; the first is the .cu file.
        entry, scalars: the entry of the simulated module, called with inputs, output, scalars.
        kernel, grid, block, shared_bytes: the launch of the PTX.
        parameters: (inputs, output) -> the arguments of that launch.
        inputs, shape, dtype: read-only arrays, and the output's.
        exact, bound: float64, and how far the output may be from it; arrays of the output's shape.
        decode: the output as float64.
    """

    name: str
    sources: tuple[Path, ...]
    entry: str
    scalars: tuple
    kernel: str
    grid: tuple
    block: int
    shared_bytes: int
    parameters: object
    inputs: tuple
    shape: tuple
    dtype: type
    exact: np.ndarray
    bound: np.ndarray
    decode: object = np.float64

    def fresh(self) -> np.ndarray:
        """An output that holds no number yet."""
        return numbers.poisoned(self.shape, self.dtype)

    def simulate(self, module) -> np.ndarray:
        """The output of the simulated kernel."""
        output = self.fresh()
        module.call(self.entry, *self.inputs, output, *self.scalars)
        return output

    def interpret(self, module):
        """The output of the interpreted kernel, and its profile."""
        output = self.fresh()
        arguments = self.parameters(self.inputs, output)
        profile = module.launch(
            self.kernel, grid=self.grid, block=self.block, shared_bytes=self.shared_bytes, arguments=arguments
        )
        return output, profile

    def mistake(self, output: np.ndarray) -> str:
        """Where an output is not what float64 says; empty when it is."""
        distance = np.abs(self.decode(output) - self.exact)
        wrong = ~(distance <= self.bound)  # NaN is wrong
        if not wrong.any():
            return ""
        first = np.unravel_index(np.argmax(wrong), wrong.shape)
        place = tuple(int(i) for i in first)
        return f"{int(wrong.sum())} wrong elements, the first at {place}: {output[first]} for {self.exact[first]}"


def _normal(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def layer_norm(rows: int, width: int) -> Case:
    rng = np.random.default_rng([1, rows, width])
    x = numbers.read_only(numbers.to_bf16(_normal(rng, rows, width) + 2))
    scale, shift = (numbers.read_only(0.3 * _normal(rng, width)) for _ in range(2))
    exact = numbers.from_bf16(x).astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-6)
    exact = exact * (1.0 + scale) + shift
    return Case(
        name=f"layer_norm-{rows}x{width}",
        sources=(KERNELS / "layer_norm.cu",),
        entry="launch_layer_norm",
        scalars=(rows, width, 1e-6),
        kernel="layer_norm_kernel",
        grid=(-(-rows // 4),),
        block=128,
        shared_bytes=0,
        parameters=lambda inputs, output: [*inputs, output, rows, width, 1e-6],
        inputs=(x, scale, shift),
        shape=(rows, width),
        dtype=np.uint16,
        exact=exact,
        bound=2.0**-8 * np.abs(exact) + 1e-5,  # half a unit of bfloat16, and float32 before
        decode=lambda output: numbers.from_bf16(output).astype(np.float64),
    )


def _product_bound(left: np.ndarray, right: np.ndarray, group: int) -> np.ndarray:
    """Of sums by tensor cores: each adds `group` products and cuts group + 2 times, by at most 2^-23 of the largest."""
    k = left.shape[1]
    return (group + 2) * -(-k // group) * 2.0**-23 * (np.abs(left) @ np.abs(right))


def bf16_matmul(m: int, n: int, k: int) -> Case:
    rng = np.random.default_rng([2, m, n, k])
    a, w = (numbers.read_only(numbers.to_bf16(_normal(rng, rows, k))) for rows in (m, n))
    left, right = numbers.from_bf16(a).astype(np.float64), numbers.from_bf16(w).astype(np.float64).T
    return Case(
        name=f"bf16_matmul-{m}x{n}x{k}",
        sources=(KERNELS / "bf16_matmul.cu",),
        entry="launch_bf16_matmul",
        scalars=(m, n, k),
        kernel="bf16_matmul_kernel",
        grid=(-(-m // 64), -(-n // 64)),
        block=128,
        shared_bytes=20480,
        parameters=lambda inputs, output: [*inputs, output, m, n, k],
        inputs=(a, w),
        shape=(m, n),
        dtype=np.float32,
        exact=left @ right,
        bound=_product_bound(left, right, 8),
    )


def tf32_matmul(m: int, n: int, k: int) -> Case:
    rng = np.random.default_rng([3, m, n, k])
    a, b = numbers.read_only(_normal(rng, m, k)), numbers.read_only(_normal(rng, k, n))
    left, right = numbers.to_tf32(a).astype(np.float64), numbers.to_tf32(b).astype(np.float64)
    return Case(
        name=f"tf32_matmul-{m}x{n}x{k}",
        sources=(KERNELS / "tf32_matmul.cu",),
        entry="launch_tf32_matmul",
        scalars=(m, n, k),
        kernel="tf32_matmul_kernel",
        grid=(-(-m // 32), -(-n // 32)),
        block=64,
        shared_bytes=4 * (32 * 20 + 16 * 40),
        parameters=lambda inputs, output: [*inputs, output, m, n, k],
        inputs=(a, b),
        shape=(m, n),
        dtype=np.float32,
        exact=left @ right,
        bound=_product_bound(left, right, 4),
    )


def _philox_reference():
    """rohydr_fast/ops/philox/reference.py by its path: the package would import torch."""
    path = building.ROOT / "rohydr_fast" / "ops" / "philox" / "reference.py"
    specification = importlib.util.spec_from_file_location("philox_reference", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def philox(kind: str, samples: int, count: int) -> Case:
    rng = np.random.default_rng([4, samples, count])
    ids = numbers.read_only(rng.integers(0, 2**48, samples))
    seed, modality, step, stream = 0x299F31D0_A4093822, 2, 0xFFFF_FFF0, 1
    exact = getattr(_philox_reference(), kind)(seed, ids, modality, step, stream, count)
    blocks = -(-count // 4)
    # A float32 may be the neighbour of the nearest one: csrc/include/rohydr/box_muller.h.
    bound = np.spacing(np.abs(exact)).astype(np.float64) if kind == "normal" else np.zeros(exact.shape)

    def parameters(inputs, output):
        request = Struct("<QQqqIIIxxxx", seed, inputs[0], samples, count, modality, step, stream)
        return [request, blocks, output]

    return Case(
        name=f"philox_{kind}-{samples}x{count}",
        sources=(building.KERNELS / "philox.cu", building.HERE / "entries" / "philox.cpp"),
        entry=f"philox_{kind}",
        scalars=(samples, count, seed, modality, step, stream),
        kernel=f"To{kind.capitalize()}",
        grid=(-(-samples * blocks // 256),),
        block=256,
        shared_bytes=0,
        parameters=parameters,
        inputs=(ids,),
        shape=(samples, count),
        dtype=np.int64 if kind == "bits" else np.float32,
        exact=exact.astype(np.float64),
        bound=bound,
    )


def all_cases() -> list[Case]:
    """Sizes that fill tiles, that do not, and single rows."""
    noise = [philox(kind, *size) for kind in ("bits", "uniform", "normal") for size in ((3, 1001), (1, 1))]
    return [
        layer_norm(50, 80),
        layer_norm(1, 32),
        layer_norm(7, 33),
        bf16_matmul(64, 64, 32),
        bf16_matmul(100, 136, 72),
        bf16_matmul(1, 7, 104),
        tf32_matmul(32, 32, 16),
        tf32_matmul(50, 45, 37),
        tf32_matmul(1, 3, 1),
        *noise,
    ]
