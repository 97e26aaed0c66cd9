"""The containers keep values and types, damaged ones are refused, and large ones stay on the disk."""

import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from rohydr_fast.data import containers, load, mapping, npz, tensorfile
from rohydr_fast.errors import DataError, FileAccessError, UsageError

from .hostile_files import BAD_ARCHIVES, BAD_MEMBERS, BAD_TENSORS, SUFFIXES, WRONG, zipped


@pytest.fixture
def tree(make_tree):
    made = make_tree(audio_lengths=lambda n: np.ones(n, np.int32), text_bert=lambda n: np.ones((n, 3, 7), np.int64))
    made["train"]["text"] = made["train"]["text"].astype(np.float16)
    made["valid"]["vision"] = np.asfortranarray(made["valid"]["vision"].astype(np.float64))
    made["test"]["flags"] = np.array([True, False])
    made["test"]["raw_text"] = np.array(["", "é\U0001f600", "a" * 40, "\n", " x "], dtype="<U64")
    made["train"]["words"] = np.array(["a", "long " * 3, "", "b", "c", "d"], dtype=object)
    return made


def write(tree, path):
    containers.write(tree, str(path))
    return str(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mapped", [False, True])
def test_round_trip_is_exact(tree, tmp_path, monkeypatch, suffix, mapped):
    monkeypatch.setattr(mapping, "MAP_FROM", 0 if mapped else 1 << 40)
    read, _ = containers.read(write(tree, tmp_path / f"data{suffix}"))
    assert set(read) == set(tree)
    for name, split in tree.items():
        assert set(read[name]) == set(split)
        for key, value in split.items():
            found = read[name][key]
            wanted = "<U15" if suffix == ".npz" and value.dtype == object else value.dtype
            assert found.dtype == wanted and found.shape == value.shape, key
            assert np.array_equal(found, value), key


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
def test_a_converted_file_is_the_same_data_set(make_tree, tmp_path, first, second):
    one = write(make_tree(), tmp_path / f"one{first}")
    two = write(containers.read(one)[0], tmp_path / f"two{second}")
    a, b = load(one), load(two)
    assert np.array_equal(a.train.features["t"], b.train.features["t"]) and a.test.ids == b.test.ids
    assert np.array_equal(a.valid.labels, b.valid.labels) and (a.sha256 == b.sha256) == (first == second)


def test_written_files_are_read_by_their_own_libraries(tree, tmp_path):
    with np.load(write(tree, tmp_path / "d.npz"), allow_pickle=False) as archive:
        assert np.array_equal(archive["train/audio"], tree["train"]["audio"])
        assert archive["valid/vision"].dtype == np.float64
    with safe_open(write(tree, tmp_path / "d.safetensors"), framework="numpy") as file:
        assert np.array_equal(file.get_tensor("train/text"), tree["train"]["text"])
        assert file.metadata()["format"] == "rohydr_fast/mmsa"
    with open(write(tree, tmp_path / "d.pkl"), "rb") as file:
        assert np.array_equal(pickle.load(file)["test"]["vision"], tree["test"]["vision"])


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_numpys_own_archives_are_read(make_tree, tmp_path, savez):
    flat = {f"{name}/{key}": value for name, split in make_tree().items() for key, value in split.items()}
    savez(tmp_path / "d.npz", **flat)
    assert np.array_equal(load(str(tmp_path / "d.npz")).train.features["a"], flat["train/audio"])


def test_big_endian_numbers_survive(make_tree, tmp_path):
    tree = make_tree(dtype=">f4")
    for suffix, word in ((".npz", ">f4"), (".safetensors", "<f4"), (".pkl", ">f4")):
        audio = containers.read(write(tree, tmp_path / f"d{suffix}"))[0]["train"]["audio"]
        assert np.array_equal(audio, tree["train"]["audio"])
        assert suffix == ".pkl" or audio.dtype == word


def test_lists_become_arrays_and_the_rest_is_told(make_tree, tmp_path):
    tree = make_tree()
    tree["train"] |= {"regression_labels": [0.5] * 6, "id": list("abcdef"), "extra": {"x": 1}, "mixed": [1, "a"]}
    assert containers.write(tree, str(tmp_path / "d.npz")) == ["train/extra", "train/mixed"]
    assert load(str(tmp_path / "d.npz")).train.labels.tolist() == [0.5] * 6


def test_nothing_is_overwritten_and_nothing_is_left_half(tree, tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="--overwrite"):
        containers.write(tree, str(path))
    monkeypatch.setattr(npz, "row_blocks", lambda array: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        containers.write(tree, str(path), overwrite=True)
    assert path.read_bytes() == b"mine" and os.listdir(tmp_path) == ["d.npz"]
    monkeypatch.undo()
    containers.write(tree, str(path), overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600 and os.listdir(tmp_path) == ["d.npz"]
    with pytest.raises(UsageError, match="must end in"):
        containers.write(tree, str(tmp_path / "d.csv"))


def test_texts_too_uneven_for_npz(make_tree, tmp_path):
    tree = make_tree(clips=(600, 4, 5))
    tree["train"]["raw_text"] = ["x"] * 599 + ["y" * 100_000]
    with pytest.raises(DataError, match="too uneven for .npz. Write .safetensors"):
        containers.write(tree, str(tmp_path / "d.npz"))
    read, _ = containers.read(write(tree, tmp_path / "d.safetensors"))
    assert read["train"]["raw_text"].tolist() == tree["train"]["raw_text"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", WRONG)
def test_files_that_are_something_else(tmp_path, suffix, kind):
    content, words = WRONG[kind]
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load(str(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_pickle_damaged_as_text(make_tree, tmp_path):
    data = pickle.dumps(make_tree())
    for spoiled in (data.replace(b"\n", b"\r\n"), data.decode("utf-8", "replace").encode()):
        (tmp_path / "d.pkl").write_bytes(spoiled)
        with pytest.raises(DataError, match="damaged by a transfer as text. Copy it again in binary mode"):
            load(str(tmp_path / "d.pkl"))


def test_a_zip_that_is_called_pickle(tree, tmp_path):
    os.rename(write(tree, tmp_path / "d.npz"), tmp_path / "d.pkl")
    with pytest.raises(DataError, match="zip archive. Name it .npz"):
        load(str(tmp_path / "d.pkl"))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_directories_pipes_and_devices_do_not_block(tmp_path, suffix):
    os.mkdir(tmp_path / f"folder{suffix}")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    os.symlink("/dev/zero", tmp_path / f"device{suffix}")
    for name, kind in (("folder", "a directory"), ("pipe", "a pipe"), ("device", "a device")):
        with pytest.raises(FileAccessError, match=f"must be a file, got {kind}"):
            load(str(tmp_path / f"{name}{suffix}"))
    with pytest.raises(FileAccessError, match="does not exist"):
        load(str(tmp_path / f"absent{suffix}"))
    with pytest.raises(FileAccessError, match="not a possible file name"):
        load(f"a\0b{suffix}")


def test_unreadable_file(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = tmp_path / "d.pkl"
    path.write_bytes(b"N.")
    path.chmod(0)
    with pytest.raises(FileAccessError, match="permissions"):
        load(str(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncation(make_tree, tmp_path, suffix):
    with open(write(make_tree(), tmp_path / f"d{suffix}"), "rb") as file:
        data = file.read()
    for length in [*range(1, 200, 7), *range(200, len(data), 97), len(data) - 1]:
        (tmp_path / f"cut{suffix}").write_bytes(data[:length])
        with pytest.raises(DataError):
            load(str(tmp_path / f"cut{suffix}"))


_TREE = {
    name: {key: np.ones((2, 1, 2), np.float32) for key in ("audio", "text", "vision")}
    | {"regression_labels": np.zeros(2), "id": np.array([f"{name}0", f"{name}1"])}
    for name in ("train", "valid", "test")
}


_EDITS = st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=6)


@given(st.sampled_from(SUFFIXES), _EDITS)
@settings(max_examples=300, deadline=None)
def test_mutations_give_a_data_set_or_data_error(tmp_path_factory, suffix, edits):
    folder = tmp_path_factory.getbasetemp()
    path = str(folder / f"mutated{suffix}")
    containers.write(_TREE, path, overwrite=True)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    for place, byte in edits:
        data[place % len(data)] = byte
    with open(path, "wb") as file:
        file.write(data)
    try:
        dataset = load(path)
    except DataError:
        return
    assert len(dataset.train) == 2


@pytest.mark.parametrize("kind", BAD_MEMBERS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bad_members_are_refused(tmp_path, monkeypatch, kind, compression):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_MEMBERS[kind]
    (tmp_path / "d.npz").write_bytes(zipped([("train/audio.npy", content)], compression))
    with pytest.raises(DataError, match=words):
        npz.read(mapping.open_file("d.npz"))
    assert os.listdir(tmp_path) == ["d.npz"]


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archives_are_refused(tmp_path, kind):
    make, words = BAD_ARCHIVES[kind]
    (tmp_path / "d.npz").write_bytes(make())
    with pytest.raises(DataError, match=words):
        containers.read(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_safetensors_are_refused(tmp_path, kind):
    content, words = BAD_TENSORS[kind]
    (tmp_path / "d.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=words):
        tensorfile.read(mapping.open_file(tmp_path / "d.safetensors"))


def test_foreign_safetensors_without_metadata(make_tree, tmp_path):
    flat = {f"{n}/{k}": v for n, split in make_tree().items() for k, v in split.items() if v.dtype.kind == "f"}
    save_file(flat, tmp_path / "d.safetensors")
    dataset = load(str(tmp_path / "d.safetensors"))
    assert dataset.train.ids[0] == "train_0" and np.array_equal(dataset.train.features["v"], flat["train/vision"])


_MEASURE = """
import resource, sys
import numpy as np
import torch
from rohydr_fast.data import collate, load
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
data = load(sys.argv[1])
data.feature_statistics()
steps = 0
for first in range(0, len(data.train), 64):
    batch = collate(data.train, np.arange(first, min(first + 64, len(data.train))), ("a", "t", "v"))
    steps += batch.x["a"].shape[1]
print(len(data.train), steps, (peak() - before) // 1024)
"""


@pytest.mark.timeout(120)
def test_a_file_larger_than_the_memory_limit_is_mapped(tmp_path):
    """A sparse file of 1.6 GB: the process grows by less than 400 MB while it is checked, measured and batched."""
    clips, steps, width = {"train": 4000, "valid": 10, "test": 10}, 1000, 100
    header, position = {}, 0
    for name, count in clips.items():
        for key, shape in (("audio", (count, steps, width)), ("text", (count, 1, 1)), ("vision", (count, 1, 1))):
            end = position + int(np.prod(shape)) * 4
            header[f"{name}/{key}"] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
            position = end
        for key, word in (("regression_labels", "F32"), ("audio_lengths", "I32")):
            end = position + 4 * count
            header[f"{name}/{key}"] = {"dtype": word, "shape": [count], "data_offsets": [position, end]}
            position = end
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
        for clip in range(0, clips["train"], 50):  # one token with content in some clips, the others lack audio
            file.seek(8 + len(text) + 4 * clip * steps * width)
            file.write(struct.pack("<f", 1.0))
        file.seek(8 + len(text) + header["train/audio_lengths"]["data_offsets"][0])
        file.write(np.full(clips["train"], steps, np.int32).tobytes())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEASURE, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, batched, growth = map(int, done.stdout.split())
    assert path.stat().st_size > 1_600_000_000 and count == 4000 and batched > 50 * steps
    assert growth < 400, f"grew by {growth} MB"
