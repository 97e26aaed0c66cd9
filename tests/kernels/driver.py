"""Drives the native core directly: keywords of the reference in, a tensor out, with everything around it watched.

Results are written into a guarded array that is filled with a NaN of its own: what a kernel leaves out, writes twice as
far, or changes in its inputs is seen at once.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from rohydr_fast import _native
from rohydr_fast.ops.cross_attention.reference import cross_attention
from rohydr_fast.ops.denoiser.reference import Modulation, denoiser
from rohydr_fast.ops.denoiser_block.reference import denoiser_block
from rohydr_fast.ops.reverse_loop.reference import NoiseKey, reverse_loop

BUILT, REASON = _native.status()
needs_core = pytest.mark.skipif(not BUILT, reason=REASON)
CORE = _native.load() if BUILT else None
ISAS = CORE.cpu_isas() if BUILT else []
REFERENCES = {
    "reverse_loop": reverse_loop,
    "denoiser": lambda **arguments: torch.cat(denoiser(**arguments), -1),
    "denoiser_block": denoiser_block,
    "cross_attention": cross_attention,
}
GUARD = 64  # elements on each side of a result
UNWRITTEN = {4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}  # NaN that no arithmetic makes
CANARY = {4: 0x5EC0FFEE, 8: 0x5EC0FFEE5EC0FFEE}


class Guarded:
    """An array to be filled, with canaries before and behind it.

    Args:
        shape, dtype: of the array.
        offset: elements that it is moved by, so that results are not always aligned to vectors.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0):
        self.size = torch.empty((), dtype=dtype).element_size()
        count = int(np.prod(shape))
        self.memory = np.full(count + 2 * GUARD, CANARY[self.size], dtype=f"u{self.size}")
        self.inside = slice(GUARD + offset, GUARD + offset + count)
        self.memory[self.inside] = UNWRITTEN[self.size]
        self.array = self.memory[self.inside].view(f"f{self.size}").reshape(shape)

    def untouched(self) -> bool:
        return self.guards_hold() and bool((self.memory[self.inside] == UNWRITTEN[self.size]).all())

    def guards_hold(self) -> bool:
        outside = np.delete(self.memory, self.inside)
        return bool((outside == CANARY[self.size]).all())

    def result(self) -> Tensor:
        """What was written, once it is known that this is all of it and nothing else."""
        assert self.guards_hold(), "written outside of the result"
        assert not (self.memory[self.inside] == UNWRITTEN[self.size]).any(), "a part of the result was not written"
        return torch.from_numpy(self.array.copy())


def array(value: Tensor | None) -> np.ndarray | None:
    """The tensor's own memory as a numpy array."""
    return None if value is None else value.detach().contiguous().numpy()


def flat(weights) -> list[Tensor]:
    """Weights of a denoiser or of a block, in order of use."""
    return [t for part in weights for t in (flat(part) if isinstance(part, tuple) else (part,))]


def pack(weights, num_heads: int, double: bool | None = None):
    """Native weights of a `DenoiserWeights` or a `BlockWeights`."""
    tensors = flat(weights)
    double = tensors[0].dtype == torch.float64 if double is None else double
    entry = CORE.pack_block if len(tensors) == 12 else CORE.pack_denoiser
    return entry([array(t) for t in tensors], num_heads, double)


