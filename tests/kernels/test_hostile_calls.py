"""Calls that could take the process with them, each in a process of its own; random ones: tests.reliability."""

import subprocess
import sys

import pytest

from . import driver

pytestmark = driver.needs_core

IN_A_CHILD = """
import resource, sys
import numpy as np
from rohydr_fast import _native
core = _native.load()
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
"""
ALONE = {
    # No sample, but as many tokens as no list of theirs could hold.
    "huge-and-empty-attention": """
q, k = np.empty((0, 2**36, 8), np.float32), np.empty((0, 3, 8), np.float32)
try:
    core.cross_attention(q, k, k, 2, None, q, 1)
except ValueError:
    pass
""",
    "huge-and-empty-keys": """
q, k = np.empty((0, 3, 8), np.float32), np.empty((0, 2**36, 8), np.float32)
try:
    core.cross_attention(q, k, k, 2, None, q, 1)
except ValueError:
    pass
""",
    "huge-and-empty-denoiser": """
from tests.kernels.valid_calls import Call
for operation in ("denoiser", "denoiser_backward", "denoiser_block", "denoiser_block_backward"):
    call = Call(operation)
    channels, keys = call.values["x"].shape[-1], list(call.values["cond_kv"].shape)
    keys[-3:-1] = 0, 2**36
    for changes in ({"x": np.empty((0, 2**36, channels), np.float32)}, {"cond_kv": np.empty(keys, np.float32)}):
        try:
            call.run(token_mask=None, key_mask=None, **changes)
        except ValueError:
            pass
""",
    "tape-of-a-huge-batch": """
from tests.kernels.valid_calls import Call
packed = Call("reverse_loop").values["packed"]
for samples, tokens in ((2**31 - 1, 2**31 - 1), (2**31 - 1, 0)):
    try:
        core.reverse_loop_tape_size(packed, samples, tokens, None, 2**31 - 1)
    except (ValueError, MemoryError):
        pass
""",
    # Tapes are checked before the instruction set changes, and used after.
    "instruction-set-changed-by-an-argument": """
import os
from tests.kernels.valid_calls import Call
class Seed:
    def __index__(self):
        os.environ["ROHYDR_FAST_CPU"] = core.cpu_isas()[0]
        return 1
os.environ["ROHYDR_FAST_CPU"] = core.cpu_isas()[-1]
for operation in ("reverse_loop", "reverse_loop_backward"):
    first, second = Call(operation), Call(operation)
    second.values.update(seed=Seed(), tape=None)
    getattr(core, operation)([tuple(call.values.values()) for call in (first, second)], 1)
    assert all(result.guards_hold() for call in (first, second) for result in call.results.values())
""",
    # An instance that no function of the module made.
    "weights-out-of-nothing": """
try:
    blank = core.PackedWeights.__new__(core.PackedWeights)
except TypeError:
    sys.exit()
for use in (lambda: blank.packs, lambda: blank.nbytes, lambda: blank.refresh()):
    try:
        use()
    except (TypeError, ValueError):
        pass
for entry, size in ((core.reverse_loop, 15), (core.reverse_loop_backward, 19)):
    try:
        entry([(blank, *[None] * (size - 1))], 1)
    except (TypeError, ValueError):
        pass
for entry, size in ((core.denoiser, 9), (core.denoiser_backward, 14), (core.denoiser_block_backward, 11)):
    try:
        entry(blank, *[None] * (size - 1), 1)
    except (TypeError, ValueError):
        pass
try:
    core.reverse_loop_tape_size(blank, 1, 1, None, 1)
except (TypeError, ValueError):
    pass
""",
    # The list that weights were packed from is the caller's to change.
    "list-emptied-after-packing": """
width, rng = 4, np.random.default_rng(0)
shapes = [(12, 4), (12,)] + 3 * [(4, 4), (4,)] + [(9, 4), (9,), (4, 9), (4,)]
arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
packed = core.pack_block(arrays, 2, False)
x, kv = rng.standard_normal((1, 3, 4)).astype(np.float32), rng.standard_normal((2, 1, 2, 4)).astype(np.float32)
modulation, first, second = rng.standard_normal((1, 9, 4)).astype(np.float32), np.empty_like(x), np.empty_like(x)
core.denoiser_block(packed, x, modulation, kv, None, None, first, 1)
arrays.clear()
others = [np.full(shape, 7, np.float32) for shape in shapes for _ in range(20)]
core.denoiser_block(packed, x, modulation, kv, None, None, second, 1)
assert packed.packs == 1 and (first == second).all(), "packed from memory that was given back"
""",
}


@pytest.mark.parametrize("script", ALONE)
def test_in_a_process_of_its_own(script, repo_root):
    """Calls that could take the process with them."""
    command = [sys.executable, "-c", IN_A_CHILD + ALONE[script]]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-800:]}"
