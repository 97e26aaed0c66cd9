"""Kernels as the launchers would start them, compiled for an absent device, and what the machine code takes."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rohydr_fast.ops.triton import attention, linear, linear_backward, step

LAUNCHERS = (attention, linear, linear_backward, step)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.uint8: "u8"}
OPTIONS = ("num_warps", "num_stages")


class Launch(NamedTuple):
    """One launch: the kernel, the types of its arguments, and those that are compiled in."""

    kernel: object
    signature: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[int, ...]
    options: dict[str, int]

    def key(self) -> str:
        """What distinguishes the code of two launches of one kernel."""
        return repr((self.kernel.__name__, self.signature, self.constants, self.divisible, self.options))


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
