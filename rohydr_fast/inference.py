"""What a trained model says of clips with missing modalities: a prediction, how sure it is, and what was recovered."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .data.dataset import Batch, Dataset, Split, collate
from .data.lengths import spans
from .distributed import team
from .errors import DataError, UsageError
from .evaluation.predict import batches, draw, inputs
from .evaluation.uncertainty import interval_of_draws
from .modalities import MODALITIES, NAMES, parse_available
from .models.recovery import Recovered
from .models.rohydr import RoHyDR, pad_tokens
from .models.sequences import Sequence, token_mask

BATCH = 64
"""Clips that `infer_split` takes at a time."""


@dataclass(frozen=True)
class Inference:
    """The result for B clips and K draws; tensors are on the CPU."""

    prediction: Tensor  # (B,) sentiment in the units of the labels, the mean over draws
    low: Tensor | None  # (B,) lower end of an interval meant to hold 80 % of the labels; None without calibration
    high: Tensor | None  # (B,)
    draws: Tensor  # (B, K) the prediction of each draw
    draws_low: Tensor  # (B,) the middle 80 % of the draws: what recovery alone leaves open
    draws_high: Tensor  # (B,)
    recovered: dict[str, Recovered]  # modality -> rows (R,) of the batch that lack it, and x_rec, the mean over draws


@torch.no_grad()
def infer(
    model: RoHyDR,
    batch: Batch | Mapping,
    available: str | Tensor | np.ndarray | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
) -> Inference:
    """Recover what is missing of a batch of clips, `samples` times, and predict the sentiment.

    Args:
        model: a trained one; it is put into evaluation mode for the call.
        batch: of `data.collate`; or modality (a, t, v or audio, text, vision) -> (B, T, D) features, real rows first
            or last, padded with rows of zeros; a modality that all clips lack can be left out.
        available: a set such as ``"a,t"`` for all clips, or (B, 3) bool for each; by default all that the batch has.
            What is not available is not read.
        samples: recoveries drawn for each clip.
        seed: with the clips' ids (their rows, for features without ids) the key of all noise.

    Raises:
        UsageError: features of another shape than the model's, NaN in what would be read, a clip with nothing
            available, fewer than one sample.
    """
    if samples < 1:
        raise UsageError(f"recover: samples must be 1 or more, got {samples}. Use for example samples=8.")
    if not isinstance(batch, Batch):
        batch = as_batch(batch)
    batch = _of_model(model, batch)
    missing = _missing(model, batch, available)
    _check_finite(batch, missing)
    given = inputs(batch, missing, next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        results = list(draw(model, given, seed=seed, samples=samples))
    finally:
        model.train(training)
    draws = torch.stack([prediction.cpu() for _, prediction in results], 1).expand(-1, samples)
    radius = _radius(model, missing)
    mean = draws.mean(1)
    draws_low, draws_high = (torch.from_numpy(end.astype(np.float32)) for end in interval_of_draws(draws.numpy()))
    return Inference(
        prediction=mean,
        low=None if radius is None else mean - radius,
        high=None if radius is None else mean + radius,
        draws=draws,
        draws_low=draws_low,
        draws_high=draws_high,
        recovered={m: _mean([recovered[m] for recovered, _ in results]) for m in results[0][0]},
    )


def infer_split(
    model: RoHyDR, dataset: Dataset, split: Split, available: str | None = None, *, samples: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """`infer` for all N clips of a split, by name. Several processes take batches in turn; the first gets the result.

    Returns:
        prediction, std, draws_low, draws_high and label (N,); low and high (N,) of a calibrated model; and for each
        recovered modality m: rows_m (R,) clips of the split, lengths_m (R,), recovered_m (R, T, C).

    Raises:
        DataError: features of another width than the model was trained on.
    """
    found = dataset.dims()
    for m in model.config.modalities:
        if (split.lengths[m] > 0).any() and found[m] != model.config.dims[m]:
            raise DataError(f"{dataset.source}: {_another_width(model, m, found[m])}")
    parts: dict[str, list[Tensor]] = {}
    own = [_infer_rows(model, dataset, split, rows, available, samples, seed) for rows in batches(model, split, BATCH)]
    for values in itertools.chain.from_iterable(team().gather(own) or ()):
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    if not parts:  # another process has them
        return {}
    joined = {name: torch.cat(_equally_long(pieces)) for name, pieces in parts.items()}
    # Batches of whole conversations come in another order than the split.
    orders = {
        name.removeprefix("rows_"): torch.argsort(value) for name, value in joined.items() if name.startswith("rows_")
    }
    of_split = torch.argsort(joined.pop("index"))
    return {name: value[orders.get(name.rpartition("_")[2], of_split)] for name, value in joined.items()}


def _infer_rows(model, dataset: Dataset, split: Split, rows, available, samples: int, seed: int) -> dict[str, Tensor]:
    batch = collate(split, rows, model.config.modalities, dataset.nonfinite_zeroed)
    found = infer(model, batch, available, samples=samples, seed=seed)
    values = {"index": batch.index, "prediction": found.prediction, "std": found.draws.std(1, correction=0)}
    values |= {"draws_low": found.draws_low, "draws_high": found.draws_high, "label": batch.label}
    values |= {} if found.low is None else {"low": found.low, "high": found.high}
    for m, (missed, x, _) in found.recovered.items():
        values |= {f"rows_{m}": batch.index[missed], f"lengths_{m}": x.lengths, f"recovered_{m}": x.x}
    return values


def _equally_long(pieces: list[Tensor]) -> list[Tensor]:
    """(R, T, C) pieces padded to one T; others as they are."""
    if pieces[0].dim() < 3:
        return pieces
    tokens = max(piece.shape[1] for piece in pieces)
    return [pad_tokens(piece, tokens) for piece in pieces]


def as_batch(features: Mapping) -> Batch:
    """A `Batch` of bare features, see `infer`; real rows come first in it, whichever side was padded.

    Raises:
        UsageError: no features, unknown names, or shapes that do not fit each other.
    """
    letters = {name: m for m, name in NAMES.items()}
    found = {letters.get(name, name): _as_tensor(name, value) for name, value in features.items()}
    wrong = [m for m in found if m not in MODALITIES]
    if wrong or not found:
        raise UsageError(
            f"recover: features must be of {', '.join(NAMES.values())}, got {wrong or 'none'}. Name them so."
        )
    if len({value.shape[:1] for value in found.values()}) != 1 or any(
        value.dim() != 3 or value.shape[1] == 0 for value in found.values()
    ):
        shapes = {NAMES[m]: tuple(value.shape) for m, value in found.items()}
        raise UsageError(
            f"recover: features must be (B, T, D) with one B and T of 1 or more, got {shapes}. Shape them so."
        )
    x, lengths = {}, {}
    for m, value in found.items():
        starts, given = spans((value != 0).any(-1).numpy())
        rows = np.minimum(starts[:, None] + np.arange(max(1, int(given.max(initial=0)))), value.shape[1] - 1)
        real = torch.from_numpy(np.arange(rows.shape[1]) < given[:, None])
        taken = value.gather(1, torch.from_numpy(rows)[..., None].expand(-1, -1, value.shape[2]))
        x[m], lengths[m] = torch.where(real[..., None], taken, 0), torch.from_numpy(given)
    clips = len(next(iter(found.values())))
    present = torch.stack(
        [lengths[m] > 0 if m in lengths else torch.zeros(clips, dtype=torch.bool) for m in MODALITIES], 1
    )
    rows = torch.arange(clips)
    return Batch(x, lengths, label=torch.full((clips,), torch.nan), sample_id=rows, index=rows, present=present)


def _as_tensor(name: str, value) -> Tensor:
    """float32 on the CPU, of a tensor, an array or nested lists."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, np.float32))
        return tensor.to("cpu", torch.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"recover: {name} must be an array of numbers, got {error}. Pad its clips to one length."
        ) from None


