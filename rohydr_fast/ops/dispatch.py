"""From the tensors of a call to the facts that the registry decides on, in eager mode and under `torch.compile`."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import BackendUnavailable, RohydrError
from .registry import select

# Both are torch's own switches for what a tensor does not show: a dual level, and vmap, grad or jvp of torch.func.
_in_func_transform = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def constant_when_traced(function):
    """`torch.compiler.assume_constant_result`, which would import the compiler, a second of time, at once.

    The mark is what it sets; tests compile every operation with it.
    """
    function._dynamo_marked_constant = True
    return function


def wants_gradient(tensors: Iterable[Tensor]) -> bool:
    """A gradient with respect to one of `tensors` is being recorded."""
    return torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])


def choose(op: str, backend: str | None, x: Tensor, needs_grad: bool) -> str:
    """The backend of a call on `x`; under `torch.compile` the choice is made once, when the call is traced.

    Raises:
        UsageError: no such backend.
        BackendUnavailable: the named backend cannot run this call.
    """
    transformed = forward_ad._current_level >= 0 or _in_func_transform()
    if not torch.compiler.is_compiling():
        return select(op, backend, device=x.device.type, dtype=x.dtype, needs_grad=needs_grad, transformed=transformed)
    name, refusal = _choose_for_trace(op, backend, x.device.type, x.dtype, needs_grad, transformed)
    if refusal:
        raise BackendUnavailable(refusal)
    return name


@constant_when_traced
def _choose_for_trace(op, backend, device, dtype, needs_grad, transformed) -> tuple[str, str]:
    """The name, or the sentence of a refusal: an exception in here would reach the user as one of the compiler's."""
    try:
        return select(op, backend, device=device, dtype=dtype, needs_grad=needs_grad, transformed=transformed), ""
    except RohydrError as error:
        return "", str(error)
