"""Stored predictions of a test split, read with every array checked."""

import struct
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..modalities import MODALITIES

KEYS = {"id": "U", "label": "f", "prediction": "f", "std": "f", "missing": "b"}
"""Arrays of a file and the kind of their dtype."""

UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, SyntaxError, struct.error),
    *(RuntimeError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error),
)
"""What zipfile and numpy raise for files that are damaged."""


@dataclass(frozen=True)
class ClipPredictions:
    """What a model answered for N clips under one missing pattern."""

    ids: np.ndarray  # (N,) text
    labels: np.ndarray  # (N,) float32
    prediction: np.ndarray  # (N,) float32
    std: np.ndarray  # (N,) float32, over the recoveries drawn
    missing: np.ndarray  # (N, 3) bool, order of `MODALITIES`

    def ordered_as(self, ids: np.ndarray) -> "ClipPredictions | None":
        """The same with its clips in the order of `ids`; None where the clips are not exactly these."""
        if np.array_equal(self.ids, ids):
            return self
        places = {clip: row for row, clip in enumerate(self.ids.tolist())}
        if len(places) != len(self.ids) or set(places) != set(ids.tolist()) or len(ids) != len(self.ids):
            return None
        rows = [places[clip] for clip in ids.tolist()]
        taken = {name: getattr(self, name)[rows] for name in ("labels", "prediction", "std", "missing")}
        return replace(self, ids=ids, **taken)


@dataclass
class Reader:
    """Reads prediction files; runs on the same data share one array of ids and one of labels."""

    shared: dict[bytes, np.ndarray] = field(default_factory=dict)

    def read(self, path: Path) -> ClipPredictions:
        """The predictions stored at `path`.

        Raises:
            DataError: the file is absent, damaged, or does not hold what `RunDirectory.write_predictions` stored.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in KEYS}
        except FileNotFoundError:
            raise DataError(f"{path} does not exist. Evaluate the run again.") from None
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read ({error}). Evaluate the run again.") from None
        clips = len(arrays["id"]) if arrays["id"].ndim == 1 else -1
        shapes = {key: (clips, len(MODALITIES)) if key == "missing" else (clips,) for key in KEYS}
        for key, kind in KEYS.items():
            if arrays[key].dtype.kind != kind or arrays[key].shape != shapes[key] or not clips:
                raise DataError(
                    f"{path} must hold {key} for {max(clips, 0)} clips, got {arrays[key].dtype} {arrays[key].shape}. "
                    "Evaluate the run again."
                )
        ids, labels = (self._share(arrays[key]) for key in ("id", "label"))
        return ClipPredictions(ids, labels, arrays["prediction"], arrays["std"], arrays["missing"])

    def _share(self, array: np.ndarray) -> np.ndarray:
        return self.shared.setdefault(array.dtype.str.encode() + array.tobytes(), array)
