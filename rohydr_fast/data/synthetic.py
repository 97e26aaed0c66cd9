"""Synthetic clips of MOSI's or MOSEI's size and schema, for which the best reachable result is known exactly.

`synthetic_best` describes the population; here clips are drawn from it. ``python -m rohydr_fast.data.synthetic``
prints the table of the best reachable results.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..errors import UsageError
from ..modalities import FILE_KEYS, MODALITIES
from . import containers, tensorfile
from .dataset import Dataset, Split, stable_sample_id
from .synthetic_best import (
    LABEL_NOISE,
    LABEL_WEIGHTS,
    LATENTS,
    OBSERVATIONS,
    SPEAKERS,
    KnownBest,
    Population,
    temporal_basis,
)

FORMAT = 1
"""Raised whenever the same seed would give other clips."""

NOTE = "These data are synthetic: drawn from a known distribution, not recorded from people."
SPLITS = ("train", "valid", "test")
AVAILABLE_SETS = ("a", "t", "v", "a,t", "a,v", "t,v", "a,t,v")
IN_MEMORY = 1 << 30
"""Bytes of features up to which .npz and .pkl files are written; .safetensors files are streamed."""
BLOCK = 256
"""Clips that are drawn at a time: the unit of the random streams, so it is part of the data's definition."""

_CAUSE, _LENGTH, _TOKENS = 0, 1, 2  # random streams of a block; 3 + 2 m and 4 + 2 m are modality m's


@dataclass(frozen=True)
class Shape:
    """Sizes of a data set. `lengths` is "full", "shared" (aligned) or "own" (each modality has its own lengths)."""

    name: str
    clips: tuple[int, int, int]
    dims: Mapping[str, int]
    steps: Mapping[str, int]
    lengths: str
    label_grid: int  # labels are multiples of 1 / label_grid
    typical: float = 1.0  # median length as a share of `steps`


_MOSI_DIMS, _MOSEI_DIMS = {"a": 5, "t": 768, "v": 20}, {"a": 74, "t": 768, "v": 35}
_ALIGNED = {"a": 50, "t": 50, "v": 50}
_MOSI = Shape("synthetic-mosi", (1284, 229, 686), _MOSI_DIMS, _ALIGNED, "shared", label_grid=5, typical=0.27)
_MOSEI = Shape("synthetic-mosei", (16326, 1871, 4659), _MOSEI_DIMS, _ALIGNED, "shared", label_grid=3, typical=0.42)

EMBEDDED = Shape("synthetic", (1284, 229, 686), {"a": 5, "t": 32, "v": 20}, _ALIGNED, "full", 5)
MMSA_SHAPES = {
    ("mosi", False): _MOSI,
    ("mosi", True): replace(_MOSI, steps={"a": 375, "t": 50, "v": 500}, lengths="own"),
    ("mosei", False): _MOSEI,
    ("mosei", True): replace(_MOSEI, steps={"a": 500, "t": 50, "v": 500}, lengths="own"),
}


def generate(seed: int = 0, clips: tuple[int, int, int] = EMBEDDED.clips) -> Dataset:
    """The data set ``"synthetic"``: 1284 / 229 / 686 clips of 50 steps, 5 audio, 32 text and 20 vision channels.

    Labels are in [-3, 3] in steps of 1/5, as MOSI's are; about one in twenty is exactly 0. The same seed gives the
    same clips; another seed gives other clips of the same population. `known_best` is a `KnownBest`.

    Args:
        seed: of the clips.
        clips: of training, validation and test, instead of MOSI's; clip i is the same for any numbers.

    Raises:
        UsageError: the seed is not an integer of 0 .. 2^64 - 1, a split is empty, or all are too large for memory.
    """
    shape = replace(EMBEDDED, clips=tuple(clips))
    size = 4 * sum(clips) * sum(shape.steps[m] * shape.dims[m] for m in MODALITIES)
    if min(clips) < 1 or size > IN_MEMORY:
        raise UsageError(
            f"synthetic: every split must have a clip, and all at most 1 GiB, got {clips} clips of "
            f"{size / 2**30:.1f} GiB. Change the numbers."
        )
    sampler = Sampler(shape, seed)
    splits = {name: sampler.split(name) for name in SPLITS}
    return Dataset(
        name=EMBEDDED.name,
        source=source_of(shape.clips),
        sha256=sampler.fingerprint(),
        notes=(NOTE,),
        known_best=KnownBest(sampler.population, splits),
        **splits,
    )


