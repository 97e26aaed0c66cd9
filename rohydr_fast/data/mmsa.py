"""The MMSA schema: what a file must hold, checked and turned into a `Dataset`, whatever container it came in."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..modalities import FILE_KEYS, MODALITIES
from . import columns, containers
from .dataset import Dataset, Split, stable_sample_id
from .lengths import spans, spans_from_lengths, spans_from_mask
from .mapping import display_name
from .scan import Scan, scan

SPLITS = ("train", "valid", "test")
LABEL_LIMIT = 3.0
_LABEL_SLACK = 1e-5  # rounding of a label that was computed in float32

_ABSENT = {
    "audio": "Add it; for data without audio add zeros of shape (N, 1, 1).",
    "vision": "Add it; for data without vision add zeros of shape (N, 1, 1).",
    "text": "Add the text features; for data without text add zeros of shape (N, 1, 1).",
    "regression_labels": "Add one number in [-3, 3] for each clip.",
}


@dataclass
class Findings:
    """What the checks counted, for `check` and `describe`."""

    nonfinite: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)  # (split, key) -> kind -> count
    duplicate_ids: int = 0  # clips whose id an earlier clip has
    shared_ids: int = 0  # ids that occur in more than one split
    made_ids: int = 0  # clips whose id was made from split and row
    length_sources: dict[tuple[str, str], str] = field(default_factory=dict)  # (split, key) -> where lengths come from
    notes: dict[str, None] = field(default_factory=dict)  # an ordered set of sentences

    def note(self, sentence: str) -> None:
        self.notes.setdefault(sentence)


def read(path: str, *, nonfinite: str = "error") -> tuple[Dataset, Findings]:
    """Open an MMSA-format file and check it; see `build`."""
    tree, data = containers.read(path)
    return build(tree, source=path, sha256=data.sha256(), nonfinite=nonfinite)


def build(tree: Any, *, source: str, sha256: str, nonfinite: str = "error") -> tuple[Dataset, Findings]:
    """Check the three splits and make a `Dataset` of them.

    Args:
        tree: split -> key -> array or list, from `containers.read`.
        source: the file's name, for errors.
        sha256: of the file.
        nonfinite: "error" refuses NaN and infinities in features, "zero" reads them as 0. -inf in audio is always 0.

    Raises:
        DataError: something is missing, of the wrong shape or out of range; the message names split and key.
        UsageError: an unknown `nonfinite`.
    """
    if nonfinite not in ("error", "zero"):
        raise UsageError(f"load: nonfinite must be 'error' or 'zero', got {nonfinite!r}. Choose one of the two.")
    findings = Findings()
    sources = _splits(tree, source)
    built = {name: _split(sources[name], name, f"{source}: {name}", findings) for name in SPLITS}
    _check_widths(built, source)
    zeroed = _check_finite(findings, source, nonfinite)
    _check_ids(built, findings)
    dataset = Dataset(
        name=display_name(source),
        source=source,
        sha256=sha256,
        notes=tuple(findings.notes),
        nonfinite_zeroed=zeroed,
        **built,
    )
    return dataset, findings


def _splits(tree: Any, source: str) -> dict[str, dict]:
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise DataError(
            f"{source}: the file must hold a dict with the splits train, valid and test, got {kind}. Save one."
        )
    for name in SPLITS:
        if name not in tree:
            got = ", ".join(columns.shown(key) for key in list(tree)[:8]) or "none"
            other = next((key for key in ("dev", "val", "validation") if name == "valid" and key in tree), None)
            remedy = f"Rename {other} to valid." if other else f"Add the split {name}."
            raise DataError(f"{source}: the splits must be train, valid and test, got {got}. {remedy}")
        if not isinstance(tree[name], dict):
            kind = type(tree[name]).__name__
            raise DataError(
                f"{source}: {name} must be a dict with the keys audio, text, vision and so on, got {kind}. Save one."
            )
    return {name: tree[name] for name in SPLITS}


def _split(values: dict, name: str, where: str, findings: Findings) -> Split:
    for key in (*FILE_KEYS.values(), "regression_labels"):
        if values.get(key) is None:
            remedy = _ABSENT[key]
            if key == "text" and values.get("text_bert") is not None:
                remedy = "Add the key text with features of shape (N, T, D): text_bert holds token ids only."
            raise DataError(f"{where}: the key {key} is missing. {remedy}")
    labels = columns.numbers(values["regression_labels"], f"{where}: regression_labels")
    if not len(labels):
        raise DataError(f"{where}: there must be at least one clip, got none. Check how the file was made.")
    count = len(labels)
    ids = _ids(values.get("id"), count, name, where, findings)
    features, starts, lengths = {}, {}, {}
    for m in MODALITIES:
        key = FILE_KEYS[m]
        features[m] = _features(values[key], count, f"{where}: {key}", findings)
        found = scan(features[m])
        if found.nonfinite:
            findings.nonfinite[name, key] = {"nan": found.nan, "+inf": found.positive_inf, "-inf": found.negative_inf}
        starts[m], lengths[m] = _spans(values, key, found, name, where, findings)
    return Split(
        name=name,
        features=features,
        starts=starts,
        lengths=lengths,
        labels=_check_labels(labels, ids, f"{where}: regression_labels"),
        ids=ids,
        sample_ids=np.array([stable_sample_id(clip) for clip in ids], np.int64),
    )


def _features(value: Any, count: int, where: str, findings: Findings) -> np.ndarray:
    """(N, T, D) floating point; (N, D) is read as T = 1."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.dtype.itemsize > 8:
        got = f"type {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{where}: must be an array of float16, float32 or float64, got {got}. Save it as float32.")
    if value.ndim not in (2, 3):
        raise DataError(f"{where}: must have the shape (N, T, D), or (N, D) for T = 1, got {value.shape}. Reshape it.")
    if len(value) != count:
        raise DataError(
            f"{where}: must have one entry for each of the {count} labels, got {len(value)}. Save all keys together."
        )
    if 0 in value.shape:
        raise DataError(f"{where}: T and D must be at least 1, got the shape {value.shape}. Save zeros for no data.")
    if value.ndim == 2:
        findings.note(f"{where.split(': ')[-1]} has two dimensions (N, D) and is read as one step, T = 1.")
        return value[:, None, :]
    return value