def cast(value, dtype: torch.dtype):
    """The same arguments with every floating-point tensor converted."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: cast(part, dtype) for name, part in value.items()}
    if isinstance(value, NoiseKey):
        return value
    if isinstance(value, tuple):
        parts = [cast(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def real_tokens(arguments: dict) -> Tensor:
    """(B, T) bool: where the result counts."""
    x = arguments["q"] if "q" in arguments else arguments["x"]
    mask = arguments.get("token_mask")
    return torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask


def reference(operation: str, arguments: dict, dtype: torch.dtype = torch.float64) -> Tensor:
    """The PyTorch reference on the same numbers in `dtype`."""
    with torch.no_grad():
        return REFERENCES[operation](**cast(arguments, dtype))


def masks_of(arguments: dict) -> list[np.ndarray | None]:
    return [array(arguments.get(name)) for name in ("token_mask", "key_mask")]


def chain_inputs(arguments: dict, packed, start: np.ndarray, steps: int | None = None) -> tuple:
    """What `_C.reverse_loop` and its way back read of a chain.

    Args:
        start: x_K, or the x_t of all steps.
        steps: the tables of the last so many alone.
    """
    modulation, noise = arguments["modulation"], arguments["noise"]
    tables = [arguments["position"], modulation.blocks[:steps], modulation.final[:steps], arguments["cond_kv"]]
    tables.append(arguments["coefficients"][:steps])
    key = noise.seed, array(noise.sample_ids), noise.modality
    return packed, start, *[array(table) for table in tables], *key, *masks_of(arguments)


def chain_tuple(arguments: dict, packed, out: np.ndarray, states=None, tape=None) -> tuple:
    """One entry of the list that `_C.reverse_loop` takes."""
    return *chain_inputs(arguments, packed, array(arguments["x"])), out, states, tape


def modulation_rows(modulation: Tensor | Modulation) -> list[np.ndarray]:
    """Of one pass through a block or the network: the tables with a first axis of 1 or of the samples."""
    if isinstance(modulation, Tensor):
        return [array(modulation if modulation.dim() == 3 else modulation[None])]
    return [array(part if modulation.final.dim() == 3 else part[None]) for part in modulation]


def pass_inputs(arguments: dict, packed) -> tuple:
    """What one pass through the network or a block and its way back read."""
    position = [array(arguments["position"])] if "position" in arguments else []
    rows = modulation_rows(arguments["modulation"])
    return packed, array(arguments["x"]), *position, *rows, array(arguments["cond_kv"]), *masks_of(arguments)


def positional(operation: str, arguments: dict, packed, out: np.ndarray) -> tuple:
    """What the native entry of `operation` takes before `threads`."""
    if operation == "reverse_loop":
        return ([chain_tuple(arguments, packed, out)],)
    if operation == "cross_attention":
        return *(array(arguments[name]) for name in "qkv"), arguments["num_heads"], masks_of(arguments)[1], out
    return *pass_inputs(arguments, packed), out


def out_shape(operation: str, arguments: dict) -> tuple[int, ...]:
    """Of the result: prediction and v side by side for a denoiser."""
    *tokens, channels = (arguments["q"] if operation == "cross_attention" else arguments["x"]).shape
    return *tokens, 2 * channels if operation == "denoiser" else channels


def snapshot(value) -> list[bytes]:
    """The bytes of every array among native arguments."""
    if isinstance(value, np.ndarray):
        return [value.tobytes()]
    return [part for item in value for part in snapshot(item)] if isinstance(value, list | tuple) else []


def native(operation: str, arguments: dict, *, threads: int = 1, packed=None, offset: int = 0) -> Tensor:
    """The native result for the keywords of the reference. Inputs must come out of it byte by byte as they went in."""
    if packed is None and operation != "cross_attention":
        packed = pack(arguments["weights"], arguments["num_heads"])
    x = arguments["q"] if operation == "cross_attention" else arguments["x"]
    guarded = Guarded(out_shape(operation, arguments), x.dtype, offset)
    call = positional(operation, arguments, packed, guarded.array)
    inputs = call[:-1] if operation != "reverse_loop" else call[0][0][:-3]
    weights = [array(t) for t in flat(arguments["weights"])] if "weights" in arguments else []
    before = snapshot(inputs) + snapshot(weights)
    getattr(CORE, operation)(*call, threads)
    assert snapshot(inputs) + snapshot(weights) == before, "an input was changed"
    result = guarded.result()
    padding = result[~real_tokens(arguments)]
    assert not padding.view(torch.uint8).any(), "tokens that the mask leaves out must be +0"
    return result


def native_chains(chains: list[dict], *, threads: int = 1) -> list[Tensor]:
    """Several reverse loops in one native call."""
    results = [Guarded(tuple(chain["x"].shape), chain["x"].dtype, 1) for chain in chains]
    packed = [pack(chain["weights"], chain["num_heads"]) for chain in chains]
    calls = [chain_tuple(*parts, result.array) for *parts, result in zip(chains, packed, results, strict=True)]
    CORE.reverse_loop(calls, threads)
    return [result.result() for result in results]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality; NaN equals the same NaN, and -0 is not 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.numel() == 0 or torch.equal(a.view(torch.uint8), b.view(torch.uint8))
