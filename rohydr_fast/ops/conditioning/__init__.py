"""What the blocks read of the diffusion steps and of the condition, for a whole chain in one call: the modulation of
adaLN, and K and V. The specification is `reference.py`.

On "cpp" it runs on the threads of the native core, like the chain after it: torch's own would go on spinning meanwhile.
"""

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_conditioning
from ..dispatch import choose, implementation, run_reference, wants_gradient
from . import native, reference, stacked
from .reference import Conditioning


def conditioning(
    features: Tensor,
    encoded: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    backend: str | None = None,
) -> Conditioning:
    """The modulation (R, L, 9, W) and (R, 2, W), and K and V (L, 2, B, S, W); arguments as `reference.conditioning`.

    `torch.autocast` changes nothing.

    Raises:
        UsageError: a shape, dtype or device that does not fit.
        BackendUnavailable: the named backend cannot run this call.

    Cost: one native call on "cpp"; some ten launches on a CUDA device, for any number of blocks.
    """
    check_conditioning("conditioning", features, encoded, weights, biases)
    needs_grad = wants_gradient((features, encoded, *weights, *biases))
    name = choose("conditioning", backend, features, needs_grad)
    if name == "cpp":
        return native.conditioning(features, encoded, weights, biases)
    function = reference.conditioning if features.is_cpu else stacked.conditioning
    function = implementation("conditioning", name, function)
    return run_reference(function, features, encoded, weights, biases)


__all__ = ["Conditioning", "conditioning"]
