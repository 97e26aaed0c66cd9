"""Batches hold the real tokens of their clips, whatever container and padding they came from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast.data import collate, epoch_order, load, mmsa, stable_sample_id
from rohydr_fast.data.dataset import Dataset, Split
from rohydr_fast.data.scan import statistics
from rohydr_fast.errors import DataError, FileAccessError


def split_of(lengths, steps=5, starts=None, dtype=np.float32):
    """A split whose modalities have these lengths; audio has two channels, text three, vision one."""
    rng = np.random.default_rng(1)
    lengths = {m: np.asarray(value, np.int64) for m, value in lengths.items()}
    starts = starts or {m: np.zeros_like(value) for m, value in lengths.items()}
    count = len(lengths["a"])
    features = {m: rng.normal(size=(count, steps, d)).astype(dtype) for m, d in (("a", 2), ("t", 3), ("v", 1))}
    ids = [f"clip{row}" for row in range(count)]
    numbers = np.array([stable_sample_id(name) for name in ids])
    labels = np.linspace(-3, 3, count, dtype=np.float32)
    return Split("train", features, starts, lengths, labels, ids, numbers)


def dataset_of(split):
    return Dataset("d", "d.npz", "", split, split, split)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_collate_moves_real_tokens_to_the_front(dtype):
    starts = {"a": np.array([0, 2, 1]), "t": np.array([0, 0, 0]), "v": np.array([0, 0, 0])}
    split = split_of({"a": [2, 3, 1], "t": [5, 1, 0], "v": [0, 0, 0]}, starts=starts, dtype=dtype)
    batch = collate(split, [2, 1], ("a", "t", "v"))
    assert batch.x["a"].shape == (2, 3, 2) and batch.x["a"].dtype == torch.float32
    expected = np.zeros((2, 3, 2), np.float32)
    expected[0, :1] = split.features["a"][2, 1:2]
    expected[1, :3] = split.features["a"][1, 2:5]
    assert np.array_equal(batch.x["a"].numpy(), expected)
    assert batch.x["t"].shape == (2, 1, 3) and batch.x["v"].shape == (2, 1, 1)  # T is at least 1
    assert batch.lengths["t"].tolist() == [0, 1] and batch.index.tolist() == [2, 1]
    assert batch.present.tolist() == [[True, False, False], [True, True, False]]
    assert batch.sample_id.tolist() == [stable_sample_id("clip2"), stable_sample_id("clip1")]
    assert batch.label.tolist() == [3.0, 0.0]


def test_collate_reads_only_the_modalities_asked_for():
    batch = collate(split_of({"a": [1], "t": [1], "v": [1]}), [0], ("t",))
    assert set(batch.x) == {"t"} and batch.present.shape == (1, 3)


def test_collate_does_not_change_the_split():
    split = split_of({"a": [5, 5], "t": [5, 5], "v": [5, 5]})
    before = split.features["a"].copy()
    collate(split, [0, 1], ("a",)).x["a"].zero_()
    assert np.array_equal(split.features["a"], before)


def test_collate_zeroes_what_is_not_finite():
    split = split_of({"a": [5], "t": [5], "v": [5]})
    split.features["a"][0, :3, 0] = [np.nan, np.inf, -np.inf]
    assert collate(split, [0], ("a",)).x["a"].isfinite().all().item() is False
    x = collate(split, [0], ("a",), zero_nonfinite=True).x["a"]
    assert x[0, :3, 0].tolist() == [0, 0, 0] and x[0, 3, 0] == split.features["a"][0, 3, 0]


def test_collate_of_nothing_and_of_too_much():
    split = split_of({"a": [1, 1], "t": [1, 1], "v": [1, 1]})
    assert collate(split, [], ("a",)).x["a"].shape == (0, 1, 2)
    with pytest.raises(IndexError, match=r"0\.\.1, got -1"):
        collate(split, [-1], ("a",))
    with pytest.raises(IndexError):
        collate(split, [2], ("a",))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_a_clip_is_the_same_in_every_batch(lengths, data):
    split = split_of({"a": lengths, "t": lengths, "v": lengths})
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    batch = collate(split, rows, ("a",))
    for place, row in enumerate(rows):
        real = lengths[row]
        assert np.array_equal(batch.x["a"][place, :real].numpy(), split.features["a"][row, :real])
        assert not batch.x["a"][place, real:].any()


def test_sample_ids():
    assert stable_sample_id("03bSnISJMiM$_$1") == stable_sample_id("03bSnISJMiM$_$1") < 2**48
    assert stable_sample_id("a") == 15306291493187  # b2sum -l 48, little-endian; saved runs depend on it
    assert len({stable_sample_id(str(number)) for number in range(5000)}) == 5000
    assert 0 <= stable_sample_id("\udc80") < 2**48


def test_epoch_order():
    assert sorted(epoch_order(50, 3, 1)) == list(range(50))
    assert epoch_order(50, 3, 1).tolist() == epoch_order(50, 3, 1).tolist()
    assert epoch_order(50, 3, 1).tolist() != epoch_order(50, 3, 2).tolist()
    assert epoch_order(50, 3, 1).tolist() != epoch_order(50, 4, 1).tolist()
    assert len(epoch_order(0, 2**64 - 1, 0)) == 0


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ({"a": [1, 2], "t": [1, 2], "v": [1, 2]}, (("a", "t", "v"),)),
        ({"a": [1, 2], "t": [1, 3], "v": [1, 2]}, (("a", "v"), ("t",))),
        ({"a": [1, 0], "t": [1, 3], "v": [0, 3]}, (("a", "t"), ("v",))),  # no clip has both a and v
        ({"a": [0, 0], "t": [1, 3], "v": [1, 3]}, (("a",), ("t", "v"))),
        ({"a": [1, 2], "t": [3, 3], "v": [2, 1]}, (("a",), ("t",), ("v",))),
    ],
)
def test_aligned_groups(lengths, groups):
    assert dataset_of(split_of(lengths)).aligned_groups() == groups


def test_typical_lengths_leave_out_absent_clips():
    lengths = {"a": [0, 0, 0], "t": [0, 4, 2], "v": [5, 1, 1]}
    assert dataset_of(split_of(lengths)).typical_lengths() == {"a": 1, "t": 3, "v": 1}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_feature_statistics_count_real_tokens_only(dtype):
    starts = {m: np.array([1, 0, 2]) for m in "atv"}
    split = split_of({"a": [4, 5, 2], "t": [1, 1, 1], "v": [0, 0, 0]}, starts=starts, dtype=dtype)
    pieces = [split.features["a"][row, begin:end] for row, (begin, end) in enumerate(((1, 5), (0, 5), (2, 4)))]
    tokens = np.concatenate(pieces)
    found = dataset_of(split).feature_statistics()
    assert np.allclose(found["a"][0], tokens.astype(np.float64).mean(0), atol=1e-6)
    assert np.allclose(found["a"][1], tokens.astype(np.float64).std(0), atol=1e-6)
    assert found["v"][0].tolist() == [0.0] and found["v"][1].tolist() == [1.0]
    assert all(part.dtype == np.float32 for pair in found.values() for part in pair)


def test_statistics_do_not_depend_on_chunks(monkeypatch):
    array = np.random.default_rng(0).normal(1000, 1, (40, 3, 2)).astype(np.float32)
    starts, lengths = np.zeros(40, np.int64), np.full(40, 3)
    whole = statistics(array, starts, lengths)
    monkeypatch.setattr("rohydr_fast.data.scan.CHUNK", 50)
    parts = statistics(array, starts, lengths)
    assert np.allclose(whole.std, parts.std, rtol=1e-9) and np.allclose(whole.mean, parts.mean, rtol=1e-12)
    assert np.allclose(whole.std, array.astype(np.float64).reshape(-1, 2).std(0), rtol=1e-9)
    assert whole.minimum.tolist() == array.min((0, 1)).tolist() == parts.minimum.tolist()


def test_statistics_of_zeroed_values():
    array = np.array([[[np.nan], [2.0]]], np.float32)
    found = statistics(array, np.zeros(1, np.int64), np.array([2]), zero_nonfinite=True)
    assert found.mean.tolist() == [1.0] and found.count == 2


def test_load_refuses_other_names(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"must end in .pkl, .pickle, .npz or .safetensors, got '.csv'"):
        load(str(tmp_path / "data.csv"))
    with pytest.raises(FileAccessError, match="use the word synthetic"):
        load(str(tmp_path / "mosi"))
    with pytest.raises(FileAccessError, match="does not exist"):
        load(str(tmp_path / "mosi.pkl"))


def test_load_synthetic():
    assert load("synthetic", seed=3).source == "synthetic"


def test_real_features_reach_the_batch(real_file):
    import pickle

    path = real_file("mosi/mosi.pkl")
    with open(path, "rb") as file:
        expected = pickle.load(file)["train"]
    train = mmsa.read(path)[0].train
    batch = collate(train, [7, 100], ("a", "t"))
    length = int(batch.lengths["t"][1])
    assert np.array_equal(batch.x["t"][1, :length].numpy(), expected["text"][100, :length].astype(np.float32))
    assert np.array_equal(batch.x["a"][0].numpy(), expected["audio"][7])
