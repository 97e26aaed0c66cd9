"""What benchmarks/gpu.py runs: the cells in the order of their importance, and a problem on a device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from presets import Preset
from sampling_problem import Problem, make_problem

WIDTHS, BATCHES = (64, 128), (1, 32, 132, 256)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WORKLOADS = ("forward", "backward", "iteration")
PROVIDERS = ("eager", "compile", "graph", "triton", "cuda")
BACKENDS = {"eager": "reference", "triton": "triton", "cuda": "cuda"}
"""Of this package's own providers."""


@dataclass(frozen=True)
class Cell:
    """What is measured together: a workload at one size."""

    workload: str
    width: int
    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.workload:<9} W={self.width:<3} B={self.batch:<3} {self.dtype}"


@dataclass(frozen=True)
class Settings:
    """What all cells have in common."""

    device: str = "cuda"
    steps: int = 50
    blocks: int = 4
    tokens: int = 50
    keys: int = 100
    channels: int = 32
    gate_steps: int = 5
    gradient_gate_steps: int = 3
    slice_seconds: float = 2.0
    """For the repetitions of a cell, beyond the five that every time has."""
    peak_size: int = 8192

    def preset(self, width: int) -> Preset:
        """The sizes of a network of this width: 8 heads from W = 128 on, else 4."""
        return Preset(width, self.blocks, 8 if width >= 128 else 4, self.tokens, self.keys, self.channels)

    def problem(self, cell: Cell, steps: int) -> Problem:
        """Random weights and a random condition on the device, in the cell's dtype."""
        made = make_problem(self.preset(cell.width), cell.batch, steps)
        where = {"device": self.device, "dtype": DTYPES[cell.dtype]}
        return replace(made, denoiser=made.denoiser.to(**where), cond=made.cond.to(**where))


def cells(workloads: Sequence[str], widths: Sequence[int], batches: Sequence[int], dtypes: Sequence[str]) -> list[Cell]:
    """All cells, those first that one would miss most: time may run out.

    Forward at the first width, one cell with gradients, the iteration (W = 64, B = 32, float32), then the rest.
    """
    grid = [(width, dtype, batch) for width in widths for dtype in dtypes for batch in batches]
    middle = 32 if 32 in batches else batches[0]

    def made(workload: str, wanted) -> list[Cell]:
        return [Cell(workload, w, b, d) for w, d, b in grid if workload in workloads and wanted(w, b)]

    ordered = made("forward", lambda w, b: w == widths[0])
    ordered += made("backward", lambda w, b: w == widths[0] and b == middle)
    if "iteration" in workloads:
        ordered.append(Cell("iteration", 64 if 64 in widths else widths[0], middle, "fp32"))
    ordered += made("forward", lambda w, b: w != widths[0])
    ordered += made("backward", lambda w, b: w == widths[0] and b != middle)
    return ordered + made("backward", lambda w, b: w != widths[0])


def loop_bytes(preset: Preset, dtype: str) -> int:
    """Bytes that the block of a sample reads in a step from the second cache: weights, and K and V of the condition.

    s (L (14 W^2 + 2 S W) + 3 C W) for elements of s bytes; biases, tables and padding to whole tiles do not count.
    """
    w, size = preset.width, DTYPES[dtype].itemsize
    return size * (preset.blocks * (14 * w * w + 2 * preset.keys * w) + 3 * preset.channels * w)
