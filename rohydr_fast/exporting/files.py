"""Programs in files: ONNX for onnxruntime and others, .pt2 for torch. Each is run and compared before it is written."""

import contextlib
import copy
import importlib.util
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..errors import RohydrError, UsageError
from ..evaluation.predict import draw
from ..modalities import MODALITIES
from ..models.rohydr import RoHyDR
from ..training.run_directory import strict_json, write_atomic
from .program import Deployed, chosen, example_inputs, export_program, partner

TOLERANCE = 1e-4
"""Largest difference of a program from the model, relative to the largest number of an output, or to 1 if that is less.

Another order of sums gives some 1e-6 after 50 steps.
"""

OPSET = 18
"""The lowest that torch's exporter writes by itself: what runs most widely."""

METADATA = "rohydr_fast"
"""The key of what an ONNX file says of itself, and the name of the extra file in a .pt2: JSON, see `describe`."""

CASES = ((1, 11), (2, 12), (5, 13))
"""Clips and seeds of the comparisons; the numbers of tokens follow from the clips, and lengths are ragged."""

Shapes = dict[str, tuple[int | str, ...]]
"""By name; text names what may vary."""

Run = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""As `Deployed.forward`."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    inputs: Shapes
    outputs: Shapes
    error: float  # the largest difference from the model, see `TOLERANCE`


def save_onnx(model: RoHyDR, available: str | Iterable[str], path: str | os.PathLike) -> Exported:
    """Write an ONNX file, once onnxruntime has run it and given the model's numbers.

    Args:
        model: a trained one.
        available: the set of modalities that its clips have, such as ``"a,t"``.
        path: of the file; an older one is replaced in one step.

    Raises:
        UsageError: an impossible set, a method of recovery without a graph, or a package that is missing.
        RohydrError: the file's numbers are not the model's; nothing is written.
        OSError: it cannot be written.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    available = chosen(model, available)
    program = export_program(model, available)
    inputs, outputs = signature(model, available)
    with _quiet():
        proto = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            verbose=False,
        ).model_proto  # fmt: skip
    _tidy(proto, inputs | outputs)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, strict_json(describe(model, available), METADATA)
    content = proto.SerializeToString()
    error = difference(model, available, run_onnx(content))
    return _written(content, Exported(Path(path), inputs, outputs, error))


def save_program(model: RoHyDR, available: str | Iterable[str], path: str | os.PathLike) -> Exported:
    """Write what `export_program` gives as a .pt2 file for `torch.export.load`, once it has given the model's numbers.

    Arguments and errors as `save_onnx`.
    """
    available = chosen(model, available)
    program, buffer = export_program(model, available), io.BytesIO()
    extra = {f"{METADATA}.json": strict_json(describe(model, available), METADATA)}
    torch.export.save(program, buffer, extra_files=extra)
    buffer.seek(0)
    error = difference(model, available, torch.export.load(buffer).module())
    return _written(buffer.getvalue(), Exported(Path(path), *signature(model, available), error))


def describe(model: RoHyDR, available: tuple[str, ...]) -> dict:
    """What a file says of itself, as plain JSON."""
    config = model.config
    return {
        "version": __version__,
        "method": config.method,
        "available": list(available),
        "missing": [m for m in config.modalities if m not in available],
        "features": {m: config.dims[m] for m in available},
        "noise": "standard normal: of each chain x_K, then z_K to z_2; rohydr_fast.exporting.draw_noise gives that of "
        "a seed (Philox4x32-10) and of clips' ids",
        "prediction": "sentiment in the units of the labels of training",
        "classes": None if config.outputs == 1 else config.outputs,
        # Half the width of an interval meant to hold 80 % of the labels; None without calibration for this set.
        "interval_radius": model.calibration.get(",".join(available)),
        "origin": model.origin,
    }


@torch.no_grad()
def signature(model: RoHyDR, available: tuple[str, ...]) -> tuple[Shapes, Shapes]:
    """The inputs and outputs of a file, in their order."""
    features, lengths, noise, conversation = example = example_inputs(model, available, 2)
    channels = model.config.channels

    def tokens(m: str) -> int | str:
        aligned = partner(model, available, m)
        return model.config.recovery_lengths[m] if aligned is None else f"tokens_{aligned}"

    inputs: Shapes = {f"features_{m}": ("clips", f"tokens_{m}", model.config.dims[m]) for m in features}
    inputs |= {f"lengths_{m}": ("clips",) for m in lengths}
    inputs |= {f"noise_{m}": (len(rows), "clips", tokens(m), channels) for m, rows in noise.items()}
    inputs |= {} if conversation is None else {"conversation": ("clips", 2)}
    _, recovered = Deployed(model, available)(*example)
    outputs = {"prediction": ("clips",), **{f"recovered_{m}": ("clips", tokens(m), channels) for m in recovered}}
    return inputs, outputs


@torch.no_grad()
def difference(model: RoHyDR, available: tuple[str, ...], run: Run) -> float:
    """The largest difference of `run` from the model on random clips, relative as `TOLERANCE` says.

    Raises:
        RohydrError: it is larger than that.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    worst = 0.0
    for clips, seed in CASES:
        features, lengths, noise, conversation = example_inputs(model, available, clips, seed)
        given = {
            "x": {m: features.get(m, torch.zeros(clips, 1, size)) for m, size in model.config.dims.items()},
            "lengths": {m: lengths.get(m, torch.zeros(clips, dtype=torch.int64)) for m in model.config.modalities},
            "missing": torch.tensor([[m not in available for m in MODALITIES]]).expand(clips, -1),
            "sample_ids": torch.arange(clips),
            "conversation": conversation,
        }
        recovered, prediction = next(draw(model, given, seed=seed, samples=1))
        found, found_recovered = run(features, lengths, noise, conversation)
        pairs = [(found, prediction)]
        for m, (_, x, _) in recovered.items():
            tokens = x.x.shape[1]  # the model's ends with the longest clip, the program's with the padding
            pairs += [(found_recovered[m][:, :tokens], x.x), (found_recovered[m][:, tokens:], torch.zeros(1))]
        for one, other in pairs:
            if one.numel():
                distance = float((one - other).abs().max()) / max(1.0, float(other.abs().max()))
                worst = max(worst, distance if math.isfinite(distance) else math.inf)
    if worst > TOLERANCE:
        raise RohydrError(
            f"export: the program must give the model's numbers within {TOLERANCE:g}, got a difference of {worst:.2g}. "
            "Nothing was written: try another version of torch or onnxruntime."
        )
    return worst


