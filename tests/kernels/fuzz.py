"""Random calls of everything that the native core offers, in turn: python -m tests.kernels.fuzz CALLS SEED

Exit code 0 when each returned, or raised ValueError or TypeError; whatever else was raised is printed.
"""

import faulthandler
import inspect
import sys
from collections import Counter

import numpy as np

from . import driver
from .loss_call import loss_term
from .valid_calls import LOOPS, PARAMETERS, SAMPLES, STEPS, TOKENS, Call

DTYPES = [
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
    "object",
    ">f4",
    "U2",
]
EXCLUDED = {"build_info", "cuda_device_count"}
CUDA = {"philox_bits_cuda", "philox_uniform_cuda", "philox_normal_cuda"}  # take addresses, which cannot be checked
ENTRIES = [
    name
    for name in dir(driver.CORE)
    if callable(getattr(driver.CORE, name))
    and not name.startswith("_")
    and name not in EXCLUDED | CUDA
    and not isinstance(getattr(driver.CORE, name), type)
]


class Values:
    """Draws arguments: some that could be right, more that are not."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.calls = {name: Call(name) for name in PARAMETERS}
        self.valid = [v for call in self.calls.values() for v in call.values.values() if isinstance(v, np.ndarray)]
        networks = [self.calls["denoiser_block"], self.calls["denoiser"]]
        self.loss = tuple(loss_term().values())
        self.packed = [call.values["packed"] for call in networks] + [conditioning_arguments()[0]]
        self.weights = [[driver.array(t) for t in driver.flat(call.arguments["weights"])] for call in networks]

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def array(self) -> np.ndarray:
        if self.rng.random() < 0.3:
            return self.pick(self.valid)
        shape = [int(n) for n in self.rng.integers(0, 5, int(self.rng.integers(0, 6)))]
        result = np.zeros(shape, self.pick(DTYPES))
        kind = self.rng.random()
        if kind < 0.1 and result.ndim:
            result = result[::-1]
        elif kind < 0.2:
            result = result.T
        elif kind < 0.3:
            result = np.broadcast_to(result, [2, *shape])
        return result

    def integer(self) -> int:
        return int(
            self.pick([0, 1, 2, 3, 4, 7, 8, 255, 256, -1, 2**31, 2**32 - 1, 2**48, 2**63, 2**64 - 1, 2**64, -(2**70)])
        )

    def sequence(self, depth: int) -> object:
        kind = self.pick([list, tuple])
        size = self.pick([0, 1, 2, 4, 12, 15, 16, 19])
        return kind(self.value(depth + 1) for _ in range(size))

    def value(self, depth: int = 0) -> object:
        choices = [self.array, self.array, self.array, self.integer, self.other]
        if depth < 2:
            choices.append(lambda: self.sequence(depth))
        return self.pick(choices)()

    def other(self) -> object:
        simple = [
            None,
            True,
            False,
            "",
            "text",
            "portable",
            b"bytes",
            1.5,
            float("nan"),
            1j,
            object(),
            {},
            set(),
            range(3),
        ]
        simple += [np.float32(1), np.int64(2), np.bool_(True), Ellipsis, int, driver.CORE, Hostile()]
        return self.pick([*simple, *self.packed, *self.weights])

    def nearly_valid(self, name: str) -> list | None:
        """Valid arguments of some entries, so that a single wrong one is met by later checks too."""
        if name in self.calls:
            values = tuple(self.calls[name].values.values())
            return [[values], 1] if name in LOOPS else [*values, 1]
        if name == "reverse_loop_tape_size":
            return [self.packed[1], SAMPLES, TOKENS, self.calls["denoiser"].values["token_mask"], STEPS]
        if name == "pack_conditioning":
            return [conditioning_layers()]
        if name == "conditioning":
            return conditioning_arguments()
        if name == "conditioning_backward":
            return conditioning_backward_arguments()
        if name == "diffusion_loss":
            return [[self.loss], 1]
        return None

    def with_a_change(self, arguments: list | tuple) -> list | tuple:
        """One of them replaced, or, of one that holds several, one inside of it."""
        place = int(self.rng.integers(len(arguments)))
        changed, old = list(arguments), arguments[place]
        inside = isinstance(old, list | tuple) and len(old) and self.rng.random() < 0.8
        changed[place] = self.with_a_change(old) if inside else self.value()
        return type(arguments)(changed)


def conditioning_layers() -> list[np.ndarray]:
    """Weights, then biases, of one block of two channels."""
    outputs, depths = (2, 2, 18, 4, 4), (3, 2, 2, 2, 2)
    weights = [np.ones(shape, np.float32) for shape in zip(outputs, depths, strict=True)]
    return [*weights, *[np.ones(size, np.float32) for size in outputs]]


def conditioning_arguments() -> list:
    """Of a valid call with these layers."""
    inputs = [np.ones((5, 3), np.float32), np.ones((2, 3, 2), np.float32)]
    results = [np.empty(shape, np.float32) for shape in ((5, 1, 9, 2), (5, 2, 2), (1, 2, 2, 3, 2))]
    return [driver.CORE.pack_conditioning(conditioning_layers()), *inputs, *results, 1]


def conditioning_backward_arguments() -> list:
    """All gradients of the same call."""
    *arguments, threads = conditioning_arguments()
    for result in arguments[3:]:
        result[:] = 1
    inputs = [*arguments[1:3], *conditioning_layers()]
    row = np.full(sum(array.size for array in inputs), np.nan, np.float32)
    return [*arguments, (True,) * len(inputs), row, threads]


class Hostile:
    """An object whose every conversion fails."""

    def __index__(self):
        raise RuntimeError("no index")

    def __repr__(self):
        raise RuntimeError("no text")

    def __len__(self):
        return -1

    def __bool__(self):
        raise RuntimeError("neither")

    def __float__(self):
        raise RuntimeError("no number")


def arity(function) -> int:
    """Number of parameters, from the signature that pybind11 writes first into the docstring."""
    line = (inspect.getdoc(function) or "").splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(") ->")]
    return inside.count(": ") if inside else 0


def one_call(values: Values, name: str) -> str:
    function, arguments = getattr(driver.CORE, name), values.nearly_valid(name)
    if arguments is None or values.rng.random() < 0.3:
        arguments = [values.value() for _ in range(arity(function))]
    else:
        arguments = values.with_a_change(arguments)
    if values.rng.random() < 0.05:
        arguments = arguments[:-1] if values.rng.random() < 0.5 else [*arguments, values.value()]
    if name == "fma_peak":  # a valid one computes for that long
        arguments = [a if not isinstance(a, int | float) or a < 4 else -1 for a in arguments]
    try:
        function(*arguments)
    except (ValueError, TypeError) as error:
        return type(error).__name__
    except Exception as error:
        if "no index" in str(error) or "no text" in str(error) or "neither" in str(error) or "no number" in str(error):
            return "raised by the argument"  # its own error, handed on
        return f"{name}: {type(error).__name__}: {error}"[:200]
    return "returned"


def main(calls: int, seed: int) -> int:
    faulthandler.enable()
    values = Values(seed)
    outcomes = Counter(one_call(values, ENTRIES[number % len(ENTRIES)]) for number in range(calls))
    print(dict(outcomes))
    return int(bool(set(outcomes) - {"ValueError", "TypeError", "returned", "raised by the argument"}))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
