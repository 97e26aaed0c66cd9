"""Linear layers of equal shape on the same input in one call. The specification is `reference.py`.

Keys and values of the condition and the modulation of the steps come from such layers, once for a chain. On "cpp" they
run on the threads of the native core, like the chain after them: torch's own would go on spinning meanwhile.
"""

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_linears
from ..dispatch import choose, run_reference, wants_gradient
from . import native, reference


def linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    parts: int = 1,
    rows_first: bool = False,
    backend: str | None = None,
) -> Tensor:
    """y_i = x W_i' + b_i for n layers, stacked; shapes in `reference.linears`. `torch.autocast` changes nothing.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: one native call on "cpp".
    """
    check_linears("linears", x, weights, biases, parts)
    if choose("linears", backend, x, wants_gradient((x, *weights, *biases))) == "cpp":
        return native.linears(x, weights, biases, parts=parts, rows_first=rows_first)
    return run_reference(reference.linears, x, weights, biases, parts=parts, rows_first=rows_first)


__all__ = ["linears"]
