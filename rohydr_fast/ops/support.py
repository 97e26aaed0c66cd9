"""Whether a backend can run a call, as a verdict with a reason. Nothing here loads torch before it is needed.

A predicate takes the facts of a call, each of which may be unknown:
    device: the type of its tensors, "cpu" or "cuda";
    width, head_dims: channels of a token, at most, and those of a head, of each chain;
    dtype: the dtype of its tensors, a `torch.dtype` or its name;
    needs_grad: a gradient of the result is wanted;
    grad_of: names of inputs that want one, as far as a backend may lack it, see `NO_NATIVE_GRADIENT`;
    transformed: the call is inside a transform of `torch.func` or a level of forward-mode differentiation;
    loops: `reverse_loop.cuda.Sizes` of each chain;
    block: `denoiser_block.cuda.BlockSizes`.
"""

from .. import __version__, _native
from ..errors import UsageError
from .triton import status

Verdict = tuple[bool, str]

NATIVE_DTYPES = ("float32", "float64")
CUDA_DTYPES = ("float32", "bfloat16")
NO_NATIVE_GRADIENT = ("position", "coefficients", "x_0", "rows", "features", "bfloat16 weights")
"""Inputs of the fused operations for which the native core has no gradient."""


def reference(**call) -> Verdict:
    """The reference takes every call."""
    return True, "the reference runs everywhere"


def native_core(**call) -> Verdict:
    """What only needs the native core to be there.

    Raises:
        UsageError: ROHYDR_FAST_CPU names an instruction set that cannot be used here.
    """
    loaded, reason = _native.status()
    if not loaded:
        return False, reason
    try:
        return True, f"{reason}, instruction set {_native.load().cpu_isa()}"
    except ValueError as error:
        raise UsageError(str(error)) from None


def native_fused(*, device="cpu", dtype=None, needs_grad=False, grad_of=(), transformed=False, **call) -> Verdict:
    """The fused operations of the native core: what it cannot do, then as `native_core`."""
    if device != "cpu":
        return False, f"the native core runs tensors on the CPU, and these are on {device}"
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in NATIVE_DTYPES:
        return False, f"the native core computes {' and '.join(NATIVE_DTYPES)}, and these are {name}"
    lacking = [name for name in grad_of if name in NO_NATIVE_GRADIENT]
    if needs_grad and lacking:
        return False, f"the native core has no gradient with respect to {lacking[0]}; the reference has"
    if transformed:
        return False, "the native core does not run inside torch.func transforms or forward-mode differentiation"
    return native_core()


def native_attention(*, needs_grad=False, **call) -> Verdict:
    """Attention alone, which has no backward pass in the native core; inside a block it has."""
    if needs_grad:
        return False, "the native core has no backward pass of attention alone; gradients need the reference"
    return native_fused(**call)


def triton_fused(*, device=None, dtype=None, transformed=False, width=None, head_dims=(), **call) -> Verdict:
    """The fused operations by Triton: on a CUDA device, or interpreted on the CPU; without `device`, on either."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in status.DTYPES:
        return False, f"the Triton kernels compute {' and '.join(status.DTYPES)}, and these are {name}"
    other = [size for size in head_dims if size not in status.HEAD_DIMS]
    if other:
        sizes = ", ".join(map(str, status.HEAD_DIMS))
        return False, f"the Triton kernels take heads of {sizes} channels, and these have {other[0]}"
    if width is not None and width > status.MAX_WIDTH:
        return False, f"the Triton kernels take at most {status.MAX_WIDTH} channels, and these are {width}"
    if transformed:
        return False, "the Triton kernels do not run inside torch.func transforms or forward-mode differentiation"
    if device == "cpu":
        return status.interpreted()
    if device not in (None, "cuda"):
        return False, f"the Triton kernels run tensors on a CUDA device, and these are on {device}"
    usable, reason = status.on_device()
    if usable or device == "cuda":
        return usable, reason
    interpreted, how = status.interpreted()
    return (True, how) if interpreted else (False, reason)


def triton_attention(*, width=None, **call) -> Verdict:
    """Attention alone: as `triton_fused`, for tokens of any number of channels, as there is no LayerNorm."""
    return triton_fused(**call)


def triton_conditioning(**call) -> Verdict:
    """What comes before a chain or Eq. 3 by Triton: a few products of PyTorch, of which nothing is to be fused."""
    usable, reason = triton_fused(**call)
    return usable, f"{reason}; this operation is PyTorch's products there" if usable else reason


def no_triton(**call) -> Verdict:
    """Operations that have no Triton kernel."""
    return False, f"version {__version__} has no Triton kernel of this operation"


def no_cuda(**call) -> Verdict:
    """Operations that have no CUDA kernel."""
    return False, f"version {__version__} has no CUDA kernel of this operation"


def cuda_device() -> Verdict:
    """A native core that was built with CUDA, and a device that torch can use."""
    usable, reason = _native.status()
    if not usable:
        return False, reason
    core = _native.load()
    if not core.build_info()["cuda"]:
        why = _native.build_info().get("cuda_reason", "no reason was recorded")
        return False, f"the native core was built without CUDA ({why})"
    if core.cuda_device_count() == 0:
        return False, "this machine shows no CUDA device"
    import torch

    if not torch.cuda.is_available():
        return False, f"torch {torch.__version__} cannot use the CUDA device"
    return True, f"the native core was built with CUDA {core.build_info()['cuda_version']}"


def philox_cuda(**call) -> Verdict:
    """The noise has a CUDA kernel, for numbers that are wanted on any device."""
    return cuda_device()


def cuda_loop(*, dtype=None, needs_grad=False, loops=(), history=False, **call) -> Verdict:
    """The whole reverse loop in one launch, and its gradients: within the limits of the kernels."""
    usable, reason = _cuda_fused(dtype=dtype, needs_grad=needs_grad, **call)
    if not usable:
        return False, reason
    if history:
        return False, "the CUDA kernel has no history, which the samplers dpm++2m and unipc need; ddim needs none"
    from .reverse_loop import cuda

    name = _name(dtype)
    refused = [why for one in loops if (why := cuda.refusal(one, name))]
    if needs_grad:
        refused += [why for one in loops if (why := cuda.refusal(one, name, backward=True))]
    return (False, refused[0]) if refused else (True, reason)


def cuda_block(*, dtype=None, block=None, **call) -> Verdict:
    """One block in one kernel, and its gradients: within the limits of the kernels."""
    usable, reason = _cuda_fused(dtype=dtype, **call)
    if not usable or block is None:
        return usable, reason
    from .denoiser_block import cuda

    refused = cuda.refusal(block, _name(dtype))
    return (False, refused) if refused else (True, reason)


def _cuda_fused(*, device="cuda", dtype=None, needs_grad=False, grad_of=(), transformed=False, **call) -> Verdict:
    """What the CUDA kernels of the fused operations cannot do whatever the sizes, then as `cuda_device`."""
    usable, reason = cuda_device()
    if not usable:
        return False, reason
    if device != "cuda":
        return False, f"the CUDA kernel runs tensors on a CUDA device, and these are on {device}"
    if dtype is not None and _name(dtype) not in CUDA_DTYPES:
        return False, f"the CUDA kernel computes {' and '.join(CUDA_DTYPES)}, and these are {_name(dtype)}"
    lacking = [name for name in grad_of if name in NO_NATIVE_GRADIENT]
    if needs_grad and lacking:
        return False, f"the CUDA kernel has no gradient with respect to {lacking[0]}; the reference has"
    if transformed:
        return False, "the CUDA kernel does not run inside torch.func transforms or forward-mode differentiation"
    return True, reason


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")
