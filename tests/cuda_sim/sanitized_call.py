"""Calls one entry of a module with sanitizers, in a process of its own without torch.

    python -m tests.cuda_sim.sanitized_call MODULE ENTRY ARGUMENTS.npz

In all three orders of threads. The results, the only arrays of nothing but NaN, must be equal; they go to
ARGUMENTS.npz.outputs.npy.
"""

import sys
from pathlib import Path

import numpy as np

from .simulation import ORDERS, Simulation


def main(library: str, entry: str, file: str) -> None:
    module, results = Simulation(Path(library)), []
    with np.load(file) as stored:
        given = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    for order in ORDERS:
        arguments = [int(value) if value.ndim == 0 else value.copy() for value in given]
        outputs = [
            value
            for value in arguments
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isnan(value).all()
        ]
        with module.order(order):
            module.call(entry, *arguments)
        results.append(outputs[0])
    assert all(np.array_equal(results[0], other) for other in results), "the order of threads changes the result"
    np.save(f"{file}.outputs.npy", results[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
