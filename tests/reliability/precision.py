"""Training under bfloat16 autocast follows training in float32."""

import json
import statistics
import tempfile
from pathlib import Path

from .runs import train_here

BATCHES = 20
"""Of an epoch."""
TOLERANCE = 0.05
"""For the middle one of all batches: single ones spike, in both, and rounding decides when."""
STAGES = ("S1", "S2", "S3")


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` batches, in whole epochs, in both precisions."""
    epochs = max(1, count // BATCHES)
    with tempfile.TemporaryDirectory() as name:
        losses = [_losses(Path(name) / precision, precision, epochs, seed) for precision in ("float32", "bf16")]
    told = {}
    for stage in STAGES:
        distances = [abs(other / one - 1) for one, other in zip(*(rows[stage] for rows in losses), strict=True)]
        middle = statistics.median(distances)
        assert middle <= TOLERANCE, f"{stage} of seed {seed} differs by {middle:.3f}"
        told[f"{stage} differs by"] = f"{100 * middle:.1f} %"
    return {"batches": len(losses[0]["S1"]), **told}


def _losses(out: Path, precision: str, epochs: int, seed: int) -> dict[str, list[float]]:
    data = ["--data", f"synthetic:{32 * BATCHES}/64/64", "--epochs", str(epochs), "--patience", "0", "--dropout", "0"]
    code, errors = train_here(*data, "--seed", str(seed), "--precision", precision, "--out", str(out))
    assert code == 0, errors
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {stage: [row[stage] for row in rows if row["kind"] == "step"] for stage in STAGES}