def run_onnx(content: bytes) -> Run:
    """An ONNX file as a function of torch's tensors, by onnxruntime with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(features, lengths, noise, conversation=None) -> tuple[Tensor, dict[str, Tensor]]:
        kinds = {"features": features, "lengths": lengths, "noise": noise}
        feeds = {f"{kind}_{m}": x.numpy() for kind, values in kinds.items() for m, x in values.items()}
        feeds |= {} if conversation is None else {"conversation": conversation.numpy()}
        prediction, *others = map(torch.from_numpy, session.run(names, feeds))
        return prediction, {name.rpartition("_")[2]: x for name, x in zip(names[1:], others, strict=True)}

    return run


def _written(content: bytes, exported: Exported) -> Exported:
    exported.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(exported.path, content)
    return exported


def _tidy(proto, shapes: Shapes) -> None:
    """Name the sizes that may vary, and take out what the exporter tells of the program that it came from.

    That is where each operation stood in which file, and shapes that a runtime finds by itself.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        for size, name in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            if isinstance(name, str):
                size.dim_param = name
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        del graph.value_info[:]
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            del part.metadata_props[:]
            part.ClearField("doc_string")
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]


def _require(*packages: str) -> None:
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    if lacking:
        raise UsageError(
            f"export: ONNX files need {', '.join(packages)}, got no {lacking[0]}. "
            'Run: pip install "rohydr_fast[onnx]", or write a .pt2 file.'
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of packages that it does without, and of its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
