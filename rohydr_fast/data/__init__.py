"""Data: MMSA files read safely, synthetic data, missing patterns."""

from .dataset import Batch, Dataset, Split, collate, epoch_order, stable_sample_id
from .loading import load

__all__ = ["Batch", "Dataset", "Split", "collate", "epoch_order", "load", "stable_sample_id"]