def _of_model(model: RoHyDR, batch: Batch) -> Batch:
    """The batch with the model's modalities; one that it lacks altogether has the length 0."""
    clips = len(batch.sample_id)
    if clips == 0:
        raise UsageError("recover: the batch must have a clip, got none. Give it one.")
    x, lengths = {}, {}
    for m in model.config.modalities:
        size = model.config.dims[m]
        lengths[m] = batch.lengths.get(m, torch.zeros(clips, dtype=torch.int64))
        x[m] = batch.x[m] if lengths[m].any() else torch.zeros(clips, 1, size)
        if x[m].shape[-1] != size:
            raise UsageError(f"recover: {_another_width(model, m, x[m].shape[-1])}")
    return replace(batch, x=x, lengths=lengths)


def _another_width(model: RoHyDR, m: str, got: int) -> str:
    wanted = f"{NAMES[m]} must have {model.config.dims[m]} channels, as in training, got {got}"
    return f"{wanted}. Use features of the same extractor."


def _missing(model: RoHyDR, batch: Batch, available) -> Tensor:
    """(B, 3) bool."""
    known = torch.tensor([m in model.config.modalities for m in MODALITIES])
    here = batch.present & known
    if isinstance(available, str):
        here = here & torch.tensor([m in parse_available(available) for m in MODALITIES])
    elif available is not None:
        asked = torch.as_tensor(available)
        if asked.dtype != torch.bool or asked.shape != here.shape:
            raise UsageError(
                f"recover: available must be text such as 'a,t' or bool of shape {tuple(here.shape)}, got "
                f"{asked.dtype} of {tuple(asked.shape)}. True is available, in the order audio, text, vision."
            )
        here = here & asked.cpu()
    nothing = (~here.any(1)).nonzero()[:, 0]
    if len(nothing):
        raise UsageError(
            f"recover: every clip must have something available, got none for clip {int(nothing[0])} of the batch. "
            "Leave it out, or name another set."
        )
    return ~here


def _check_finite(batch: Batch, missing: Tensor) -> None:
    """What will be read must be finite: of a sensor that gives NaN, the clip is better off without."""
    for m, value in batch.x.items():
        real = token_mask(batch.lengths[m], value.shape[1]) & ~missing[:, MODALITIES.index(m), None]
        wrong = (~value.isfinite().all(-1) & real).any(1).nonzero()[:, 0]
        if len(wrong):
            raise UsageError(
                f"recover: {NAMES[m]} must be finite where it is available, got NaN or infinity in clip "
                f"{int(wrong[0])} of the batch. Correct it, or leave this modality out of `available` for that clip."
            )


def _radius(model: RoHyDR, missing: Tensor) -> Tensor | None:
    """(B,) half the width of the calibrated interval; infinite for a set that was not calibrated."""
    if not model.calibration:
        return None
    sets = [",".join(m for m, gone in zip(MODALITIES, row, strict=True) if not gone) for row in missing.tolist()]
    return torch.tensor([model.calibration.get(name, float("inf")) for name in sets])


def _mean(drawn: list[Recovered]) -> Recovered:
    """The mean representations over draws, on the CPU."""
    first = drawn[0]
    mean = [
        Sequence(torch.stack([getattr(d, part).x for d in drawn]).mean(0).cpu(), getattr(first, part).lengths.cpu())
        for part in ("x", "generated")
    ]
    return Recovered(first.rows.cpu(), *mean)
