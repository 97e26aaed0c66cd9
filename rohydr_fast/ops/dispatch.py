"""From the tensors of a call to the facts that the registry decides on, in eager mode and under `torch.compile`."""

from collections.abc import Callable, Iterable
from operator import index

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import BackendUnavailable, RohydrError
from .registry import BACKENDS, registered, select

# Both are torch's own switches for what a tensor does not show: a dual level, and vmap, grad or jvp of torch.func.
in_func_transform = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def constant_when_traced(function):
    """`torch.compiler.assume_constant_result`, which would import the compiler, a second of time, at once.

    The mark is what it sets; tests compile every operation with it.
    """
    function._dynamo_marked_constant = True
    return function


def wants_gradient(tensors: Iterable[Tensor]) -> bool:
    """A gradient with respect to one of `tensors` is being recorded."""
    return torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])


def choose(op: str, backend: str | None, x: Tensor, needs_grad: bool, grad_of: tuple[str, ...] = (), **sizes) -> str:
    """The backend of a call on `x`; under `torch.compile` the choice is made once, when the call is traced.

    Args:
        needs_grad, grad_of: see `support`.
        sizes: `width` and `head_dims`, of an operation with heads, see there.

    Raises:
        UsageError: no such backend.
        BackendUnavailable: the named backend cannot run this call.
    """
    transformed = forward_ad._current_level >= 0 or in_func_transform()
    facts = (x.device.type, x.dtype, needs_grad, grad_of, transformed)
    if not torch.compiler.is_compiling():
        return _select(op, backend, *facts, **sizes)
    name, refusal = _choose_for_trace(op, backend, *facts, **sizes)
    if refusal:
        raise BackendUnavailable(refusal)
    return name


def head_facts(width: int, num_heads: int) -> dict:
    """The facts `width` and `head_dims` of a call, numbers in a traced graph too."""
    return {"width": index(width), "head_dims": (index(width // num_heads),)}


def wanting(x: Tensor, weights: Iterable[Tensor], /, **tensors: Tensor) -> tuple[str, ...]:
    """The fact `grad_of` of a call on `x`: which of `tensors`, and "bfloat16 weights" if there are such."""
    names = [name for name, tensor in tensors.items() if tensor.requires_grad]
    if any([weight.requires_grad and weight.dtype != x.dtype for weight in weights]):
        names.append("bfloat16 weights")
    return tuple(names)


def implementation(op: str, name: str, reference: Callable) -> Callable:
    """What runs under the name that `choose` gave, where no native code does: `reference`, or a registered function."""
    return reference if name in BACKENDS else registered(op, name)


def run_reference(function, x: Tensor, *args, **options):
    """`function(x, ...)` in the dtype of its arguments: as the native core, it takes no notice of `torch.autocast`."""
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return function(x, *args, **options)
    with torch.autocast(device, enabled=False):
        return function(x, *args, **options)


def _select(op, backend, device, dtype, needs_grad, grad_of, transformed, **sizes) -> str:
    facts = dict(device=device, dtype=dtype, needs_grad=needs_grad, grad_of=grad_of, transformed=transformed)
    return select(op, backend, **facts, **sizes)


@constant_when_traced
def _choose_for_trace(op, backend, *facts, **sizes) -> tuple[str, str]:
    """The name, or the sentence of a refusal: an exception in here would reach the user as one of the compiler's."""
    try:
        return _select(op, backend, *facts, **sizes), ""
    except RohydrError as error:
        return "", str(error)
