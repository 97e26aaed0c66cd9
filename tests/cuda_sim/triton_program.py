"""A matrix product in Triton, compiled to PTX for sm_80 without a GPU: `python -m tests.cuda_sim.triton_program`."""

import json

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TILE, DEPTH = 64, 32


@triton.jit
def matmul_kernel(a, w, c, m, n, k, tile: tl.constexpr, depth: tl.constexpr):
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    columns = tl.program_id(1) * tile + tl.arange(0, tile)
    sums = tl.zeros([tile, tile], tl.float32)
    for start in range(0, k, depth):
        inner = start + tl.arange(0, depth)
        left = (rows[:, None] < m) & (inner[None, :] < k)
        right = (columns[None, :] < n) & (inner[:, None] < k)
        part_a = tl.load(a + rows[:, None] * k + inner[None, :], mask=left, other=0.0)
        part_w = tl.load(w + columns[None, :] * k + inner[:, None], mask=right, other=0.0)
        sums = tl.dot(part_a, part_w, sums)
    places = c + rows[:, None] * n + columns[None, :]
    tl.store(places, sums, mask=(rows[:, None] < m) & (columns[None, :] < n))


def main() -> None:
    pointers = {"a": "*bf16", "w": "*bf16", "c": "*fp32"}
    signature = pointers | dict.fromkeys("mnk", "i32") | {"tile": "constexpr", "depth": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)} | {(5,): [["tt.divisibility", 8]]}
    source = ASTSource(matmul_kernel, signature, {"tile": TILE, "depth": DEPTH}, aligned)
    target = GPUTarget("cuda", 80, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 3})
    print(json.dumps({"ptx": compiled.asm["ptx"], "shared_bytes": compiled.metadata.shared}))


if __name__ == "__main__":
    main()
