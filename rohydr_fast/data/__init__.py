"""Data: MMSA files read safely, synthetic data, missing patterns."""

from .dataset import Batch, Dataset, Split, collate, epoch_order, load, stable_sample_id

__all__ = ["Batch", "Dataset", "Split", "collate", "epoch_order", "load", "stable_sample_id"]
