"""The synthetic clips: repeatable, of MOSI's schema, and written like MMSA's files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from rohydr_fast.data import containers, load, synthetic, tensorfile
from rohydr_fast.data.synthetic import EMBEDDED, Sampler, Shape
from rohydr_fast.data.synthetic_best import KnownBest, Population
from rohydr_fast.errors import UsageError
from rohydr_fast.modalities import MODALITIES

TINY = Shape("tiny", (64, 8, 8), {"a": 2, "t": 3, "v": 2}, {"a": 4, "t": 3, "v": 5}, "own", 5, typical=0.8)


@pytest.fixture(scope="module")
def data():
    return synthetic.generate()


def all_bytes(dataset) -> bytes:
    parts = []
    for split in (dataset.train, dataset.valid, dataset.test):
        parts += [split.features[m].tobytes() for m in MODALITIES] + [split.labels.tobytes(), str(split.ids).encode()]
    return b"".join(parts)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(data):
    again, other = synthetic.generate(0), synthetic.generate(1)
    assert all_bytes(data) == all_bytes(again) and data.sha256 == again.sha256
    assert data.sha256 != other.sha256
    for m in MODALITIES:
        assert not np.array_equal(data.test.features[m], other.test.features[m])
    assert not np.array_equal(data.test.labels, other.test.labels)


def test_the_schema_is_that_of_mosi(data):
    assert [len(data.train), len(data.valid), len(data.test)] == [1284, 229, 686]
    for split in (data.train, data.valid, data.test):
        for m, dim in {"a": 5, "t": 32, "v": 20}.items():
            assert split.features[m].shape == (len(split), 50, dim) and split.features[m].dtype == np.float32
            assert np.isfinite(split.features[m]).all() and split.features[m].any(axis=2).all()
            assert (split.starts[m] == 0).all() and (split.lengths[m] == 50).all()
        assert split.labels.dtype == np.float32 and np.abs(split.labels).max() <= 3
        np.testing.assert_allclose(split.labels * 5, np.round(split.labels * 5), atol=1e-5)
    ids = data.train.ids + data.valid.ids + data.test.ids
    assert len(set(ids)) == 2199 and all("$_$" in clip for clip in ids)
    videos = [{clip.split("$_$")[0] for clip in split.ids} for split in (data.train, data.valid, data.test)]
    assert not videos[0] & videos[1] and not videos[1] & videos[2] and not videos[0] & videos[2]
    assert any("synthetic" in note for note in data.notes)


def test_labels_are_spread_like_mosis(data):
    labels = data.train.labels
    assert 0.02 < (labels == 0).mean() < 0.08
    assert 1.3 < labels.std() < 1.7 and abs(labels.mean()) < 0.2
    assert not np.signbit(labels[labels == 0]).any()


def test_a_row_does_not_depend_on_how_many_rows_are_drawn():
    sampler = Sampler(TINY, seed=3)
    few, many = sampler.split("train", 300), sampler.split("train", 700)
    for m in MODALITIES:
        assert np.array_equal(few.features[m], many.features[m][:300])
        assert np.array_equal(few.lengths[m], many.lengths[m][:300])
    assert np.array_equal(few.labels, many.labels[:300])
    assert not np.array_equal(many.labels[:256], many.labels[256:512]), "two blocks share their random numbers"
    assert not np.array_equal(few.labels, sampler.split("test", 300).labels), "two splits share their random numbers"


def test_other_numbers_of_clips_are_asked_for_by_name():
    usual, other = load("synthetic"), load("synthetic:30/20/700")
    assert [len(split) for split in (other.train, other.valid, other.test)] == [30, 20, 700]
    assert np.array_equal(other.test.features["t"][:686], usual.test.features["t"])
    assert np.array_equal(other.train.labels, usual.train.labels[:30])
    assert (other.source, usual.source) == ("synthetic:30/20/700", "synthetic")
    assert other.sha256 != usual.sha256 == load("synthetic:1284/229/686").sha256
    assert other.known_best.metrics("test", "a,t,v")["n"] == 700


@pytest.mark.parametrize(
    "source", ["synthetic:", "synthetic:1", "synthetic:1/2/3/4", "synthetic:1/-2/3", "synthetic:a/b/c"]
)
def test_a_source_that_says_no_numbers_is_refused(source):
    with pytest.raises(UsageError, match="synthetic:TRAIN/VALID/TEST"):
        load(source)


def test_modalities_differ_in_scale_and_the_noise_is_correlated_in_time(data):
    scale = {m: data.train.features[m].std() for m in MODALITIES}
    assert scale["a"] > 5 * scale["v"] and scale["v"] > 1.5 * scale["t"]
    x = Population(EMBEDDED.dims).invert("v", data.train.features["v"])
    x = x - x.mean(axis=1, keepdims=True)
    assert (x[:, 1:] * x[:, :-1]).mean() / (x * x).mean() > 0.6


def test_the_strengths_are_those_of_the_fields_tables():
    table = synthetic.known_best_table(clips=20_000)
    accuracy = {name: row["Non0_acc_2"] for name, row in table.items()}
    assert 0.80 < accuracy["{t}"] < 0.84
    assert 0.62 < accuracy["{a}"] < 0.70 and 0.62 < accuracy["{v}"] < 0.70
    assert 0.70 < accuracy["{a,v}"] < 0.75
    assert 0.84 < accuracy["{a,t,v}"] < 0.87


# Files


def read_back(path, name, **options):
    synthetic.write_like(name, path, **options)
    return load(str(path))


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pkl"])
def test_an_aligned_file_is_read_back_as_it_was_drawn(tmp_path, suffix):
    read = read_back(tmp_path / f"clips.{suffix}", "mosi", clips=30, seed=2)
    sampler = Sampler(synthetic.mmsa_shape("mosi", clips=30), seed=2)
    assert read.dims() == {"a": 5, "t": 768, "v": 20} and read.aligned_groups() == (("a", "t", "v"),)
    for split in (read.train, read.valid, read.test):
        drawn = sampler.split(split.name)
        assert split.ids == drawn.ids and "synthetic" in split.ids[0]
        np.testing.assert_array_equal(split.labels, drawn.labels)
        for m in MODALITIES:
            np.testing.assert_array_equal(split.features[m], drawn.features[m])
            np.testing.assert_array_equal(split.lengths[m], drawn.lengths[m])
            assert not split.starts[m].any()
    assert read.notes == ()
    known = {
        name: KnownBest(Population(read.dims()), {"train": part})
        for name, part in (("read", read.train), ("drawn", sampler.split("train")))
    }
    assert known["read"].metrics("train", "t") == known["drawn"].metrics("train", "t")


def test_an_unaligned_file_has_ragged_lengths_of_its_own(tmp_path):
    read = read_back(tmp_path / "clips.safetensors", "mosei", unaligned=True, clips=40)
    assert read.train.features["a"].shape == (40, 500, 74) and read.train.features["v"].shape == (40, 500, 35)
    assert read.train.features["t"].shape == (40, 50, 768)
    assert read.aligned_groups() == (("a",), ("t",), ("v",))
    drawn = Sampler(synthetic.mmsa_shape("mosei", unaligned=True, clips=40)).split("train")
    for m in MODALITIES:
        assert len(set(read.train.lengths[m].tolist())) > 8
        np.testing.assert_array_equal(read.train.lengths[m], drawn.lengths[m])
    np.testing.assert_allclose(read.train.labels * 3, np.round(read.train.labels * 3), atol=1e-5)


def test_a_file_has_mmsas_keys(tmp_path):
    keys = {"raw_text", "id", "annotations", "audio", "vision", "text", "text_bert"}
    keys |= {"classification_labels", "regression_labels"}
    for unaligned, expected in ((False, keys), (True, keys | {"audio_lengths", "vision_lengths"})):
        path = str(tmp_path / f"{unaligned}.pkl")
        synthetic.write_like("mosi", path, clips=20, unaligned=unaligned)
        train = containers.read(path)[0]["train"]
        assert set(train) == expected
        ids, mask, types = np.moveaxis(train["text_bert"], 1, 0)
        assert train["text_bert"].shape == (20, 3, 50) and not types.any()
        assert (ids[:, 0] == 101).all() and ((ids != 0) == mask).all()
        assert (ids[np.arange(20), mask.sum(1) - 1] == 102).all()
        np.testing.assert_array_equal(train["classification_labels"], np.sign(train["regression_labels"]) + 1)


def test_the_real_sizes_are_mmsas():
    expected = {
        ("mosi", False): ((1284, 229, 686), {"a": 50, "t": 50, "v": 50}),
        ("mosi", True): ((1284, 229, 686), {"a": 375, "t": 50, "v": 500}),
        ("mosei", False): ((16326, 1871, 4659), {"a": 50, "t": 50, "v": 50}),
        ("mosei", True): ((16326, 1871, 4659), {"a": 500, "t": 50, "v": 500}),
    }
    for (name, unaligned), (clips, steps) in expected.items():
        shape = synthetic.mmsa_shape(name, unaligned=unaligned)
        assert (shape.clips, shape.steps) == (clips, steps)


def test_a_streamed_file_does_not_depend_on_the_size_of_the_pieces(tmp_path, monkeypatch):
    synthetic.write_like("mosi", tmp_path / "one.safetensors", clips=600)
    monkeypatch.setattr("rohydr_fast.data.mapping.CHUNK", 1 << 20)  # six clips of text at a time
    synthetic.write_like("mosi", tmp_path / "two.safetensors", clips=600)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    drawn = Sampler(synthetic.mmsa_shape("mosi", clips=600)).split("train")
    np.testing.assert_array_equal(load(str(tmp_path / "two.safetensors")).train.features["t"], drawn.features["t"])


def test_a_streamed_file_is_never_in_memory_whole(tmp_path, monkeypatch):
    drawn = []
    whole = Sampler.features

    def watched(self, split, m, rows):
        drawn.append((split, m, rows.start, rows.stop))
        return whole(self, split, m, rows)

    monkeypatch.setattr(Sampler, "features", watched)
    monkeypatch.setattr("rohydr_fast.data.mapping.CHUNK", 1 << 20)
    synthetic.write_like("mosi", tmp_path / "clips.safetensors", clips=600)
    assert max(stop - start for *_, start, stop in drawn) <= synthetic.BLOCK
    assert len(drawn) <= len(set(drawn)) + 9, "blocks are drawn again and again"


def test_large_files_are_refused_where_they_cannot_be_streamed(tmp_path):
    for suffix in ("npz", "pkl"):
        with pytest.raises(UsageError, match="at most 1 GiB, got 7.9 GiB. Write .safetensors"):
            synthetic.write_like("mosei", tmp_path / f"clips.{suffix}", unaligned=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path, suffix):
    path = tmp_path / f"clips.{suffix}"
    path.write_text("precious")
    with pytest.raises(UsageError, match="must not exist yet"):
        synthetic.write_like("mosi", path, clips=2)
    assert path.read_text() == "precious"
    synthetic.write_like("mosi", path, clips=2, overwrite=True)
    assert len(load(str(path)).train) == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "write", full)
    with pytest.raises(OSError, match="No space"):
        synthetic.write_like("mosi", tmp_path / "clips.safetensors", clips=2)
    assert list(tmp_path.iterdir()) == []


def test_impossible_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="name must be 'mosi' or 'mosei', got 'sims'"):
        synthetic.write_like("sims", tmp_path / "clips.npz")
    with pytest.raises(UsageError, match="clips must be from 1 to 1284 for mosi, got 0"):
        synthetic.write_like("mosi", tmp_path / "clips.npz", clips=0)
    with pytest.raises(UsageError, match="must end in .pkl, .npz or .safetensors"):
        synthetic.write_like("mosi", tmp_path / "clips.h5", clips=2)


# Errors and the command


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_an_impossible_seed_is_refused(seed):
    with pytest.raises(UsageError, match="seed must be an integer from 0"):
        synthetic.generate(seed)


def test_the_command_prints_the_table(capsys):
    assert synthetic.main(["--clips", "300"]) == 0
    printed = capsys.readouterr().out
    assert "synthetic" in printed and "{a,t,v}" in printed and "ACC2" in printed
    assert synthetic.main(["--clips", "300", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert rows["{t}"]["n"] == 300
    assert synthetic.main(["--clips", "1"]) == 2


def test_the_command_runs_without_a_warning(repo_root):
    command = [sys.executable, "-W", "error", "-m", "rohydr_fast.data.synthetic", "--clips", "200"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
