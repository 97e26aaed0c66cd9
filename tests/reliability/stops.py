"""Runs that are stopped in every (epoch, batch, stage) and resumed end as if they had never been stopped."""

import io
import math
import random
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from rohydr_fast.config import METHODS, STRATEGIES, TrainConfig
from rohydr_fast.training.experiment import resume, start
from rohydr_fast.training.interrupt import Interrupted
from rohydr_fast.training.stages import StageRunner
from tests.small_data import small_dataset
from tests.training.interrupting import signal_in_stage

from .runs import assert_same, results

SETTINGS = dict(epochs=2, batch_size=4, steps=2)  # 10 clips: 3 batches of up to 3 stages
VARIANTS = [
    *({"strategy": strategy} for strategy in STRATEGIES),
    *({"method": method} for method in METHODS if method != TrainConfig.method),
    {"warm_up": 1},
    {"draws": 2},
    {"anchor": "regress"},
    {"protocol": "batch-table"},
    {"outputs": 7},
]


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` of these moments, drawn from `seed` and shared out among the settings; all, where it is as large."""
    generator = random.Random(seed)
    variants = [{**variant, "ema": ema} for variant in VARIANTS for ema in (0.0, 0.9)]
    share = math.ceil(count / len(variants))
    counts = {"settings": 0, "moments": 0, "stopped and resumed": 0}
    for variant in generator.sample(variants, min(count, len(variants))):
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            config = TrainConfig(**SETTINGS, **variant)
            with signal_in_stage(StageRunner, 0) as begun:
                start(config, Path(folder) / "whole", small_dataset())
            expected, moments = results(Path(folder) / "whole"), begun[0]
            for moment in sorted(generator.sample(range(1, moments + 1), min(share, moments))):
                where = f"{variant}, stopped in stage {moment} of {moments}"
                assert_same(_stopped_and_resumed(config, Path(folder) / f"stop{moment}", moment), expected, where)
                counts["stopped and resumed"] += 1
        counts["settings"] += 1
        counts["moments"] += moments
    return counts


def _stopped_and_resumed(config: TrainConfig, out: Path, moment: int) -> dict[str, bytes]:
    try:
        with signal_in_stage(StageRunner, moment):
            start(config, out, small_dataset())
    except Interrupted:
        resume(out, small_dataset())
        return results(out)
    raise AssertionError(f"{config}: the signal in stage {moment} did not stop it")
