"""How many kernels the tests executed, and how: for the last lines of a test run."""

from collections import Counter, defaultdict

_LAUNCHES: dict[str, Counter] = defaultdict(Counter)
SIMULATOR = "compiled for the CPU"
INTERPRETER = "interpreted PTX"


def record(how: str, kernel: str) -> None:
    """Count one launch."""
    _LAUNCHES[how][kernel.rpartition("::")[2]] += 1


def lines() -> list[str]:
    """One line for each way of executing; empty when no kernel ran."""
    return [
        f"{len(kernels)} kernels {how}, {kernels.total()} launches: {', '.join(sorted(kernels))}"
        for how, kernels in sorted(_LAUNCHES.items())
    ]
