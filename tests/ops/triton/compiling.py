"""Kernels as the launchers would start them, compiled for an absent device, and what the machine code takes."""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rohydr_fast.ops.triton import attention, linear, linear_backward, operations, step

LAUNCHERS = (attention, linear, linear_backward, step)
OPERATIONS = ("block", "block_backward", "embedding", "embedding_backward", "head", "head_backward")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.bool: "i1"}
OPTIONS = ("num_warps", "num_stages")


class Target(NamedTuple):
    """For what a network is compiled."""

    capability: int
    dtype: torch.dtype
    width: int
    heads: int
    ends: bool = False  # the embedding and the head too, whose kernels have fewer parts

    def name(self) -> str:
        return f"sm_{self.capability} {self.dtype} W{self.width} H{self.heads}"


TARGETS = (
    Target(80, torch.bfloat16, 64, 4),
    Target(90, torch.bfloat16, 64, 4, ends=True),
    Target(90, torch.float32, 64, 4),
)


class Launch(NamedTuple):
    """One launch: the kernel, the types of its arguments, and those that are compiled in."""

    kernel: object
    signature: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[int, ...]
    options: dict[str, int]


@contextmanager
def recorded(monkeypatch) -> Iterator[list[Launch]]:
    """Launches inside are noted down and not made."""
    launches = []

    def note(kernel, grid, *tensors, **sizes) -> None:
        options = {name: sizes.pop(name) for name in OPTIONS if name in sizes}
        names = [parameter.name for parameter in kernel.params]
        compiled_in = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        values = {**dict(zip(names, tensors, strict=False)), **sizes}
        assert set(values) == set(names), kernel
        signature, constants, divisible = {}, {}, []
        for place, name in enumerate(names):
            value = values[name]
            if name in compiled_in or value is None or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{DTYPES[value.dtype]}"
                if value.storage_offset() * value.element_size() % 16 == 0:
                    divisible.append(place)
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    divisible.append(place)
        launches.append(Launch(kernel, signature, constants, tuple(divisible), options))

    with monkeypatch.context() as patch:
        for module in LAUNCHERS:
            patch.setattr(module, "launch", note)
        yield launches


class Resources(NamedTuple):
    """What a kernel takes of a multiprocessor, and what its machine code is made of."""

    registers: int
    stack: int
    local: int
    shared: int
    spills: int
    tensor_core: int


def compiled(launch: Launch, capability: int) -> Resources:
    """The kernel of a launch for the compute capability, such as 80 or 90; needs no device."""
    divisible = {(place,): [["tt.divisibility", 16]] for place in launch.divisible}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, divisible)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", file.name)
    counted = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    registers, stack, local = (int(number) for number in counted.groups())
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Resources(registers, stack, local, found.metadata.shared, spills, len(re.findall(r"\bH(?:G)?MMA\b", code)))


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def network_launches(monkeypatch, target: Target) -> dict[str, Launch]:
    """One launch of each kind that a denoiser makes at the sizes of the `paper` preset, forward, back and in a step."""
    dtype, width, heads = target.dtype, target.width, target.heads

    def new(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    samples, tokens, keys, channels, hidden = 32, 50, 100, 40, 4 * width
    layers = [(3 * width, width), *3 * [(width, width)], (hidden, width), (width, hidden)]
    weights = [tensor for shape in layers for tensor in (new(*shape), new(shape[0]))]
    masks = [new(samples, size, kind=torch.bool) for size in (tokens, keys)]
    x, h = new(samples, tokens, channels), new(samples, tokens, width)
    block = (h, new(samples, 9, width), new(2, samples, keys, width), weights, heads, *masks)
    both = new(samples, tokens, 2 * channels)
    with recorded(monkeypatch) as launches:
        run = {name: getattr(operations, f"triton_{name}")._init_fn for name in OPERATIONS}
        kept = run["block"](*block, True)[1:]
        run["block_backward"](h, *block, kept)
        if target.ends:
            run["embedding"](x, new(width, channels), new(width), new(tokens, width))
            run["embedding_backward"](h, x, new(width, channels))
            run["head"](h, new(samples, 2, width), new(2 * channels, width), new(2 * channels))
            run["head_backward"](both, h, new(samples, 2, width), new(2 * channels, width))
        step.reverse_step(x, both, new(4), new(*x.shape), masks[0], x)
    kinds = {}
    for launch in launches:
        kinds.setdefault(kind_of(launch), launch)
    return kinds


def kind_of(launch: Launch) -> str:
    """The kernel, and the parts of it that are compiled in: pointers that are not None, and GELU."""
    optional = ("modulation", "gate", "residual", "kept", "before")
    parts = [name for name in optional if launch.signature.get(f"{name}_ptr", "constexpr") != "constexpr"]
    parts += ["gelu"] if launch.constants.get("GELU") else []
    return " ".join([launch.kernel.__name__, *parts])


def main() -> None:
    """Print the table of `test_resources.py`: what each kernel takes now, as ceilings."""
    table = {}
    for target in TARGETS:
        with pytest.MonkeyPatch.context() as monkeypatch:
            launches = network_launches(monkeypatch, target)
        found = {kind: compiled(launch, target.capability) for kind, launch in launches.items()}
        table[target.name()] = {kind: [took.registers, took.shared] for kind, took in found.items()}
    text = json.dumps(table, indent=1)
    print(re.sub(r"\[\s*(\d+),\s*(\d+)\s*\]", r"[\1, \2]", text))


if __name__ == "__main__":
    main()
