"""How many reverse steps are enough, and by which sampler: recovered error, cosine and prediction against steps.

    python benchmarks/sampler_curve.py RUN [RUN ...] [--samplers ...] [--steps ...] [--json FILE] [--markdown FILE]

Each run, trained by `python -m rohydr_fast.train`, is evaluated on its validation split under its own missing pattern
by every sampler with every number of steps; the weights stay what they are. A standard error is that of the mean over
the clips of all runs. The smallest number of steps whose ACC2 is within one standard error of that of the largest one
is named for each sampler. The test split is not read.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

from rohydr_fast.config import SAMPLERS
from rohydr_fast.errors import RohydrError
from rohydr_fast.evaluation.predict import evaluation_missing, predict
from rohydr_fast.evaluation.recovery import recovery_quality
from rohydr_fast.training.experiment import config_from, missing_spec, read_dataset
from rohydr_fast.training.run_directory import RunDirectory
from rohydr_fast.training.trainer import load_model

STEPS = (1, 2, 3, 4, 5, 8, 10, 20, 50)


def measure(run: Path, samplers: list[str], steps: list[int]) -> dict[tuple[str, int], dict]:
    """(sampler, steps) -> whether each signed clip is right, absolute errors, and the quality of recovery."""
    directory = RunDirectory.open(run)
    config = config_from(directory.read_config(), directory)
    model, _ = load_model(directory.checkpoint("best"))
    dataset = read_dataset(config)
    split, found = dataset.valid, {}
    missing = evaluation_missing(missing_spec(config), split, model.config.modalities, seed=config.seed)
    signed = split.labels != 0
    for sampler in samplers:
        for count in steps:
            model.recovery.resample(sampler, count, None)
            predicted = predict(model, dataset, split, missing, seed=config.seed).mean
            quality = recovery_quality(model, dataset, split, missing, seed=config.seed).values()
            found[sampler, count] = {
                "right": ((predicted > 0) == (split.labels > 0))[signed].astype(float),
                "error": np.abs(predicted - split.labels),
                "mse": [one["relative_mse"] for one in quality],
                "cosine": [one["cosine"] for one in quality],
            }
    return found


def summarise(runs: list[dict]) -> list[dict]:
    """A row for each sampler and number of steps, over all runs."""
    rows = []
    for sampler, steps in runs[0]:
        parts = [run[sampler, steps] for run in runs]
        row = {"sampler": sampler, "steps": steps, "runs": len(runs)}
        for name, key in (("right", "ACC2"), ("error", "MAE")):
            values = np.concatenate([part[name] for part in parts])
            row[key] = float(values.mean())
            row[f"{key}_se"] = float(values.std(ddof=1) / math.sqrt(len(values)))
        for key in ("mse", "cosine"):
            row[key] = float(np.mean([value for part in parts for value in part[key]]))
        rows.append(row)
    return rows


def enough_steps(rows: list[dict]) -> dict[str, int]:
    """For each sampler, the smallest number of steps from which on ACC2 stays within one standard error of the most."""
    enough = {}
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        own = sorted((row for row in rows if row["sampler"] == sampler), key=lambda row: -row["steps"])
        least = own[0]["ACC2"] - own[0]["ACC2_se"]
        enough[sampler] = own[0]["steps"]
        for row in own:
            if row["ACC2"] < least:
                break
            enough[sampler] = row["steps"]
    return enough


def table(rows: list[dict], enough: dict[str, int]) -> str:
    """Markdown."""
    lines = ["| sampler | steps | ACC2 | MAE | mse | cosine |", "|---|---|---|---|---|---|"]
    for row in rows:
        mark = " *" if enough[row["sampler"]] == row["steps"] else ""
        lines.append(
            f"| {row['sampler']} | {row['steps']}{mark} | {100 * row['ACC2']:.2f} +- {100 * row['ACC2_se']:.2f} | "
            f"{row['MAE']:.3f} +- {row['MAE_se']:.3f} | {row['mse']:.3f} | {row['cosine']:.3f} |"
        )
    return "\n".join(lines) + "\n\n\\* from here on ACC2 is within one standard error of that of the most steps.\n"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        rows = summarise([measure(run, options.samplers, options.steps) for run in options.runs])
    except RohydrError as error:
        print(f"sampler_curve: error: {error}", file=sys.stderr)
        return error.exit_code
    enough = enough_steps(rows)
    text = table(rows, enough)
    print(text)
    if options.json:
        document = {"runs": [str(run) for run in options.runs], "rows": rows, "enough_steps": enough}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
