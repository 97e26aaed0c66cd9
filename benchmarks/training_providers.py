"""The contenders of benchmarks/training.py, and which of them a workload has."""

from contenders import Provider, no_compiler, no_fused_loop
from training_methods import Checkpointed, Compiled, Draw, Hoisted, Naive, Package

WORKLOADS = ("block", "chain", "iteration", "epoch")
RECOMPUTED = "cpp-recomputed"


def _reference(workload: str, draw: Draw):
    """Where the diffusion stands alone the fastest eager code that we know; else the package's backend."""
    return Hoisted(draw) if workload in ("block", "chain") else Package("reference")


PROVIDERS = {
    "naive": Provider(lambda workload, draw: Naive(draw)),
    "reference": Provider(_reference),
    "checkpointed": Provider(lambda workload, draw: Checkpointed(draw)),
    "compile": Provider(lambda workload, draw: Compiled(draw), unusable=no_compiler),
    "cpp": Provider(lambda workload, draw: Package("cpp"), exact=True, unusable=no_fused_loop),
    RECOMPUTED: Provider(lambda workload, draw: Package("cpp", least_memory=True), exact=True, unusable=no_fused_loop),
}
"""By name, in the order of tables and figures; `build` takes the workload and how the opponents draw their noise."""
CHOICES = tuple(name for name in PROVIDERS if name != RECOMPUTED)
"""What the command line takes: cpp stands for both of its rows."""


def contenders(workload: str, named: list[str] | None) -> list[str]:
    """The rows of a workload; by default all, but of an epoch cpp alone, as the others take many minutes."""
    names = list(named or (["cpp"] if workload == "epoch" else CHOICES))
    if workload == "chain" and "cpp" in names:
        names.insert(names.index("cpp") + 1, RECOMPUTED)
    return names


def refusal(workload: str, name: str) -> str | None:
    """Why a contender does not take part, as a sentence; None when it does."""
    if workload == "block" and name == "naive":
        return "one pass through the network has nothing to hoist: see reference."
    if workload == "epoch" and name not in ("cpp", "reference"):
        return "an epoch is run by cpp and reference alone; iteration compares the others."
    return PROVIDERS[name].reason()
