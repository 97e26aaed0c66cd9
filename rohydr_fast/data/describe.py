"""What a data set holds, as a dict for programs and as tables for people."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..modalities import FILE_KEYS, MODALITIES
from .dataset import Dataset, Split
from .mmsa import SPLITS, Findings
from .scan import statistics

# MMSA's README prints the digests of its files; their first and last digits.
_PUBLISHED = {
    "MOSI aligned_50": ("d3994fd2", "02e5f9"),
    "MOSI unaligned_50": ("78e0f8b5", "e02524"),
    "MOSEI aligned_50": ("45eccfb7", "20bf791"),
    "MOSEI unaligned_50": ("ad8b23d5", "fec1f"),
}
LABEL_CLASSES = tuple(range(-3, 4))
CLASS_NAMES = ("-3", "-2", "-1", "0", "+1", "+2", "+3")


def published_name(sha256: str) -> str | None:
    """Which of MMSA's published files has this digest, as far as its printed digits tell."""
    for name, (first, last) in _PUBLISHED.items():
        if sha256.startswith(first) and sha256.endswith(last):
            return name
    return None


def summary(dataset: Dataset, findings: Findings | None = None, *, with_statistics: bool = False) -> dict[str, Any]:
    """Sizes, lengths, labels and findings of all splits, ready for JSON.

    Args:
        dataset: what to describe.
        findings: of the checks, for a file.
        with_statistics: also mean, deviation and range of the features over real tokens (one more pass over the file).
    """
    result: dict[str, Any] = {
        "file": dataset.source,
        "name": dataset.name,
        "sha256": dataset.sha256,
        "published": published_name(dataset.sha256),
        "modalities": list(dataset.modalities()),
        "aligned_groups": [list(group) for group in dataset.aligned_groups()],
        "notes": list(dataset.notes),
        "splits": {
            name: _split(getattr(dataset, name), dataset.nonfinite_zeroed, with_statistics) for name in SPLITS
        },
    }
    if findings is not None:
        result["duplicate_ids"] = findings.duplicate_ids
        result["shared_ids"] = findings.shared_ids
        result["made_ids"] = findings.made_ids
        result["nonfinite"] = {f"{name}/{key}": kinds for (name, key), kinds in findings.nonfinite.items()}
        for (name, key), where in findings.length_sources.items():
            result["splits"][name]["features"][key]["lengths_from"] = where
    return result


def _split(split: Split, zero_nonfinite: bool, with_statistics: bool) -> dict[str, Any]:
    features = {}
    for m in MODALITIES:
        array, lengths = split.features[m], split.lengths[m]
        real = lengths[lengths > 0]
        quartiles = np.quantile(real, (0, 0.25, 0.5, 0.75, 1)) if len(real) else np.zeros(5)
        entry: dict[str, Any] = {
            "steps": int(array.shape[1]),
            "dim": int(array.shape[2]),
            "dtype": str(array.dtype),
            "absent": int((lengths == 0).sum()),
            "length_quartiles": [float(value) for value in quartiles],
        }
        if with_statistics:
            found = statistics(array, split.starts[m], lengths, zero_nonfinite)
            mean = float(found.mean.mean())
            spread = float(np.sqrt(np.mean(found.std**2 + (found.mean - mean) ** 2)))  # over all channels together
            low, high = float(found.minimum.min()), float(found.maximum.max())
            entry |= {"mean": mean, "std": spread, "min": low, "max": high, "tokens": found.count}
        features[FILE_KEYS[m]] = entry
    classes = np.round(split.labels).astype(int)
    return {
        "clips": len(split),
        "features": features,
        "labels": {
            "mean": float(split.labels.mean(dtype=np.float64)),
            "min": float(split.labels.min()),
            "max": float(split.labels.max()),
            "zero": int((split.labels == 0).sum()),
            "histogram": {str(value): int((classes == value).sum()) for value in LABEL_CLASSES},
        },
    }


def feature_table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row for each split and modality."""
    with_statistics = "mean" in document["splits"]["train"]["features"]["audio"]
    header = ["split", "modality", "N", "T", "D", "type", "absent", "real length: min / quartiles / max"]
    header += ["mean", "std", "min", "max"] if with_statistics else []
    rows = []
    for name, split in document["splits"].items():
        for key, entry in split["features"].items():
            lengths = " / ".join(f"{value:g}" for value in entry["length_quartiles"])
            sizes = [str(split["clips"]), str(entry["steps"]), str(entry["dim"]), entry["dtype"], str(entry["absent"])]
            row = [name, key, *sizes, lengths if any(entry["length_quartiles"]) else "-"]
            row += [f"{entry[word]:.4g}" for word in ("mean", "std", "min", "max")] if with_statistics else []
            rows.append(row)
    return header, rows


def label_table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: labels per split, with the counts of the seven rounded classes."""
    header = ["split", "label mean", "min", "max", "exactly 0", *CLASS_NAMES]
    rows = []
    for name, split in document["splits"].items():
        labels = split["labels"]
        counts = [str(labels["histogram"][str(value)]) for value in LABEL_CLASSES]
        numbers = [f"{labels[word]:.3f}" for word in ("mean", "min", "max")]
        rows.append([name, *numbers, str(labels["zero"]), *counts])
    return header, rows


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal, aligned columns of plain text otherwise."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    for line in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
