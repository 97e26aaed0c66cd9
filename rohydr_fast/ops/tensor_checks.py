"""What a tensor is asked, and the sentence that refuses it: the words of `ops.checks`."""

from typing import NoReturn

import torch
from torch import Tensor

from ..errors import UsageError

SEE = "See the op's docstring for the letters."


def fail(op: str, argument: str, rule: str, got: object, advice: str) -> NoReturn:
    """Raise `UsageError` in the house form."""
    raise UsageError(f"{op}: {argument} must {rule}, got {got}. {advice}")


class Stranger(Exception):
    """An argument is no dense tensor, or no integer, where one is expected."""


def check_like(op: str, argument: str, tensor: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """`tensor` must have `shape` (None is any size), and the dtype and device of `like`."""
    check_shape(op, argument, tensor, shape)
    if tensor.dtype != like.dtype or tensor.device != like.device:
        got = f"{tensor.dtype} on {tensor.device}"
        fail(op, argument, f"be {like.dtype} on {like.device}", got, "Convert it with .to().")


def check_dense(tensor: Tensor) -> None:
    """`Stranger` for a sparse tensor."""
    if tensor.layout is not torch.strided:
        raise Stranger


def check_shape(op: str, argument: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """`tensor` must be dense and have `shape`, where None is any size."""
    check_dense(tensor)
    if tensor.dim() == len(shape) and all([b is None or a == b for a, b in zip(tensor.shape, shape, strict=True)]):
        return
    sizes = ["any" if size is None else str(size) for size in shape]
    wanted = f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"
    fail(op, argument, f"have shape {wanted}", tuple(tensor.shape), SEE)


def what(tensor: Tensor) -> str:
    """What a sentence shows of a tensor."""
    return f"{tensor.dtype} with shape {tuple(tensor.shape)}"