def source_of(clips: tuple[int, int, int]) -> str:
    """How `generate`'s data are called: synthetic, or synthetic:TRAIN/VALID/TEST for other numbers of clips."""
    return "synthetic" if clips == EMBEDDED.clips else "synthetic:" + "/".join(map(str, clips))


def clips_of(source: str) -> tuple[int, int, int]:
    """The inverse of `source_of`.

    Raises:
        UsageError: it is neither form.
    """
    word, colon, numbers = source.partition(":")
    parts = numbers.split("/")
    if word == "synthetic" and not colon:
        return EMBEDDED.clips
    if word != "synthetic" or len(parts) != 3 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(
            f"data: must be synthetic or synthetic:TRAIN/VALID/TEST, got {source!r}. "
            "Write for example synthetic:1284/229/4000."
        )
    return int(parts[0]), int(parts[1]), int(parts[2])


def mmsa_shape(name: str, *, unaligned: bool = False, clips: int | None = None) -> Shape:
    """The shape of MMSA's file `name` ("mosi" or "mosei"); `clips` scales all splits to that many training clips.

    Raises:
        UsageError: unknown name, or `clips` outside 1 .. the real number.
    """
    if (name, unaligned) not in MMSA_SHAPES:
        raise UsageError(f"synthetic: name must be 'mosi' or 'mosei', got {name!r}. Choose one of the two.")
    shape = MMSA_SHAPES[name, unaligned]
    if clips is None:
        return shape
    if not 1 <= clips <= shape.clips[0]:
        raise UsageError(
            f"synthetic: clips must be from 1 to {shape.clips[0]} for {name}, got {clips}. Choose a number between."
        )
    return replace(shape, clips=tuple(max(1, round(n * clips / shape.clips[0])) for n in shape.clips))


