"""Trained models for use elsewhere: a directory with config.json, model.safetensors and a model card.

Both files are data: nothing in them is executed. config.json names the SHA-256 of the weights and of itself.
"""

import json
import os
from pathlib import Path

import safetensors.torch

from . import __version__
from .config import METHOD_TITLES
from .data.loading import is_synthetic
from .errors import DataError, FileAccessError, UsageError
from .models.rohydr import RoHyDR
from .training.checkpoint import MANIFEST, describe, parse_tensors
from .training.experiment import config_from
from .training.run_directory import CONFIG as RUN_CONFIG
from .training.run_directory import RunDirectory, read_document, strict_json, write_atomic
from .training.trainer import load_model, model_of, tensors_of

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1

METRICS = {
    "Non0_acc_2": "ACC2 (Non0)",
    "Non0_F1_score": "F1 (Non0)",
    "Mult_acc_7": "ACC7",
    "MAE": "MAE",
    "Corr": "Corr",
}
"""What the model card tells, and its headings."""


def load(source: str | os.PathLike, *, revision: str | None = None, device: str = "cpu") -> RoHyDR:
    """A trained model in evaluation mode, with its calibration and origin.

    Args:
        source: a run of `python -m rohydr_fast.train`, a checkpoint of one, a directory of `save`, or, when there is no
            such directory, the name of a model on the Hugging Face hub (``pip install "rohydr_fast[hub]"``).
        revision: branch, tag or commit on the hub.
        device: torch device.

    Raises:
        FileAccessError: there is no such directory, and no such model.
        DataError: a file is missing, damaged, or of another version.
        UsageError: a name on the hub without the extra that can fetch it.
    """
    path = Path(source)
    if not path.is_dir():
        path = _from_hub(str(source), revision)
    if (path / RUN_CONFIG).is_file():
        model = _of_run(RunDirectory.open(path))
    elif (path / MANIFEST).is_file():
        model, _ = load_model(path)
    else:
        model = _of_directory(path)
    return model.to(device).eval()


def save(model: RoHyDR, directory: str | os.PathLike) -> None:
    """Write the model and its card; `load` gives the same model, bit for bit.

    Of an older save in `directory` these files are replaced, and a save that is broken off is noticed by `load`.

    Raises:
        UsageError: `directory` is a file, or holds a run.
        OSError: it cannot be written.
    """
    directory = Path(directory)
    if (directory.exists() and not directory.is_dir()) or (directory / RUN_CONFIG).exists():
        raise UsageError(
            f"save_pretrained: must be given a directory for the model, got {directory}, which is a file or a run. "
            "Use another one."
        )
    weights = safetensors.torch.save(tensors_of(model))
    document = {
        "format": FORMAT,
        "rohydr_fast": __version__,
        "model": model.config.to_dict(),
        "calibration": model.calibration,
        "origin": model.origin,
        "weights": describe(weights),
    }
    strict_json(document, CONFIG)  # refuses what JSON cannot hold
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / WEIGHTS, weights)
    write_atomic(directory / CONFIG, _text(document).encode())
    write_atomic(directory / CARD, card(model).encode())


