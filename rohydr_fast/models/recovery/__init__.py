"""Methods of recovery: RoHyDR's, and what it is held against under the same extractor, fusion and classifier.

A name that ends in ``-style`` is written from the idea of a paper, and is not that paper's system.
"""

from collections.abc import Callable

from ...config import ModelConfig
from .base import Condition, Recovered, Recovery, Sequences, Supervision, Target
from .diffusion import DiffusionRecovery
from .fill import MeanFill, ZeroFill

__all__ = ["METHODS_HERE", "Condition", "Recovered", "Recovery", "Sequences", "Supervision", "Target", "make_recovery"]


def make_recovery(config: ModelConfig) -> Recovery:
    """The recovery of `config.method`; without HDDM (Table 3) it is zeros."""
    if "hddm" in config.without:
        return ZeroFill()
    return METHODS_HERE[config.method](config)


METHODS_HERE: dict[str, Callable[[ModelConfig], Recovery]] = {
    "rohydr": DiffusionRecovery,
    "zero": lambda config: ZeroFill(),
    "mean": lambda config: MeanFill(config.modalities, config.channels),
    "dropout": lambda config: Recovery(),
}
