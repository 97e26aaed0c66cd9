"""What benchmarks/gpu.py runs under compute-sanitizer: the whole loop, two samples, three steps, both dtypes.

The chains are made on the CPU, so that next to nothing but the loop's own kernels runs on the device.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from gpu_problem import DTYPES, Cell, Settings
from gpu_providers import request_of
from torch.utils._pytree import tree_map_only

from rohydr_fast.diffusion.sampler import chain_of
from rohydr_fast.ops.reverse_loop import reverse_loops


@torch.no_grad()
def main() -> int:
    """Run them; 1 when a result is not finite."""
    right = True
    for width in (64, 128):
        for name in DTYPES:
            problem = Settings(device="cpu", blocks=2).problem(Cell("forward", width, 2, name), 3)
            chain = chain_of(request_of(problem))
            moved = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cuda(), chain)
            x_0 = reverse_loops([moved], backend="cuda")[0].cpu()
            right &= bool(x_0.isfinite().all())
            print(f"W={width} {name}: largest {float(x_0.abs().max()):.4g}", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
