"""Missing patterns: which modality of which clip is withheld (the paper's indicator beta, True = missing).

Every draw is Philox of (seed, epoch, sample id), so that a pattern does not depend on the batch size, the number of
workers or the world size. Only `batch-table`, the rule of the published code, is a function of the batches.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations

import numpy as np

from ..errors import UsageError
from ..modalities import MODALITIES
from .missing_spec import PROTOCOLS, MissingSpec

__all__ = ["PROTOCOLS", "MissingSpec", "missing_table", "rate_note", "realised_rate"]

NOMINAL_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MISS_TWO = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Share of batches that lose two of three modalities, per nominal rate, in the published code."""
MISS_ONE = (0.0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.0, 0.0)
"""Share of batches that lose one."""


def missing_table(
    spec: MissingSpec,
    present: np.ndarray,
    sample_ids: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batches: Sequence[np.ndarray] | None = None,
    modalities: Sequence[str] = MODALITIES,
) -> np.ndarray:
    """Draw the missing indicator beta of a whole split for one epoch.

    M below is the number of the model's modalities that a clip has. At least one of them is always kept.

    - `exact`: of P present slots round(rate * P) are removed, at most P minus the number of clips. Each clip protects
      one modality, drawn uniformly; of the other slots those with the smallest Philox words go.
    - `fractions`: per clip, two are missing with probability p2 and one with p1, as in the published tables, linear in
      between; with M = 2 one is missing with probability min(1, 2 rate). The expected rate is the nominal one.
    - `batch-table`: the published code's rule, one pattern per batch: with n = round(batches / 10) * 10, the first
      n * p2 batches lose two, the next n * p1 lose one, the rest are complete. Realised rates differ from the nominal
      ones. Rate 0 keeps everything; the published code behaves there as at 0.7, because its index becomes -1. A clip
      that has none of the batch's survivors keeps the next one in the batch's order.
    - `fixed`: only `available` is kept; a clip that has none of it keeps the first modality that it has.
    - `per-modality`: of the P_m clips that have m, round(rate_m * P_m) lose it, chosen independently of the other
      modalities. A clip that would lose everything gets one back, drawn uniformly, and another clip loses that one
      instead, so that the rates stay exact wherever any pattern could reach them. Rates whose sum is too high are
      scaled down by one factor.
    - `mixed`: each clip keeps one of the non-empty subsets of what it has, drawn uniformly.
    - `natural`: only what the file lacks is missing.

    Args:
        present: (N, 3) bool, what the file has, in the order a, t, v.
        sample_ids: (N,) int64, unique: the clips' Philox keys.
        seed: seed of the evaluation or training run; `epoch` selects an independent pattern.
        batches: rows of each batch in the order in which they run; needed by `batch-table` only.
        modalities: the model's modalities; all others are always missing.

    Returns:
        (N, 3) bool, True = missing. Always True for what the file lacks.

    Raises:
        UsageError: shapes that disagree, unknown modalities, no batches for `batch-table`, or a fixed set of which no
            clip has anything.
    """
    present = _usable(present, modalities)
    sample_ids = np.asarray(sample_ids, dtype=np.int64)
    if sample_ids.shape != present.shape[:1]:
        raise UsageError(
            f"missing pattern: sample_ids must have one entry for each of {len(present)} clips, "
            f"got shape {sample_ids.shape}. Pass the split's sample_ids."
        )
    if spec.protocol == "natural" or not present.any():
        return ~present
    if spec.protocol == "fixed":
        return _fixed(spec.available, present)
    if spec.protocol == "batch-table":
        return _batch_table(spec.rate, present, batches, seed, epoch, modalities)
    words = _words(sample_ids, seed, epoch)
    if spec.protocol == "exact":
        return _exact(spec.rate, present, words, sample_ids)
    if spec.protocol == "fractions":
        return _fractions(spec.rate, present, words)
    if spec.protocol == "per-modality":
        return _per_modality(spec.rates, present, words, sample_ids)
    return _mixed(present, words)


def realised_rate(missing: np.ndarray, present: np.ndarray, modalities: Sequence[str] = MODALITIES) -> float:
    """Share of the model's present slots that were removed; what the file itself lacks is not counted.

    Args:
        missing: (N, 3) bool, from `missing_table`.
        present: (N, 3) bool, what the file has.
    """
    present = _usable(present, modalities)
    slots = int(present.sum())
    return float((missing & present).sum() / slots) if slots else 0.0


