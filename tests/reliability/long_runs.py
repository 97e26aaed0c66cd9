"""Long training from several seeds: no loss, norm, weight or prediction that is not finite."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np

from rohydr_fast.training.checkpoint import load_checkpoint

from .runs import train_here

EPOCHS = 30


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` seeds, each trained for `EPOCHS` epochs of two batches."""
    steps = 0
    for own in range(seed, seed + count):
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "run"
            options = ["--data", "synthetic:64/32/32", "--epochs", str(EPOCHS), "--patience", "0", "--seed", str(own)]
            code, errors = train_here(*options, "--out", str(out))
            assert code == 0, f"seed {own}: {errors}"
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            steps += sum(row["kind"] == "step" for row in rows)
            numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
            assert all(map(math.isfinite, numbers)), f"seed {own}: a loss or norm is not finite"
            tensors = load_checkpoint(out / "checkpoints" / "last")[0]["model"].values()
            assert all(bool(t.isfinite().all()) for t in tensors), f"seed {own}: a weight is not finite"
            for path in (out / "predictions").glob("*.npz"):
                assert np.isfinite(np.load(path)["prediction"]).all(), f"seed {own}: a prediction is not finite"
    return {"seeds": count, "epochs": count * EPOCHS, "batches": steps}