class Sampler:
    """Clips of one shape and seed. Row i of a split is the same however many rows are drawn, and in whatever order."""

    def __init__(self, shape: Shape, seed: int = 0):
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise UsageError(f"synthetic: seed must be an integer from 0 to 2^64 - 1, got {seed!r}. Choose another.")
        self.shape, self.seed = shape, int(seed)
        self.population = Population(shape.dims, shape.label_grid)

    def fingerprint(self) -> str:
        """SHA-256 of everything that the clips depend on."""
        parameters = {
            "format": FORMAT,
            "seed": self.seed,
            "shape": [self.shape.name, *self.shape.clips, self.shape.lengths, self.shape.label_grid],
            "sizes": [[self.shape.steps[m], self.shape.dims[m]] for m in MODALITIES],
            "typical": self.shape.typical,
            "label": [*LABEL_WEIGHTS.tolist(), LABEL_NOISE],
            "observations": {m: repr(OBSERVATIONS[m]) for m in MODALITIES},
        }
        return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()

    def split(self, name: str, clips: int | None = None) -> Split:
        """A whole split in memory; `clips` overrides the shape's number of clips."""
        clips = self.shape.clips[SPLITS.index(name)] if clips is None else clips
        features = {m: np.empty((clips, self.shape.steps[m], self.shape.dims[m]), dtype=np.float32) for m in MODALITIES}
        for rows in self.blocks(clips):
            for m in MODALITIES:
                features[m][rows] = self.features(name, m, rows)
        parts = [self.causes(name, rows) for rows in self.blocks(clips)]
        ids = self.ids(name, clips)
        return Split(
            name=name,
            features=features,
            starts={m: np.zeros(clips, dtype=np.int64) for m in MODALITIES},
            lengths={m: np.concatenate([lengths[m] for _, _, lengths in parts]) for m in MODALITIES},
            labels=np.concatenate([labels for _, labels, _ in parts]),
            ids=ids,
            sample_ids=np.array([stable_sample_id(clip) for clip in ids], dtype=np.int64),
        )

    def blocks(self, clips: int) -> list[slice]:
        """Row ranges to draw one after the other."""
        return [slice(first, min(first + BLOCK, clips)) for first in range(0, clips, BLOCK)]

    def ids(self, split: str, clips: int) -> list[str]:
        """MMSA's form ``video$_$clip``; a video has 24 clips and lies in one split."""
        return [f"{self.shape.name}_{split}_{i // 24:04d}$_${i % 24}" for i in range(clips)]

    def causes(self, split: str, rows: slice) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """z (n, 4) float64, labels (n,) float32 and lengths m -> (n,) int64 of one block."""
        clips = rows.stop - rows.start
        normal = self.stream(split, rows, _CAUSE).standard_normal((clips, len(LATENTS) + 1))
        z = normal[:, :-1]
        label = (z * LABEL_WEIGHTS).sum(1) + LABEL_NOISE * normal[:, -1]
        grid = self.shape.label_grid
        label = np.round(np.clip(label, -3.0, 3.0) * grid) / grid + 0.0  # no -0.0
        return z, label.astype(np.float32), self._lengths(split, rows)

    def features(self, split: str, m: str, rows: slice) -> np.ndarray:
        """Features of modality m of one block, (n, T, D) float32, zeros after the clip's length.

        No BLAS is used, so the bytes do not depend on the number of threads.
        """
        z, _, lengths = self.causes(split, rows)
        seen, index = OBSERVATIONS[m], MODALITIES.index(m)
        clips, steps, dim = len(z), self.shape.steps[m], self.shape.dims[m]
        cues = z * np.array(seen.strengths)
        factors = self.stream(split, rows, 3 + 2 * index).standard_normal((clips, len(LATENTS) + SPEAKERS))
        factors[:, : len(LATENTS)] += cues
        by_channel = np.einsum("nk,jdk->njd", factors, self.population.loadings[m]).astype(np.float32)

        x = self.stream(split, rows, 4 + 2 * index).standard_normal((clips, steps, dim), dtype=np.float32)
        fresh = np.float32(np.sqrt(1.0 - seen.correlation**2))
        for step in range(1, steps):
            x[:, step] *= fresh
            x[:, step] += np.float32(seen.correlation) * x[:, step - 1]
        basis, real = temporal_basis(np.zeros(clips, dtype=np.int64), lengths[m], steps)
        for pattern in range(basis.shape[1]):
            x += basis[:, pattern, :, None].astype(np.float32) * by_channel[:, pattern, None, :]
        features = self.population.observe(m, x)
        features[~real] = 0.0
        return features

    def stream(self, split: str, rows: slice, stream: int) -> np.random.Generator:
        """The random numbers of one purpose for the block that `rows` begins."""
        keys = (SPLITS.index(split), rows.start // BLOCK, stream)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=keys)))

    def _lengths(self, split: str, rows: slice) -> dict[str, np.ndarray]:
        steps, clips = self.shape.steps, rows.stop - rows.start
        if self.shape.lengths == "full":
            return {m: np.full(clips, steps[m], dtype=np.int64) for m in MODALITIES}
        # A clip's duration is log-normal; "own" lengths follow it with a tempo of their own.
        normal = self.stream(split, rows, _LENGTH).standard_normal((clips, 1 + len(MODALITIES)))
        duration = np.log(self.shape.typical) + 0.5 * normal[:, 0]
        tempo = 0.15 * normal[:, 1:] if self.shape.lengths == "own" else np.zeros((clips, len(MODALITIES)))
        return {
            m: np.clip(np.round(steps[m] * np.exp(duration + tempo[:, i])), 3, steps[m]).astype(np.int64)
            for i, m in enumerate(MODALITIES)
        }


class _Drawn:
    """What the writer of .safetensors files needs of an array, (N, ...): its rows are drawn when they are written."""

    def __init__(self, sampler: Sampler, clips: int, shape: tuple[int, ...], dtype: type, draw: Callable):
        self.dtype, self.shape, self.ndim = np.dtype(dtype), (clips, *shape), 1 + len(shape)
        self.nbytes = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        self._blocks, self._draw, self._latest = sampler.blocks(clips), draw, (None, None)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        pieces = []
        for number in range(first // BLOCK, (max(last, first + 1) - 1) // BLOCK + 1):
            block = self._blocks[number]
            if self._latest[0] != number:
                self._latest = number, self._draw(block)
            pieces.append(self._latest[1][max(0, first - block.start) : max(0, last - block.start)])
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def write_like(
    name: str,
    path: str | os.PathLike,
    *,
    unaligned: bool = False,
    seed: int = 0,
    clips: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write synthetic clips as a file of MMSA's schema with the sizes of MOSI or MOSEI.

    .safetensors files are drawn and written piece by piece, with a few hundred MB of memory for any size. A file
    appears whole or not at all. Texts are padded, the attention mask of `text_bert` tells where; in unaligned files
    every modality has its own lengths, in aligned ones they agree.

    Args:
        name: "mosi" or "mosei".
        path: the new file; .safetensors, .npz or .pkl.
        unaligned: audio and vision have their own number of steps (MOSI 375 and 500, MOSEI 500 and 500).
        seed: which clips.
        clips: number of training clips, for smaller files; the other splits shrink alike.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown name, seed or suffix, the file exists, or it is too large for .npz and .pkl.
    """
    path = os.fspath(path)
    sampler = Sampler(mmsa_shape(name, unaligned=unaligned, clips=clips), seed)
    suffix = containers.check_output(path, overwrite=overwrite)
    tree = {split: _file_columns(sampler, split) for split in SPLITS}
    if suffix == ".safetensors":
        flat = {f"{split}/{key}": value for split, values in tree.items() for key, value in values.items()}
        with containers.replacing(path) as file:
            tensorfile.write(file, flat, path)
        return
    size = sum(value.nbytes for values in tree.values() for value in values.values())
    if size > IN_MEMORY:
        raise UsageError(
            f"{path}: a .npz or .pkl file must hold at most 1 GiB, got {size / 2**30:.1f} GiB."
            " Write .safetensors, which is streamed, or fewer clips."
        )
    whole = {
        split: {key: value[:] if isinstance(value, _Drawn) else value for key, value in values.items()}
        for split, values in tree.items()
    }
    containers.write(whole, path, overwrite=overwrite)


def _file_columns(sampler: Sampler, split: str) -> dict[str, np.ndarray | _Drawn]:
    """The keys of one split of an MMSA file."""
    shape, clips = sampler.shape, sampler.shape.clips[SPLITS.index(split)]
    parts = [sampler.causes(split, rows) for rows in sampler.blocks(clips)]
    labels = np.concatenate([labels for _, labels, _ in parts])
    signs = np.sign(labels).astype(np.int64) + 1
    values: dict[str, np.ndarray | _Drawn] = {
        "raw_text": np.array(["(synthetic)"] * clips),
        "id": np.array(sampler.ids(split, clips)),
        "regression_labels": labels,
        "classification_labels": signs,
        "annotations": np.array(["Negative", "Neutral", "Positive"])[signs],
        "text_bert": _Drawn(sampler, clips, (3, shape.steps["t"]), np.int32, partial(_text_bert, sampler, split)),
    }
    for m in MODALITIES:
        drawn = partial(sampler.features, split, m)
        values[FILE_KEYS[m]] = _Drawn(sampler, clips, (shape.steps[m], shape.dims[m]), np.float32, drawn)
    if shape.lengths == "own":
        for m in ("a", "v"):
            values[f"{FILE_KEYS[m]}_lengths"] = np.concatenate([lengths[m] for _, _, lengths in parts])
    return values


def _text_bert(sampler: Sampler, split: str, rows: slice) -> np.ndarray:
    """Token ids, attention mask and token types, (n, 3, T) int32: [CLS] random words [SEP], as long as the text."""
    steps, (_, _, lengths) = sampler.shape.steps["t"], sampler.causes(split, rows)
    length, step = lengths["t"][:, None], np.arange(steps)
    words = sampler.stream(split, rows, _TOKENS).integers(1996, 30522, (len(length), steps))
    ids = np.where(step == 0, 101, np.where(step == length - 1, 102, words))
    mask = step < length
    return np.stack([ids * mask, mask, np.zeros_like(ids)], axis=1).astype(np.int32)


def known_best_table(seed: int = 0, clips: int = 20_000) -> dict[str, dict[str, float]]:
    """Best metrics of the embedded population for the seven sets of available modalities, on `clips` test clips."""
    sampler = Sampler(EMBEDDED, seed)
    best = KnownBest(sampler.population, {"test": sampler.split("test", clips)})
    return {"{" + available + "}": best.metrics("test", available) for available in AVAILABLE_SETS}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the best reachable results."""
    from .. import cli

    parser = cli.make_parser("rohydr_fast.data.synthetic", "Best reachable results on the synthetic data.")
    parser.add_argument("--seed", type=int, default=0, help="which clips to draw")
    parser.add_argument("--clips", type=int, default=20_000, help="how many clips to draw")
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    def command(options) -> None:
        from ..evaluation.tables import metrics_table

        if options.clips < 2:
            raise UsageError(f"synthetic: clips must be at least 2, got {options.clips}. Ask for more, such as 20000.")
        rows = known_best_table(options.seed, options.clips)
        if options.json:
            cli.print_json(rows)
        else:
            print(f"{NOTE}\nBest reachable on {options.clips} clips, seed {options.seed}:\n\n{metrics_table(rows)}")

    return cli.run(parser, command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
