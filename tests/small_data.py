"""A data set of a few clips, built in memory."""

import numpy as np

from rohydr_fast.data.dataset import Dataset, Split, stable_sample_id

DIMS = {"a": 3, "t": 6, "v": 4}


def small_split(name: str, clips: int, seed: int, tokens: int = 4) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.round(rng.uniform(-3, 3, clips), 1).astype(np.float32)
    lengths = rng.integers(1, tokens + 1, clips)
    features = {}
    for m, size in DIMS.items():
        x = rng.normal(size=(clips, tokens, size)) + 0.5 * labels[:, None, None]
        x[np.arange(tokens) >= lengths[:, None]] = 0
        features[m] = x.astype(np.float32)
    ids = [f"{name}{i // 3}$_${i % 3}" for i in range(clips)]  # conversations of three
    return Split(
        name=name,
        features=features,
        starts={m: np.zeros(clips, np.int64) for m in DIMS},
        lengths={m: lengths.astype(np.int64) for m in DIMS},
        labels=labels,
        ids=ids,
        sample_ids=np.array([stable_sample_id(i) for i in ids]),
    )


def small_dataset(**clips: int) -> Dataset:
    sizes = {"train": 10, "valid": 6, "test": 6, **clips}
    return Dataset(
        name="small",
        source="small",
        sha256="0" * 64,
        **{name: small_split(name, count, seed) for seed, (name, count) in enumerate(sizes.items())},
    )


def small_tree(**changes) -> dict:
    """A small file in MMSA's schema; `changes` replace arrays of the training split."""
    dataset, result = small_dataset(), {}
    for split in (dataset.train, dataset.valid, dataset.test):
        keys = {"a": "audio", "t": "text", "v": "vision"}
        result[split.name] = {
            **{keys[m]: split.features[m] for m in DIMS},
            "regression_labels": split.labels,
            "id": np.array(split.ids),
        }
    for key, value in changes.items():
        if value is None:
            del result["train"][key]
        else:
            result["train"][key] = value
    return result