def _spans(
    values: dict, key: str, found: Scan, name: str, where: str, findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the real tokens, each (N,) int64."""
    content, steps = found.nonzero, found.nonzero.shape[1]
    given = values.get(f"{key}_lengths")
    if given is not None and key != "text":
        lengths = columns.whole_numbers(given, len(content), f"{where}: {key}_lengths")
        wrong = np.flatnonzero((lengths < 0) | (lengths > steps))
        if len(wrong):
            raise DataError(
                f"{where}: {key}_lengths must lie in 0..{steps}, the steps of {key}, got {lengths[wrong[0]]} in row "
                f"{wrong[0]} and {len(wrong)} such rows in all. Save lengths that count steps."
            )
        starts, lengths, outside = spans_from_lengths(lengths, content)
        if outside:
            findings.note(f"{name}: {outside} clips hold values beyond {key}_lengths in {key}; they are not read.")
        findings.length_sources[name, key] = f"{key}_lengths"
        return starts, lengths
    if key == "text" and values.get("text_bert") is not None:
        mask = columns.attention_mask(values["text_bert"], len(content), steps)
        if mask is not None:
            findings.length_sources[name, key] = "text_bert"
            return spans_from_mask(mask, content)
        findings.note(f"{name}: the attention mask of text_bert does not fit text; all-zero rows tell the lengths.")
    findings.length_sources[name, key] = "rows"
    return spans(content)


def _ids(value: Any, count: int, name: str, where: str, findings: Findings) -> list[str]:
    if value is None:
        findings.made_ids += count
        findings.note("The file has no ids: they were made from split and row.")
        return [f"{name}_{row}" for row in range(count)]
    return columns.texts(value, count, f"{where}: id")


def _check_labels(labels: np.ndarray, ids: list[str], where: str) -> np.ndarray:
    lost = np.flatnonzero(np.isnan(labels))
    if len(lost):
        raise DataError(
            f"{where}: must be numbers, got NaN in {len(lost)} clips, first {columns.shown(ids[lost[0]])}. "
            "Remove these clips."
        )
    wrong = np.flatnonzero(np.abs(labels) > LABEL_LIMIT + _LABEL_SLACK)
    if len(wrong):
        raise DataError(
            f"{where}: must lie in [-3, 3], got {labels[wrong[0]]:g} for {columns.shown(ids[wrong[0]])} and "
            f"{len(wrong)} such clips in all. Rescale the labels or remove these clips."
        )
    return np.clip(labels, -LABEL_LIMIT, LABEL_LIMIT).astype(np.float32)


def _check_widths(built: dict[str, Split], source: str) -> None:
    for m in MODALITIES:
        widths = {name: built[name].features[m].shape[2] for name in SPLITS}
        if len(set(widths.values())) > 1:
            got = ", ".join(f"{width} in {name}" for name, width in widths.items())
            raise DataError(
                f"{source}: {FILE_KEYS[m]} must have the same number of features in all splits, got {got}. "
                "Extract all splits alike."
            )


def _check_finite(findings: Findings, source: str, nonfinite: str) -> bool:
    """Refuse or note what is not finite; True if batches must replace it by 0."""
    refused, cleaned = [], []
    for (name, key), counts in findings.nonfinite.items():
        always = counts["-inf"] if key == "audio" else 0
        other = {kind: number for kind, number in counts.items() if number and not (kind == "-inf" and always)}
        if always:
            findings.note(f"{name}: {always:,} values of -inf in audio are read as 0, as MMSA does.")
        if other:
            told = f"{name} {key} ({', '.join(f'{number:,} {kind}' for kind, number in other.items())})"
            (refused if nonfinite == "error" else cleaned).append(told)
    if refused:
        raise DataError(
            f"{source}: features must be finite, got {'; '.join(refused)}. Use --nonfinite zero to read them as 0."
        )
    if cleaned:
        findings.note(f"Values that are not finite are read as 0: {'; '.join(cleaned)}.")
    return bool(findings.nonfinite)


def _check_ids(built: dict[str, Split], findings: Findings) -> None:
    per_split = [set(built[name].ids) for name in SPLITS]
    counts = Counter(clip for ids in per_split for clip in ids)
    total = sum(len(built[name]) for name in SPLITS)
    findings.duplicate_ids = total - len(counts)
    findings.shared_ids = sum(1 for number in counts.values() if number > 1)
    if findings.shared_ids:
        first = next(clip for clip, number in counts.items() if number > 1)
        findings.note(
            f"{findings.shared_ids} ids occur in more than one split, first {columns.shown(first)}: "
            "results on these clips are too good."
        )
    repeated = total - sum(len(ids) for ids in per_split)
    if repeated:
        findings.note(f"{repeated} clips have the id of an earlier clip of their split: both get the same noise.")