def rate_note(spec: MissingSpec, present: np.ndarray, modalities: Sequence[str] = MODALITIES) -> str | None:
    """One sentence for people when the pattern cannot be what its name says, else None.

    Args:
        present: (N, 3) bool, what the file has.
    """
    present = _usable(present, modalities)
    slots, clips = int(present.sum()), int(present.any(axis=1).sum())
    if not slots:
        return None
    if spec.protocol == "fixed":
        bare = int((present.any(axis=1) & ~(present & _columns(spec.available)).any(axis=1)).sum())
        keep = f"{bare} of {clips} clips have none of these modalities and keep the first one they have."
        return f"{spec.name}: {keep}" if bare else None
    if spec.protocol == "per-modality":
        return _per_modality_note(spec.rates, present)
    highest = (slots - clips) / slots
    if spec.rate is None or round(spec.rate * slots) <= slots - clips:
        return None
    note = f"rate {spec.rate:g} is above the highest possible {highest:.4f} (one modality is always kept): "
    return note + ("every clip keeps exactly one." if spec.protocol == "exact" else "see the realised rate.")


def _usable(present: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """What a clip has and the model reads: (N, 3) bool."""
    unknown = [m for m in modalities if m not in MODALITIES]
    if unknown or not modalities:
        raise UsageError(
            f"missing pattern: modalities must name some of a, t, v, got {list(modalities)}. "
            "Pass the model's modalities."
        )
    present = np.asarray(present, dtype=bool)
    if present.ndim != 2 or present.shape[1] != len(MODALITIES):
        raise UsageError(
            f"missing pattern: present must have the shape (clips, 3), got {present.shape}. Pass split.present()."
        )
    return present & _columns(modalities)


def _columns(modalities: Sequence[str]) -> np.ndarray:
    return np.array([m in modalities for m in MODALITIES])


def _words(keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(N, 5) int64 holding uint32: words 0..2 are the slots' priorities, 3 the protected slot, 4 the pattern."""
    import torch

    from ..ops.philox import Stream, bits, derive_seed

    ids = torch.from_numpy(np.ascontiguousarray(keys, dtype=np.int64))
    return bits(derive_seed(seed, epoch), ids, stream=Stream.MISSING, count=5).numpy()


def _pick(word: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """A uniform integer below `choices` from each 32-bit word."""
    return (word * choices) >> 32


def _protected(present: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(N, 3) bool: one present slot of every clip, drawn uniformly."""
    rank = np.cumsum(present, axis=1) - 1
    return present & (rank == _pick(words[:, 3], present.sum(axis=1))[:, None])


def _keep(present: np.ndarray, words: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Keep the `count` present slots with the smallest words and remove the others."""
    priority = np.where(present, words[:, :3], 1 << 32)
    rank = priority.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return ~present | (rank >= np.broadcast_to(count, len(present))[:, None])


def _exact(rate: float, present: np.ndarray, words: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    row, slot = np.nonzero(present & ~_protected(present, words))
    order = np.lexsort((slot, sample_ids[row], words[row, slot]))[: round(rate * int(present.sum()))]
    missing = ~present
    missing[row[order], slot[order]] = True
    return missing


def _fractions(rate: float, present: np.ndarray, words: np.ndarray) -> np.ndarray:
    two, one = np.interp(rate, NOMINAL_RATES, MISS_TWO), np.interp(rate, NOMINAL_RATES, MISS_ONE)
    has = present.sum(axis=1)
    uniform = words[:, 4] * 2.0**-32
    of_three = np.where(uniform < two, 2, np.where(uniform < two + one, 1, 0))
    of_two = (uniform < min(1.0, 2 * rate)).astype(np.int64)
    lost = np.select([has == 3, has == 2], [of_three, of_two], 0)
    return _keep(present, words, has - lost)


def _batch_table(
    rate: float,
    present: np.ndarray,
    batches: Sequence[np.ndarray] | None,
    seed: int,
    epoch: int,
    modalities: Sequence[str],
) -> np.ndarray:
    if batches is None:
        raise UsageError(
            "missing pattern: batch-table must know the batches, got none. "
            "Pass batches=, or choose another protocol, for example fractions."
        )
    entry = round(rate * 10)
    period = round(len(batches) / 10) * 10  # half to even, as np.round in the published code
    two, one = round(period * MISS_TWO[entry]), round(period * MISS_ONE[entry])
    words = _words(np.arange(len(batches)), seed, epoch)
    model = _columns(modalities)[None]  # (1, 3)
    missing = ~present
    for number, rows in enumerate(batches[: two + one]):
        survivors = ~_keep(model, words[number : number + 1], max(1, len(modalities) - (2 if number < two else 1)))
        has, order = present[rows], np.broadcast_to(words[number], (len(rows), words.shape[1]))
        kept = has & survivors
        missing[rows] = np.where(kept.any(axis=1, keepdims=True), ~kept, _keep(has, order, 1))
    return missing


def _fixed(available: Sequence[str], present: np.ndarray) -> np.ndarray:
    kept = present & _columns(available)
    if not kept.any():
        raise UsageError(
            f"missing pattern: available must name a modality that some clip and the model have, "
            f"got {','.join(available)}. Name another set, for example --available t."
        )
    first = present & (np.cumsum(present, axis=1) == 1)
    return np.where(kept.any(axis=1, keepdims=True), ~kept, ~first)


def _mixed(present: np.ndarray, words: np.ndarray) -> np.ndarray:
    has = present.sum(axis=1)
    subset = 1 + _pick(words[:, 4], (1 << has) - 1)  # bit j: is the j-th present modality kept
    rank = np.maximum(np.cumsum(present, axis=1) - 1, 0)
    return ~present | ((subset[:, None] >> rank) & 1 == 0)


def _targets(rates: Mapping[str, float], present: np.ndarray) -> tuple[list[int], float]:
    """Slots to remove of each modality, and the factor by which the rates had to be scaled down."""
    wanted = np.array([rates.get(m, 0.0) for m in MODALITIES]) * present.sum(axis=0)
    removable = int(present.sum()) - int(present.any(axis=1).sum())
    factor = 1.0 if wanted.sum() <= removable else float(removable / wanted.sum())
    return [round(float(value) * factor) for value in wanted], factor


def _per_modality(
    rates: Mapping[str, float], present: np.ndarray, words: np.ndarray, sample_ids: np.ndarray
) -> np.ndarray:
    targets, _ = _targets(rates, present)
    missing = ~present
    for m, target in enumerate(targets):
        missing[_first(present[:, m], words[:, m], sample_ids, target), m] = True
    emptied = missing.all(axis=1, keepdims=True)
    missing &= ~(emptied & _protected(present, words))
    for m, target in enumerate(targets):
        _remove_more(missing, present, words, sample_ids, m, target - int((missing & present)[:, m].sum()))
    return missing


def _first(among: np.ndarray, words: np.ndarray, sample_ids: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows with the smallest words among those selected."""
    rows = np.nonzero(among)[0]
    return rows[np.lexsort((sample_ids[rows], words[rows]))[:count]]


def _remove_more(
    missing: np.ndarray, present: np.ndarray, words: np.ndarray, sample_ids: np.ndarray, modality: int, count: int
) -> None:
    """Remove `modality` from up to `count` more clips, the other modalities' totals unchanged.

    Each path m0, m1, .. is an augmenting path: clips that keep only m0 lose it and get m1 back, and so on, and clips
    that keep the last one and another lose the last one. Shortest paths first, so the result is the largest possible.
    """
    others = [m for m in range(len(MODALITIES)) if m != modality]
    paths = [(modality, *rest) for length in range(len(MODALITIES)) for rest in permutations(others, length)]
    moved = True
    while count > 0 and moved:
        moved = False
        for path in paths:
            kept = ~missing & present
            alone = kept.sum(axis=1) == 1
            groups = [
                kept[:, here] & alone & missing[:, there] & present[:, there] for here, there in pairwise(path)
            ]
            groups.append(kept[:, path[-1]] & ~alone)
            amount = min(count, *(int(group.sum()) for group in groups))
            for step, group in enumerate(groups):
                rows = _first(group, words[:, path[step]], sample_ids, amount)
                missing[rows, path[step]] = True
                if step + 1 < len(path):
                    missing[rows, path[step + 1]] = False
            count -= amount
            moved = moved or amount > 0


def _per_modality_note(rates: Mapping[str, float], present: np.ndarray) -> str | None:
    targets, factor = _targets(rates, present)
    if factor < 1.0:
        return f"the rates add up to more than can be removed (one modality is always kept): scaled by {factor:.4f}."
    has = present.sum(axis=1)
    for size in range(1, len(MODALITIES) + 1):
        for chosen in permutations(range(len(MODALITIES)), size):
            room = np.minimum(present[:, list(chosen)].sum(axis=1), np.maximum(has - 1, 0)).sum()
            if sum(targets[m] for m in chosen) > room:
                names = ",".join(MODALITIES[m] for m in sorted(chosen))
                return f"the rates of {names} are above what can be removed (one modality is always kept)."
    return None
