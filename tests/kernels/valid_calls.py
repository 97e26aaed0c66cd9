"""A valid call of every operation of the native core, whose arguments can be replaced one by one, and what must not
stand in their place.
"""

import numpy as np
import pytest
import torch

from tests.ops.gradient_cases import direction

from . import backward, cases, driver

KEY = ["seed", "sample_ids", "modality", "token_mask", "key_mask"]
TABLES = ["position", "modulation_blocks", "modulation_final", "cond_kv"]
DENOISER = ["packed", "x", *TABLES, "token_mask", "key_mask"]
BLOCK = ["packed", "x", "modulation", "cond_kv", "token_mask", "key_mask"]
OF_TABLES = ["modulation_blocks_gradient", "modulation_final_gradient", "cond_kv_gradient"]
PARAMETERS = {
    "reverse_loop": ["packed", "x", *TABLES, "coefficients", *KEY, "out", "states", "tape"],
    "denoiser": [*DENOISER, "out"],
    "denoiser_block": [*BLOCK, "out"],
    "cross_attention": ["q", "k", "v", "num_heads", "key_mask", "out"],
    "reverse_loop_backward": [
        *["packed", "states", *TABLES, "coefficients", *KEY],
        *["out_gradient", "x_gradient", *OF_TABLES, "weight_gradients", "tape"],
    ],
    "denoiser_backward": [*DENOISER, "out_gradient", "x_gradient", *OF_TABLES, "weight_gradients"],
    "denoiser_block_backward": [
        *[*BLOCK, "out_gradient"],
        *["x_gradient", "modulation_gradient", "cond_kv_gradient", "weight_gradients"],
    ],
}
LOOPS = ("reverse_loop", "reverse_loop_backward")
WEIGHTED = [operation for operation in PARAMETERS if operation != "cross_attention"]
WAYS_BACK = [operation for operation in PARAMETERS if operation.endswith("_backward")]
OPTIONAL = {"token_mask", "key_mask", "states", "tape"}
# The arrays that the sizes of a call are read from: when one of these is wrong, another may be named instead.
LEADING = {"x", "states", "cond_kv", "coefficients", "q", "k", "modulation"}
SAMPLES, TOKENS, KEYS, STEPS = 3, 4, 5, 2


class Call:
    """A valid call whose arguments can be replaced by name.

    Attributes:
        values: the arguments by name; of the only chain of a reverse loop.
        results: the guarded arrays that it fills, by name; weight_gradients[i] by their place.
    """

    def __init__(self, operation: str, dtype: torch.dtype = torch.float32):
        self.operation, forward = operation, operation.removesuffix("_backward")
        limits = {"steps": STEPS} if forward == "reverse_loop" else {}
        limits |= {"samples": SAMPLES, "tokens": TOKENS, "keys": KEYS}
        arguments = cases.CASES[forward](11, largest_width=24, **limits)
        arguments["key_mask"] = torch.ones(SAMPLES, KEYS, dtype=torch.bool)
        if forward != "cross_attention":
            arguments["token_mask"] = torch.ones(SAMPLES, TOKENS, dtype=torch.bool)
        self.arguments = driver.cast(arguments, dtype)
        values = self._forward(dtype) if forward == operation else self._backward()
        self.values = dict(zip(PARAMETERS[operation], values, strict=True))

    def _forward(self, dtype: torch.dtype) -> tuple:
        self.results = {"out": driver.Guarded(driver.out_shape(self.operation, self.arguments), dtype)}
        out, packed = self.results["out"].array, None
        if self.operation != "cross_attention":
            packed = driver.pack(self.arguments["weights"], self.arguments["num_heads"])
        if self.operation != "reverse_loop":
            return driver.positional(self.operation, self.arguments, packed, out)
        self.results |= {
            "states": driver.Guarded((STEPS, *out.shape), dtype),
            "tape": driver.Guarded((tape_size(packed, self.arguments),), dtype),
        }
        return driver.chain_tuple(self.arguments, packed, *(result.array for result in self.results.values()))

    def _backward(self) -> tuple:
        forward = self.operation.removesuffix("_backward")
        call = backward.WayBack(forward, self.arguments, direction(forward, self.arguments))
        names = [name for name in PARAMETERS[self.operation] if name.endswith("_gradient") and name != "out_gradient"]
        targets = list(call.targets.values())
        names += [f"weight_gradients[{i}]" for i in range(len(targets) - len(names))]
        self.results = dict(zip(names, targets, strict=True))
        return call.entry

    def run(self, threads=1, **changes) -> None:
        values = tuple({**self.values, **changes}.values())
        arguments = ([values],) if self.operation in LOOPS else values
        getattr(driver.CORE, self.operation)(*arguments, threads)

    def untouched(self) -> bool:
        return all(result.untouched() for result in self.results.values())

    def refused(self, name: str, value, label: str = "", named: str | None = None) -> None:
        """Asserts that this value for this argument is refused by name, and that nothing was computed.

        Args:
            named: the name that is expected, if it is another.
        """
        with pytest.raises(ValueError) as caught:
            self.run(**{name: value})
        message = str(caught.value)
        names = PARAMETERS[self.operation] if name in LEADING else [named or name]
        prefix = f"{self.operation}: chains[0]." if self.operation in LOOPS else f"{self.operation}: "
        said = any(message.startswith(f"{prefix}{one} must ") for one in names)
        sizes_said = name in LEADING and ("the condition must" in message or "sizes must" in message)
        heads_said = name == "q" and "num_heads must divide" in message
        assert said or sizes_said or heads_said, f"{label}: {message}"
        assert message.endswith("."), f"{label}: {message}"
        assert self.untouched(), f"{label}: something was written"


def tape_size(packed, arguments: dict, steps: int = STEPS) -> int:
    mask = driver.masks_of(arguments)[0]
    return driver.CORE.reverse_loop_tape_size(packed, *arguments["x"].shape[:2], mask, steps)


OTHER_DTYPES = "float16 float32 float64 >f4 >f8 int32 int64 >i8 uint8 bool complex64 U3".split()


def misaligned(value: np.ndarray) -> np.ndarray:
    memory = np.zeros(value.nbytes + 1, dtype=np.uint8)
    result = memory[1:].view(value.dtype).reshape(value.shape)
    result[...] = value
    return result


def strided(value: np.ndarray) -> np.ndarray:
    return np.repeat(value, 2, axis=-1)[..., ::2]


def read_only(value: np.ndarray) -> np.ndarray:
    result = value.view()
    result.flags.writeable = False
    return result


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


NO_INTEGERS = [None, 1.0, "1", b"1", [], (1,), {}, object(), np.float32(1), np.ones(2, int)]
NO_INTEGERS += [-1, 2**64, -(2**64), 10**5000]
