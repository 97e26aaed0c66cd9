"""The fused operations and the choice among their backends. Importing this package loads no torch."""

from .registry import BACKENDS, Explanation, backend, explain, register_backend, select, unregister_backend

__all__ = ["BACKENDS", "Explanation", "backend", "explain", "register_backend", "select", "unregister_backend"]
