"""A loop that stands in an exported graph as one operation, however often it runs."""

from collections.abc import Callable
from typing import Any

import torch


def scan(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, rows: Any) -> tuple[Any, Any]:
    """`step` (state, row) to (state, result) for each row of `rows`; the last state, and all results.

    Tensors and tuples of them. What a step reads or gives shares no memory with anything else that it reads or gives.
    For exports: it forgets what `torch.compile` has compiled in this process, which is then compiled again.
    """
    from torch._higher_order_ops.scan import scan  # where torch keeps it, a prototype

    # The step is traced by the compiler, which would ask whether it is that of an earlier scan: of the same size, for
    # example. The answer would be written down as a condition on a size that may vary.
    torch.compiler.reset()
    return scan(step, state, rows)
