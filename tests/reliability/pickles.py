"""Damaged pickles: what is read is plain data, or refused, and nothing that the file asks for is executed."""

import pickle
import pickletools
import time

import numpy as np

from rohydr_fast.data import safe_pickle
from rohydr_fast.errors import DataError
from tests.data.pickle_values import is_plain, same, with_names_of_numpy_1

from .audit import audited
from .mutation import mutant

LONGEST = 2.0
"""Seconds of the processor that reading one small file may take."""
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def run(count: int, seed: int) -> dict[str, int | str]:
    """Read `count` mutants; each is made from `seed` and its number."""
    originals = bases()
    values = [safe_pickle.loads(base) for base in originals]  # imports the codecs that a first use needs, too
    counts = {"refused": 0, "accepted, same value": 0, "accepted, another value": 0}
    slowest = 0.0
    for number in range(count):
        base, data = mutant(originals, OPCODES, seed, number)
        where = f"mutant {number} of seed {seed}"
        value, seconds = _read(data, where)
        slowest = max(slowest, seconds)
        assert seconds < LONGEST, f"{where}: took {seconds:.1f} s"
        if isinstance(value, DataError):
            counts["refused"] += 1
        else:
            assert is_plain(value), f"{where}: is no plain data"
            counts["accepted, same value" if same(values[base], value) else "accepted, another value"] += 1
    return {**counts, "slowest ms": round(1000 * slowest)}


def bases() -> list[bytes]:
    """Small pickles of all protocols, with the names of both numpys, and of arrays of objects."""
    rng = np.random.default_rng(0)
    split = {
        "audio": rng.normal(size=(2, 3, 2)).astype("f4"),
        "text": rng.normal(size=(2, 2)).astype(">f8"),
        "raw_text": np.array(["é", None], dtype=object),
        "id": np.array(["a$_$1", "b"]),
        "regression_labels": [0.5, np.float32(-1), 2, True],
        "flags": np.asfortranarray(np.ones((1, 2), bool)),
    }
    made = [pickle.dumps({"train": split}, protocol) for protocol in range(6)]
    # The older names are shorter, so that frames end before they say; the reader does not go by them.
    made += [with_names_of_numpy_1(made[protocol]) for protocol in (2, 4, 5)]
    made.append(pickletools.optimize(pickle.dumps({"valid": {"vision": split["audio"], "o": split["raw_text"]}}, 4)))
    return made


def _read(data: bytes, where: str) -> tuple[object, float]:
    """What was read, or why it was refused, and the seconds."""
    with audited() as events:
        started = time.thread_time()
        try:
            value = safe_pickle.loads(data)
        except DataError as error:
            value = error
        except Exception as error:
            raise AssertionError(f"{where}: gave {error!r}") from error
        seconds = time.thread_time() - started
    assert not events, f"{where}: reading it caused {events[0]}"
    return value, seconds
