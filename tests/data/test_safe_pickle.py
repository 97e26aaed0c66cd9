"""Valid pickles read like `pickle.load`; hostile and broken ones are refused, and nothing in them runs."""

import pickle
import pickletools
import struct
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rohydr_fast.data import safe_pickle
from rohydr_fast.errors import DataError

from .hostile import CANARY, HOSTILE
from .pickle_values import is_plain, same, with_names_of_numpy_1

VALUES = {
    "float16": np.arange(6, dtype=np.float16).reshape(2, 3),
    "float32": np.linspace(0, 1, 7, dtype=np.float32),
    "float64-fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(20)[::3],
    "big-endian": np.arange(5, dtype=">f4"),
    "integers": [np.arange(4, dtype=word) for word in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")],
    "bool": np.array([True, False]),
    "unicode": np.array(["a", "bc", "", "é\U0001f600"]),
    "unicode-big-endian": np.array(["é", "b"], dtype=">U3"),
    "bytes-array": np.array([b"ab", b"c"]),
    "objects": np.array(["x", None, 1, 2.5, "long" * 100], dtype=object),
    "objects-2d": np.array([["x", "y"], ["z", "w"]], dtype=object),
    "empty": np.zeros((0, 3)),
    "zero-dimensional": np.array(3.0),
    "scalars": [np.float32(2), np.float64(-1), np.int64(7), np.bool_(True), np.str_("x"), np.uint8(3)],
    "numbers": [0, 1, -1, 255, 65536, 2**40, -(2**63), 2**64 - 1, 1.5, float("inf"), True, False, None],
    "text": ["", "a", "é\n\\u", "x" * 300, "\udc80"],
    "bytes": [b"", b"a", bytes(range(256)), b"x" * 1000],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,))],
    "nested": {"train": {"audio": np.ones((2, 1, 3), np.float32), "labels": [1.0, -2.0]}},
    "ordered": OrderedDict(b=1, a=2),
    "shared": (lambda part: {"one": part, "two": part})([1, 2]),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_reads_what_pickle_reads(name, protocol):
    data = pickle.dumps(VALUES[name], protocol)
    assert same(pickle.loads(data), safe_pickle.loads(data))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_names_of_numpy_1_and_2(protocol):
    value = [np.arange(3.0), np.float32(1)]
    data = with_names_of_numpy_1(pickle.dumps(value, protocol))
    assert b"numpy.core" in data and b"numpy._core" not in data
    assert same(value, safe_pickle.loads(data))


def test_reads_a_pickle_that_was_optimised():
    value = {"a": np.arange(5), "b": ["x", "y"]}
    assert same(value, safe_pickle.loads(pickletools.optimize(pickle.dumps(value, 4))))


def test_arrays_are_read_only():
    array = safe_pickle.loads(pickle.dumps(np.arange(300.0)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the canary's name is relative
    with pytest.raises(DataError) as caught:
        safe_pickle.loads(HOSTILE[name], "MOSI.pkl")
    message = str(caught.value)
    assert message.startswith("MOSI.pkl: ") and message.endswith(".") and "\n" not in message and len(message) < 400
    assert not (tmp_path / CANARY).exists()


def test_there_are_enough_hostile_pickles():
    assert len(HOSTILE) >= 60


def test_the_canary_would_sing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["reduce os.system by GLOBAL"])
    assert (tmp_path / CANARY).exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reduce os.system by GLOBAL", "got a call of posix.system"),
        ("builtins eval", "got a call of builtins.eval"),
        ("INST with binary text", "the instruction INST"),
        ("NEXT_BUFFER", "out-of-band"),
        ("PERSID", "a persistent id"),
        ("EXT1", "the instruction EXT1"),
        ("LONG4 huge", "more than 64 bits"),
        ("python 2 string", "Python 3"),
        ("bytes after STOP", "must end the file"),
        ("protocol 9", "at most 5"),
        ("list in itself", "holds itself"),
    ],
)
def test_refusals_name_the_reason(name, words):
    with pytest.raises(DataError, match=words):
        safe_pickle.loads(HOSTILE[name])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_truncation_is_refused(protocol):
    data = pickle.dumps({"train": {"audio": np.ones((2, 1, 3), np.float32), "id": ["a", "b"]}}, protocol)
    for length in range(1, len(data)):
        with pytest.raises(DataError):
            safe_pickle.loads(data[:length])


_BASES = [
    pickle.dumps({"train": {"a": np.ones((2, 3), word), "id": np.array(["x"]), "l": [1.0, np.float32(2)]}}, protocol)
    for protocol, word in ((0, "f4"), (2, "f8"), (4, "f2"), (5, ">f4"))
] + [pickle.dumps(np.array(["x", None], dtype=object), 4)]


_EDITS = st.tuples(st.integers(0, 600), st.sampled_from(["set", "insert", "delete", "copy"]), st.integers(0, 255))


@given(st.sampled_from(range(len(_BASES))), st.lists(_EDITS, max_size=8))
@settings(max_examples=1500, deadline=None)
@example(0, [])
def test_mutated_pickles_give_plain_data_or_data_error(base, edits):
    data = bytearray(_BASES[base])
    for place, kind, byte in edits:
        place %= max(1, len(data))
        if kind == "set" and data:
            data[place] = byte
        elif kind == "insert":
            data.insert(place, byte)
        elif kind == "delete":
            del data[place : place + 1 + byte % 4]
        else:
            data[place:place] = data[place : place + byte]
    try:
        value = safe_pickle.loads(bytes(data) or b".")
    except DataError:
        return
    assert is_plain(value)


_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
_PIECES = st.one_of(
    st.sampled_from(_OPCODES),
    st.sampled_from([b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"]),
    st.sampled_from([b"cnumpy.core.multiarray\nscalar\n", b"\x8c\x02f4", b"\x8c\x01<", b"K\x03", b"K\x01"]),
    st.sampled_from([b"C\x04abcd", b"]", b"}", b")", b"("]),
    st.binary(max_size=3),
)


@given(st.lists(_PIECES, max_size=40))
@settings(max_examples=1500, deadline=None)
def test_random_programs_give_plain_data_or_data_error(pieces):
    try:
        value = safe_pickle.loads(b"\x80\x04" + b"".join(pieces) + b".")
    except DataError:
        return
    assert is_plain(value)


def test_memory_of_a_declared_size_is_not_taken():
    data = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc."
    with pytest.raises(DataError, match="truncated"):
        safe_pickle.loads(data)


def test_long_lists_of_scalars_are_read():
    value = [np.float32(number) for number in range(20_000)]
    assert same(value, safe_pickle.loads(pickle.dumps(value)))


@pytest.mark.parametrize("name", ["mosi/mosi.pkl", "mosi_word/mosi_word.pkl"])
def test_real_files_equal_what_pickle_reads(real_file, name):
    path = real_file(name)
    with open(path, "rb") as file:
        expected = pickle.load(file)
    assert same(expected, safe_pickle.load(path))
