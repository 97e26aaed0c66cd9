"""What is wrong with an argument is said in one sentence that names it, before anything is computed."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from . import cases, driver

pytestmark = driver.needs_core

CHAIN = ["packed", "x", "position", "modulation_blocks", "modulation_final", "cond_kv", "coefficients", "seed"]
CHAIN += ["sample_ids", "modality", "token_mask", "key_mask", "out"]
PARAMETERS = {
    "reverse_loop": CHAIN,
    "denoiser_block": ["packed", "x", "modulation", "cond_kv", "token_mask", "key_mask", "out"],
    "cross_attention": ["q", "k", "v", "num_heads", "key_mask", "out"],
}
OPTIONAL = {"token_mask", "key_mask"}
# The arrays that the sizes of a call are read from: when one of these is wrong, another may be named instead.
LEADING = {"x", "cond_kv", "coefficients", "q", "k", "modulation"}


class Call:
    """A valid call whose arguments can be replaced by name."""

    def __init__(self, operation: str, dtype: torch.dtype = torch.float32):
        sizes = {"samples": 3, "tokens": 4, "keys": 5}
        arguments = cases.CASES[operation](11, largest_width=24, **sizes)
        arguments["key_mask"] = torch.ones(3, 5, dtype=torch.bool)
        if "token_mask" in arguments:
            arguments["token_mask"] = torch.ones(3, 4, dtype=torch.bool)
        self.arguments, self.operation = driver.cast(arguments, dtype), operation
        shape = self.arguments["q" if operation == "cross_attention" else "x"].shape
        self.out = driver.Guarded(tuple(shape), dtype)
        packed = None
        if operation != "cross_attention":
            packed = driver.pack(self.arguments["weights"], self.arguments["num_heads"])
        values = driver.positional(operation, self.arguments, packed, self.out.array)
        values = values[0][0] if operation == "reverse_loop" else values
        self.values = dict(zip(PARAMETERS[operation], values, strict=True))

    def run(self, threads=1, **changes) -> None:
        values = tuple({**self.values, **changes}.values())
        if self.operation == "reverse_loop":
            driver.CORE.reverse_loop([values], threads)
        else:
            getattr(driver.CORE, self.operation)(*values, threads)

    def refused(self, name: str, value, label: str = "") -> None:
        """Asserts that this value for this argument is refused, and that nothing was computed."""
        with pytest.raises(ValueError) as caught:
            self.run(**{name: value})
        message = str(caught.value)
        names = PARAMETERS[self.operation] if name in LEADING else [name]
        prefix = f"{self.operation}: chains[0]." if self.operation == "reverse_loop" else f"{self.operation}: "
        named = any(message.startswith(f"{prefix}{one} must ") for one in names)
        sizes_named = name in LEADING and ("the condition must" in message or "sizes must" in message)
        heads_named = name == "q" and "num_heads must divide" in message
        assert named or sizes_named or heads_named, f"{label}: {message}"
        assert message.endswith("."), f"{label}: {message}"
        assert self.out.untouched(), f"{label}: something was written"


OTHER_DTYPES = "float16 float32 float64 >f4 >f8 int32 int64 >i8 uint8 bool complex64 U3".split()


def misaligned(value: np.ndarray) -> np.ndarray:
    memory = np.zeros(value.nbytes + 1, dtype=np.uint8)
    result = memory[1:].view(value.dtype).reshape(value.shape)
    result[...] = value
    return result


def strided(value: np.ndarray) -> np.ndarray:
    return np.repeat(value, 2, axis=-1)[..., ::2]


def wrong_arrays(value: np.ndarray):
    """Yields what could stand in an array's place but must not, with a word on it."""
    yield "a list", value.tolist()
    yield "a tensor", torch.from_numpy(value.copy())
    yield "a scalar", value.dtype.type(0)
    yield "an array of objects", value.astype(object)
    yield "bytes", value.tobytes()
    for dtype in OTHER_DTYPES:
        if np.dtype(dtype) != value.dtype:
            yield dtype, np.zeros(value.shape, dtype)
    yield "structured", np.zeros(value.shape, dtype=[("a", value.dtype)])
    yield "one axis more", value[None]
    yield "one axis less", np.ascontiguousarray(value[0])
    yield "no axis", np.zeros((), dtype=value.dtype)
    for axis, size in enumerate(value.shape):
        for other in {0, size - 1, size + 1} - {size}:
            shape = [*value.shape[:axis], other, *value.shape[axis + 1 :]]
            yield f"axis {axis} of {other}", np.zeros(shape, value.dtype)
    stride_0 = np.broadcast_to(value[..., :1], value.shape)
    for label, same in (
        ("Fortran order", np.asfortranarray(value)),
        ("strides", strided(value)),
        ("stride 0", stride_0),
    ):
        if not same.flags.c_contiguous:
            yield label, same
    if value.itemsize > 1:
        yield "misaligned", misaligned(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("operation", PARAMETERS)
def test_every_wrong_array(operation, dtype):
    call = Call(operation, dtype)
    for name, value in call.values.items():
        if not isinstance(value, np.ndarray):
            continue
        for label, wrong in wrong_arrays(value):
            if label == "axis 0 of 1" and operation == "denoiser_block" and name == "modulation":
                continue  # one row for all samples is right
            call.refused(name, wrong, f"{name}, {label}")
        for wrong in (1, -1.5, "text", b"", object(), {}, (), np.float32) + (() if name in OPTIONAL else (None,)):
            call.refused(name, wrong, f"{name}, {wrong!r}")
    call.run()
    call.out.result()


@pytest.mark.parametrize("operation", PARAMETERS)
def test_a_read_only_result(operation):
    call = Call(operation)
    read_only = call.values["out"].view()
    read_only.flags.writeable = False
    call.refused("out", read_only)


NO_INTEGERS = [
    None,
    1.0,
    "1",
    b"1",
    [],
    (1,),
    {},
    object(),
    np.float32(1),
    np.ones(2, int),
    -1,
    2**64,
    -(2**64),
    10**5000,
]
SCALARS = [
    ("reverse_loop", "seed", []),
    ("reverse_loop", "modality", [256]),
    ("cross_attention", "num_heads", [0, 7**9]),
]


@pytest.mark.parametrize(("operation", "name", "others"), SCALARS)
def test_scalars_of_wrong_type_or_range(operation, name, others):
    call = Call(operation)
    for wrong in NO_INTEGERS + others:
        call.refused(name, wrong)


@pytest.mark.parametrize("operation", PARAMETERS)
def test_threads(operation):
    call = Call(operation)
    for wrong in [*NO_INTEGERS, 0, 257]:
        with pytest.raises(ValueError, match=f"^{operation}: threads must be "):
            call.run(threads=wrong)
        assert call.out.untouched()
    for right in (1, 256, True, np.int8(3), np.uint64(2)):
        call.run(threads=right)


def test_numbers_out_of_range_in_arrays():
    call = Call("reverse_loop")
    for wrong in (-1, 2**48, 2**63 - 1, -(2**63)):
        ids = call.values["sample_ids"].copy()
        ids[-1] = wrong
        call.refused("sample_ids", ids)
    for wrong in (np.nan, np.inf, -np.inf):
        coefficients = call.values["coefficients"].copy()
        coefficients[-1, -1] = wrong
        call.refused("coefficients", coefficients)


@pytest.mark.parametrize("operation", ["reverse_loop", "denoiser_block"])
def test_what_is_no_packed_weights(operation):
    call, other = Call(operation), "denoiser_block" if operation == "reverse_loop" else "reverse_loop"
    for wrong in (
        None,
        1,
        "text",
        [],
        object(),
        driver.CORE,
        type(call.values["packed"]),
        Call(other).values["packed"],
    ):
        call.refused("packed", wrong)


def test_weights_of_another_type_than_the_arrays():
    for operation in ("reverse_loop", "denoiser_block"):
        with pytest.raises(ValueError, match=r"\bx must have dtype float64, got float32"):
            Call(operation).run(packed=Call(operation, torch.float64).values["packed"])


def test_chains_that_are_none():
    call = Call("reverse_loop")
    chain = tuple(call.values.values())
    for wrong in (None, 3, "text", {}, {1: chain}, iter([chain]), np.zeros(3), chain[1]):
        with pytest.raises(ValueError, match="^reverse_loop: chains must be a list"):
            driver.CORE.reverse_loop(wrong, 1)
    for wrong in (None, [], list(chain), (), chain[:-1], (*chain, None), "x" * 13):
        with pytest.raises(ValueError, match=r"^reverse_loop: chains\[1\] must be a tuple of 13"):
            driver.CORE.reverse_loop([chain, wrong], 1)
    with pytest.raises(ValueError, match=r"^reverse_loop: chains\[1\]\.seed must be an integer"):
        driver.CORE.reverse_loop([chain, (*chain[:7], -1, *chain[8:])], 1)
    assert call.out.untouched(), "the first chain ran although the second is wrong"


def weights_of(operation: str) -> tuple[list[np.ndarray], int]:
    arguments = Call(operation).arguments
    return [driver.array(t) for t in driver.flat(arguments["weights"])], arguments["num_heads"]


@pytest.mark.parametrize(("entry", "operation"), [("pack_denoiser", "reverse_loop"), ("pack_block", "denoiser_block")])
def test_weights_that_cannot_be_packed(entry, operation):
    pack = getattr(driver.CORE, entry)
    arrays, heads = weights_of(operation)
    for place in range(len(arrays)):
        for label, wrong in wrong_arrays(arrays[place]):
            if label == "float64" or (place == 0 and label.startswith("axis 1")):
                continue  # float64 has a test below; the second size of the first array is what others are held against
            with pytest.raises(ValueError, match=rf"^{entry}: (arrays\[\d+\]|num_heads must divide)"):
                pack([*arrays[:place], wrong, *arrays[place + 1 :]], heads, False)
        with pytest.raises(ValueError, match=rf"^{entry}: arrays\[{place}\] .*must have dtype float32 or uint16"):
            pack([*arrays[:place], arrays[place].astype(np.float64), *arrays[place + 1 :]], heads, False)
    for wrong in (None, 3, "text", {}, arrays[0], iter(arrays)):
        with pytest.raises(ValueError, match=f"^{entry}: arrays must be a list"):
            pack(wrong, heads, False)
    for wrong in ([], arrays[:-1], [*arrays, arrays[0]], arrays * 2):
        with pytest.raises(ValueError, match=f"^{entry}: arrays must be "):
            pack(wrong, heads, False)
    for wrong in [*NO_INTEGERS, 0, 7**9]:
        with pytest.raises(ValueError, match=f"^{entry}: num_heads must "):
            pack(arrays, wrong, False)
    for wrong in ("yes", 2.5, [], object()):
        with pytest.raises(ValueError, match=f"^{entry}: double must "):
            pack(arrays, heads, wrong)


def test_an_instruction_set_that_is_none(monkeypatch):
    for operation in PARAMETERS:
        call = Call(operation)
        monkeypatch.setenv("ROHYDR_FAST_CPU", "sse9")
        with pytest.raises(ValueError, match="^ROHYDR_FAST_CPU: must be one of portable.*got 'sse9'"):
            call.run()
        assert call.out.untouched()
        if "packed" in call.values:
            with pytest.raises(ValueError, match="^ROHYDR_FAST_CPU"):
                call.values["packed"].refresh()
        monkeypatch.delenv("ROHYDR_FAST_CPU")
    for wrong in ("sse9", "", "AVX2", 3, None):
        with pytest.raises(ValueError, match="isa"):
            driver.CORE.fma_peak(wrong, 1.0)
    for wrong in (0, -1, 1e9, float("nan"), float("inf"), "1", None):
        with pytest.raises(ValueError, match="milliseconds"):
            driver.CORE.fma_peak("portable", wrong)


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
try:
    core.reverse_loop([(blank, *[None] * 12)], 1)
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


@pytest.mark.parametrize("seed", range(4))
def test_five_thousand_random_calls(seed, repo_root):
    command = [sys.executable, "-m", "tests.kernels.fuzz", "5000", str(seed)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
