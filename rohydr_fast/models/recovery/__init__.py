"""Methods of recovery: RoHyDR's, and what it is held against under the same extractor, fusion and classifier.

A name that ends in ``-style`` is written from the idea of a paper, and is not that paper's system.
"""

from ...config import ModelConfig
from .anchored import AnchoredRecovery
from .base import Condition, Recovered, Recovery, Sequences, Supervision, Target
from .dicmor import FlowRecovery
from .diffusion import DiffusionRecovery
from .fill import MeanFill, ModalityDropout, ZeroFill
from .gcnet import GraphRecovery
from .imder import ScoreRecovery
from .mmin import ImaginationRecovery
from .mtmsa import TranslationRecovery
from .regress import RegressionRecovery
from .smcmsa import SimilarSampleRecovery

__all__ = [
    "METHOD_CLASSES",
    "Condition",
    "DiffusionRecovery",
    "Recovered",
    "Recovery",
    "Sequences",
    "Supervision",
    "Target",
    "make_recovery",
    "recovery_class",
]


def make_recovery(config: ModelConfig) -> Recovery:
    """The recovery that `config` describes."""
    return recovery_class(config)(config)


def recovery_class(config: ModelConfig) -> type[Recovery]:
    """That of `config.method`; without HDDM (Table 3) it is zeros."""
    if "hddm" in config.without:
        return ZeroFill
    if config.anchor == "regress":
        return AnchoredRecovery
    return METHOD_CLASSES[config.method]


METHOD_CLASSES: dict[str, type[Recovery]] = {
    "rohydr": DiffusionRecovery,
    "zero": ZeroFill,
    "mean": MeanFill,
    "dropout": ModalityDropout,
    "regress": RegressionRecovery,
    "mmin": ImaginationRecovery,
    "gcnet": GraphRecovery,
    "imder": ScoreRecovery,
    "dicmor": FlowRecovery,
    "mtmsa": TranslationRecovery,
    "smcmsa": SimilarSampleRecovery,
}
