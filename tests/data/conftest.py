"""Small data sets in the MMSA schema, and the place where real files may lie."""

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def real_file():
    """A function that gives the path of a real file, or skips the test with the reason."""

    def find(name):
        path = SHARED / name
        if not path.is_file():
            pytest.skip(f"the real data file {name} is not on this machine")
        return str(path)

    return find


@pytest.fixture
def make_tree():
    """A function that builds a valid tree: trailing padding, lengths 1..T, labels in fifths."""

    def build(clips=(6, 4, 5), steps=7, dims=(("audio", 3), ("text", 4), ("vision", 2)), dtype="float32", **more):
        rng = np.random.default_rng(0)
        tree = {}
        for name, count in zip(("train", "valid", "test"), clips, strict=True):
            lengths = rng.integers(1, steps + 1, count)
            real = np.arange(steps) < lengths[:, None]
            split = {key: (rng.normal(size=(count, steps, d)) * real[..., None]).astype(dtype) for key, d in dims}
            split["id"] = np.array([f"{name}$_${row}" for row in range(count)])
            split["raw_text"] = np.array([f"clip {row}" for row in range(count)])
            split["regression_labels"] = np.round(rng.uniform(-3, 3, count) * 5) / 5
            tree[name] = split | {key: make(count) for key, make in more.items()}
            tree[name]["_lengths"] = lengths
        return {name: {key: v for key, v in split.items() if key != "_lengths"} for name, split in tree.items()}

    return build
