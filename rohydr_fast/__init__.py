"""RoHyDR: recovery of missing modalities by conditional diffusion, as one fused call.

Importing this package loads neither torch nor numpy; each public name is loaded when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "RoHyDR": ".models.rohydr",
    "run": ".training.several",
    "sample": ".diffusion.sampler",
    "explain": ".ops.registry",
    "backend": ".ops.registry",
}

__all__ = ["RoHyDR", "__version__", "backend", "explain", "run", "sample"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
