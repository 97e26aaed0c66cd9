"""Run directories as training and evaluation leave them, with made-up predictions and without a model."""

import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rohydr_fast.config import TrainConfig
from rohydr_fast.data.missing_spec import MissingSpec
from rohydr_fast.evaluation.metrics import metrics
from rohydr_fast.evaluation.protocols import protocol_rows
from rohydr_fast.training.run_directory import RunDirectory

CLIPS = 60
SHA256 = "5a" * 32


def clip_labels(clips: int = CLIPS) -> np.ndarray:
    """(N,) float32; some are 0, and all classes occur."""
    return np.round(np.linspace(-3, 3, clips) * 2).astype(np.float32) / 2


def write_run(
    path: Path,
    *,
    seed: int = 1,
    evaluate: tuple[str, ...] = ("rates", "fixed"),
    noise: float = 1.0,
    clips: int = CLIPS,
    sha256: str = SHA256,
    source: str = "synthetic",
    modalities: tuple[str, ...] = ("a", "t", "v"),
    samples: int = 1,
    prefix: str = "clip_",
    extra: dict | None = None,
    finished: bool = True,
    speeds: tuple[float | None, ...] = (100.0,),
    **config,
) -> Path:
    """Write a run of `config` (TrainConfig's names; others are stored as they are) and return its path.

    Predictions are the labels plus normal noise of `noise` * (1 + the realised rate), which depend on seed, method and
    condition; missing patterns depend on seed and condition only, as those of evaluation do.

    Args:
        evaluate: protocols to evaluate, with `samples` recoveries each.
        speeds: clips a second of each process that trained it.
        extra: what every row of an evaluation says beside its metrics.
    """
    known = TrainConfig.__dataclass_fields__
    parsed = TrainConfig(seed=seed, data=source, **{key: value for key, value in config.items() if key in known})
    spec = MissingSpec.parse(parsed.protocol, parsed.missing_rate, parsed.available)
    run = RunDirectory.create(path, "run")
    run.write_config({**asdict(parsed), **config})
    environment = {"rohydr_fast": "0.1.0", "commit": "c0ffee", "dirty": False, "cpu": "A CPU", "torch": "2.13.0"}
    run.write_environment({**environment, "data": {"source": source, "sha256": sha256}})
    character = "/".join(map(str, (config.get("method"), parsed.without, parsed.strategy, parsed.lambda_g)))

    def row(stem: str, name: str, split: str = "test") -> dict:
        missing = missing_pattern(seed, name, clips, modalities)
        rate = missing[:, ["atv".index(m) for m in modalities]].mean()
        generator = np.random.default_rng([seed, zlib.crc32(f"{character}/{stem}/{split}".encode())])
        labels = clip_labels(clips)
        prediction = (labels + generator.normal(0, noise * (1 + rate), clips)).astype(np.float32)
        ids = [f"{prefix}{i}" for i in range(clips)]
        stored = {"id": ids, "label": labels, "prediction": prediction, "std": 0 * labels, "missing": missing}
        run.write_predictions(split, stem, stored)
        return {"realised_missing_rate": float(rate), **metrics(prediction, labels)}

    for epoch in range(1, 4):
        valid = {"Non0_acc_2": 0.5 + 0.1 * epoch + 0.01 * seed, "MAE": 1 / epoch}
        train = {"L_C1": 2 / epoch + 0.1 * seed, "L_C2": 1 / epoch, "S1": 1.0}
        run.append({"kind": "step", "epoch": epoch, "batch": 0, "L_C1": 1.0})
        run.append({"kind": "epoch", "epoch": epoch, "train": train, "valid": valid, "best": True})
    best = run.checkpoint("best")
    best.mkdir(parents=True)
    (best / "state.json").write_text('{"model": {"modalities": ["' + '", "'.join(modalities) + '"]}}')
    if not finished:
        return path
    test, valid = row(spec.name, spec.name), row(spec.name, spec.name, "valid")
    rate = test.pop("realised_missing_rate")
    del valid["realised_missing_rate"]
    result = {"run_dir": str(path), "missing": spec.name, "seed": seed, "epochs": 3, "best_epoch": 3}
    run.write_metrics({**result, "realised_missing_rate": rate, "valid": valid, "test": test})
    for speed in speeds:
        run.append_timing({"seconds": 1.0, "train_samples_per_s": speed})
    drawn = f"-samples{samples}" if samples > 1 else ""
    for protocol in evaluate:
        names = [name for name, _ in protocol_rows(protocol, modalities)]
        rows = {name: {**row(f"{protocol}-{name}{drawn}", name), **(extra or {})} for name in names}
        document = {"protocol": protocol, "split": "test", "checkpoint": "best", "samples": samples, "seed": seed}
        document["suffix"] = drawn
        run.write_evaluation(f"{protocol}-test{drawn}", {"run_dir": str(path), **document, "rows": rows}, "")
    return path


def missing_pattern(seed: int, name: str, clips: int, modalities: tuple[str, ...]) -> np.ndarray:
    """(N, 3) bool; every clip keeps something."""
    missing = np.zeros((clips, 3), bool)
    if name.startswith("{"):
        missing[:] = [m not in name for m in "atv"]
    else:
        rate = float(name.partition(" ")[2] or 0.5)
        generator = np.random.default_rng([seed, round(1000 * rate)])
        order = generator.permuted(np.tile([0, 1, 2], (clips, 1)), axis=1)
        count = np.minimum(generator.binomial(3, rate, clips), 2)
        missing = order < count[:, None]
    missing[:, [i for i, m in enumerate("atv") if m not in modalities]] = True
    return missing


def sweep(root: Path, methods: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3), **config) -> Path:
    """A run for each method (noise of its predictions) and seed, below `root`."""
    for method, noise in methods.items():
        for seed in seeds:
            write_run(root / method / f"seed{seed}", seed=seed, noise=noise, method=method, **config)
    return root
