"""The native core with its calls recorded."""

from typing import NamedTuple

import pytest

from rohydr_fast import _native

FUSED = ("cross_attention", "denoiser_block", "reverse_loop")

needs_core = pytest.mark.skipif(not _native.status()[0], reason=_native.status()[1])


class Call(NamedTuple):
    op: str
    chains: int
    threads: int


class SpyCore:
    """Everything of `core`; `calls` holds the fused operations that were called."""

    def __init__(self, core):
        self._core, self.calls = core, []

    def __getattr__(self, name):
        found = getattr(self._core, name)
        if name not in FUSED:
            return found

        def call(*args):
            self.calls.append(Call(name, len(args[0]) if name == "reverse_loop" else 1, args[-1]))
            return found(*args)

        return call


def spy_on_core(monkeypatch) -> list[Call]:
    """Record the fused native calls of a test; the list grows while the test runs."""
    spy, reason = SpyCore(_native.load()), _native.status()[1]
    monkeypatch.setattr(_native, "_attempt", lambda: (spy, reason))
    return spy.calls