def card(model: RoHyDR) -> str:
    """The model card: what it is, on what it was trained, what it reached, how to use it."""
    config, origin = model.config, model.origin
    sizes = ", ".join(f"{m} {config.dims[m]}" for m in config.modalities)
    lines = [
        "---",
        "library_name: rohydr_fast",
        "tags: [emotion-recognition, multimodal, missing-modality, diffusion]",
        "---",
        f"# {METHOD_TITLES[config.method]} for sentiment with missing modalities",
        "",
        f"Modalities and channels of their features: {sizes}. C = {config.channels}, W = {config.width}, "
        f"L = {config.blocks}, H = {config.heads}, K = {config.chain_steps}.",
        "",
    ]
    if origin:
        data = origin["data"]
        lines += [
            f"Trained on {data['name']} (SHA-256 {data['sha256'][:12]}), missing pattern {origin['missing']}, "
            f"seed {origin['seed']}; the epoch was chosen on the validation split.",
            "",
            "| split | " + " | ".join(METRICS.values()) + " | clips |",
            "|---|" + "---|" * (len(METRICS) + 1),
        ]
        for split in ("valid", "test"):
            values = origin["metrics"][split]
            cells = ["-" if values.get(name) is None else f"{values[name]:.4f}" for name in METRICS]
            lines.append(f"| {split} | " + " | ".join(cells) + f" | {values['n']} |")
        lines.append("")
    lines += [
        "```python",
        "import rohydr_fast as rf",
        "",
        'model = rf.RoHyDR.from_pretrained("path or name of this model")',
        'found = model.recover(features, available="' + ",".join(config.modalities[:2]) + '", samples=8)',
        "found.prediction, found.low, found.high   # (B,) each; features: modality -> (B, T, D)",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _of_run(run: RunDirectory) -> RoHyDR:
    """The best checkpoint of a run, with what the run says of itself."""
    model, state = load_model(run.checkpoint("best"))
    config = config_from(run.read_config(), run)
    if (run.path / "metrics.json").exists():  # written last: else the run was broken off
        calibration = run.path / "calibration.json"
        result, model.calibration = (
            read_document(run.path / "metrics.json"),
            _calibration(read_document(calibration), calibration),
        )
        model.origin = {
            "data": {
                "name": config.data if is_synthetic(config.data) else Path(config.data).name,
                "sha256": state["data_sha256"],
            },
            "missing": result.get("missing"),
            "seed": config.seed,
            "metrics": {split: result.get(split) for split in ("valid", "test")},
        }
    return model


def _of_directory(path: Path) -> RoHyDR:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise DataError(
                f"{path}: must hold a trained model, got no {name}. Name a run, or what save_pretrained wrote."
            )
    document = read_document(path / CONFIG)
    if document.get("format") != FORMAT:
        raise DataError(
            f"{path / CONFIG}: must have the format {FORMAT}, got {document.get('format')!r}. "
            "Save the model with this version."
        )
    known = document.pop("sha256", None)
    if known != _digest(document) or (path / CONFIG).read_text("utf-8") != _text(document):
        raise DataError(f"{path / CONFIG}: must be as save_pretrained wrote it, got a change. Get it again.")
    try:
        return _described(document, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / CONFIG}: its entries must be those that save_pretrained writes ({error}).") from None


def _described(document: dict, path: Path) -> RoHyDR:
    """The model that config.json describes."""
    weights = document["weights"]
    size = (path / WEIGHTS).stat().st_size
    content = (path / WEIGHTS).read_bytes() if size == weights["size"] else b""
    if describe(content) != weights:
        raise DataError(
            f"{path / WEIGHTS}: must be the weights that {CONFIG} names, got others ({size} bytes). Get both again."
        )
    model = model_of(document["model"], parse_tensors(content, path / WEIGHTS), path)
    model.calibration, model.origin = _calibration(document["calibration"], path / CONFIG), document["origin"]
    if not isinstance(model.origin, dict):
        raise TypeError(f"origin is {model.origin!r}")
    card(model)  # an origin that no card can be made of is none
    return model


def _calibration(values: dict, path: Path) -> dict[str, float]:
    if not all(isinstance(value, float) and value >= 0 for value in values.values()):
        raise DataError(f"{path}: its calibration must be a width for each set of modalities. Restore the file.")
    return values


def _text(document: dict) -> str:
    """config.json, the one way to write it: a changed digit that means the same number is a change as well."""
    return json.dumps({**document, "sha256": _digest(document)}, indent=1) + "\n"


def _digest(document: dict) -> str:
    """Of everything in config.json but this."""
    return describe(json.dumps(document, indent=1).encode())["sha256"]


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        huggingface_hub = None
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or huggingface_hub is None:
        hint = "" if huggingface_hub else ' For a model on the Hugging Face hub: pip install "rohydr_fast[hub]".'
        raise FileAccessError(
            f"{name}: must be the directory of a trained model, got no directory. Check the path.{hint}"
        )
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileAccessError(
            f"{name}: is no directory here, and the hub does not give it ({reason}). Check both."
        ) from None
