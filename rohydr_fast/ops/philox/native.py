"""Philox by the native core. Arguments are those of the package's public functions, already checked."""

import numpy as np
import torch

from ... import _native

_DTYPES = {"bits": np.int64, "uniform": np.float32, "normal": np.float32}


def fill(kind: str, seed: int, sample_ids: np.ndarray, modality: int, step: int, stream: int, count: int) -> np.ndarray:
    """(B, count) numbers of one kind ("bits", "uniform", "normal"), made on the CPU."""
    out = np.empty((len(sample_ids), count), dtype=_DTYPES[kind])
    getattr(_native.load(), f"philox_{kind}")(seed, sample_ids, modality, step, stream, out)
    return out


def fill_cuda(
    kind: str,
    seed: int,
    sample_ids: np.ndarray,
    modality: int,
    step: int,
    stream: int,
    count: int,
    device: torch.device,
) -> torch.Tensor:
    """(B, count) numbers made on a CUDA device, on torch's current stream; nothing waits for them."""
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    ids = torch.tensor(sample_ids).to(device, non_blocking=True)
    dtype = torch.int64 if kind == "bits" else torch.float32
    out = torch.empty((len(sample_ids), count), dtype=dtype, device=device)
    queue = torch.cuda.current_stream(index).cuda_stream
    launch = getattr(_native.load(), f"philox_{kind}_cuda")
    # `ids` may be freed on return: torch gives its memory only to later work of the same stream.
    launch(seed, ids.data_ptr(), len(sample_ids), modality, step, stream, out.data_ptr(), count, index, queue)
    return out


def normal_operation(
    seed: int, sample_ids: torch.Tensor, modality: int, step: int, stream: int, count: int, backend: str | None
) -> torch.Tensor:
    """(B, count) float32 on the CPU by the registered operation, which a compiler can trace; it checks when it runs."""
    from .. import library  # which imports this package

    return torch.ops.rohydr_fast.philox_normal(
        sample_ids.cpu(), library.signed(seed), modality, step, int(stream), count, backend
    )
