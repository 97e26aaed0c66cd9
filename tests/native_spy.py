"""The native core with its calls recorded."""

from typing import NamedTuple

import pytest

from rohydr_fast import _native

FORWARD = ("cross_attention", "denoiser_block", "denoiser", "diffusion_loss", "reverse_loop")
FUSED = (*FORWARD, "denoiser_block_backward", "denoiser_backward", "reverse_loop_backward")

needs_core = pytest.mark.skipif(not _native.status()[0], reason=_native.status()[1])


class Call(NamedTuple):
    op: str
    chains: int  # or terms of Eq. 3
    threads: int
    tapes: int  # chains of a reverse loop, or of its way back, that keep the activations


class SpyCore:
    """Everything of `core`; `calls` holds the fused operations that were called."""

    def __init__(self, core):
        self._core, self.calls = core, []

    def __getattr__(self, name):
        found = getattr(self._core, name)
        if name not in FUSED:
            return found

        def call(*args, **options):
            chains = args[0] if name.startswith(("reverse_loop", "diffusion_loss")) else []
            loop = name.startswith("reverse_loop")
            tapes = sum(loop and chain[-1] is not None for chain in chains) + (options.get("tape") is not None)
            self.calls.append(Call(name, len(chains) or 1, args[-1], tapes))
            return found(*args, **options)

        return call


def spy_on_core(monkeypatch) -> list[Call]:
    """Record the fused native calls of a test; the list grows while the test runs."""
    spy, reason = SpyCore(_native.load()), _native.status()[1]
    monkeypatch.setattr(_native, "_attempt", lambda: (spy, reason))
    return spy.calls
