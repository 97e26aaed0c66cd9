"""Cross-validation by video: no video in two splits, for files too small for one split to say anything."""

from dataclasses import replace

import numpy as np

from ..config import check_folds
from ..errors import DataError
from ..modalities import MODALITIES, NAMES
from .conversations import ID
from .dataset import Dataset, Split


def by_video(dataset: Dataset, folds: int, fold: int) -> Dataset:
    """All clips of a file in other splits: the videos of fold `fold` are test, those of the next one validation.

    Videos are dealt out largest first, each to the fold with the fewest clips so far, so the folds are of nearly equal
    size and a function of the file alone.

    Raises:
        UsageError: impossible numbers.
        DataError: ids that name no videos, or fewer videos than folds.
    """
    check_folds(folds, fold)
    splits = (dataset.train, dataset.valid, dataset.test)
    together = _together(splits)
    found = [ID.fullmatch(clip) for clip in together.ids]
    if not all(found):
        unnamed = together.ids[[one is None for one in found].index(True)]
        raise DataError(
            f"{dataset.source}: --folds needs ids that name a video, such as video$_$3, got {unnamed!r}. "
            "Use the file's own splits."
        )
    videos = np.array([one["video"] for one in found])
    names, counts = np.unique(videos, return_counts=True)
    if len(names) < folds:
        raise DataError(f"{dataset.source}: --folds must be at most its {len(names)} videos, got {folds}. Lower it.")
    sizes, fold_of = [0] * folds, {}
    for i in sorted(range(len(names)), key=lambda i: (-counts[i], names[i])):
        smallest = min(range(folds), key=lambda number: (sizes[number], number))
        fold_of[names[i]] = smallest + 1
        sizes[smallest] += counts[i]
    number = np.array([fold_of[video] for video in videos])
    roles = {"test": number == fold, "valid": number == fold % folds + 1}
    roles["train"] = ~(roles["test"] | roles["valid"])
    made = {name: _part(together, name, np.nonzero(rows)[0]) for name, rows in roles.items()}
    note = f"Splits are fold {fold} of {folds} by video, not the file's."
    return replace(dataset, **made, notes=(*dataset.notes, note), known_best=None)


def _together(splits: tuple[Split, ...]) -> Split:
    features = {}
    for m in MODALITIES:
        sizes = {split.features[m].shape[2] for split in splits}
        if len(sizes) > 1:
            raise DataError(f"data: {NAMES[m]} must have as many channels in every split, got {sorted(sizes)}.")
        steps = max(split.features[m].shape[1] for split in splits)
        features[m] = np.concatenate(
            [np.pad(split.features[m], ((0, 0), (0, steps - split.features[m].shape[1]), (0, 0))) for split in splits]
        )
    return Split(
        name="all",
        features=features,
        starts={m: np.concatenate([split.starts[m] for split in splits]) for m in MODALITIES},
        lengths={m: np.concatenate([split.lengths[m] for split in splits]) for m in MODALITIES},
        labels=np.concatenate([split.labels for split in splits]),
        ids=[clip for split in splits for clip in split.ids],
        sample_ids=np.concatenate([split.sample_ids for split in splits]),
    )


def _part(split: Split, name: str, rows: np.ndarray) -> Split:
    return Split(
        name=name,
        features={m: x[rows] for m, x in split.features.items()},
        starts={m: x[rows] for m, x in split.starts.items()},
        lengths={m: x[rows] for m, x in split.lengths.items()},
        labels=split.labels[rows],
        ids=[split.ids[row] for row in rows],
        sample_ids=split.sample_ids[rows],
    )
