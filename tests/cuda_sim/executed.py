"""How many kernels the tests executed, and how: for the last lines of a test run."""

from collections import Counter, defaultdict

_LAUNCHES: dict[str, Counter] = defaultdict(Counter)
SIMULATOR = "compiled for the CPU"
INTERPRETER = "interpreted PTX"


def record(how: str, kernel: str) -> None:
    """Count one launch."""
    _LAUNCHES[how][kernel.rpartition("::")[2]] += 1


def launches() -> dict[str, dict[str, int]]:
    """How often each kernel ran, by the way of executing."""
    return {how: dict(kernels) for how, kernels in _LAUNCHES.items()}


def add(more: dict[str, dict[str, int]]) -> None:
    """Count the launches of another process as this one's."""
    for how, kernels in more.items():
        _LAUNCHES[how].update(kernels)


def lines() -> list[str]:
    """One line for each way of executing; empty when no kernel ran."""
    return [
        f"{len(kernels)} kernels {how}, {kernels.total()} launches: {', '.join(sorted(kernels))}"
        for how, kernels in sorted(_LAUNCHES.items())
    ]
