"""An exported model against the model itself: seconds to export, bytes, and milliseconds for one clip.

    python benchmarks/exported.py [--preset tiny paper] [--available a,t] [--rounds 30] [--threads 1]

The export compares its file with the model and writes none that differs. Calls of all ways alternate; medians are
given, with the fifth and the four fifths of the way through. Weights are random; times do not depend on them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from presets import randomise

import rohydr_fast
from rohydr_fast.config import TrainConfig
from rohydr_fast.data import collate, load
from rohydr_fast.evaluation.tables import markdown
from rohydr_fast.exporting import draw_noise, save_onnx
from rohydr_fast.exporting.files import run_onnx
from rohydr_fast.training.trainer import build_model

WARM_UP = 2


def row(preset: str, available: str, rounds: int) -> list[str]:
    """The cells of one preset."""
    dataset = load("synthetic:64/8/8")
    model = build_model(TrainConfig(preset=preset).model_config(dataset), 0, dataset).eval()
    with torch.no_grad():
        randomise(model, torch.Generator().manual_seed(1))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = save_onnx(model, available, Path(folder) / "model.onnx")
        seconds, content = time.perf_counter() - started, made.path.read_bytes()
    run, batch = run_onnx(content), collate(dataset.test, [0], "atv")
    features, lengths = ({m: part[m] for m in available.split(",")} for part in (batch.x, batch.lengths))
    noise = draw_noise(model, available, features, batch.sample_id)

    def recover(backend: str) -> None:
        with rohydr_fast.backend(backend):
            model.recover(batch, available)

    ways = [lambda: run(features, lengths, noise), lambda: recover("cpp"), lambda: recover("reference")]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(WARM_UP + rounds):
        for way, own in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            own.append(1e3 * (time.perf_counter() - started))
    name = f"{preset}, K = {model.config.chain_steps}"
    sizes = [f"{seconds:.0f} s", f"{len(content) / 1e6:.2f} MB", f"{made.error:.1e}"]
    return [name, *sizes, *(_spread(own[WARM_UP:]) for own in times)]


def _spread(times: list[float]) -> str:
    ordered = sorted(times)
    low, high = (ordered[int(share * len(ordered))] for share in (0.2, 0.8))
    return f"{statistics.median(ordered):.1f} ms ({low:.1f} to {high:.1f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["tiny", "paper"])
    parser.add_argument("--available", default="a,t")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = ["preset", "to export", "file", "difference", "onnxruntime", "recover (cpp)", "recover (reference)"]
    print(markdown(header, [row(preset, options.available, options.rounds) for preset in options.preset], 1))


if __name__ == "__main__":
    main()
