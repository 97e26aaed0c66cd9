"""Calls kernels in modules with AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own without torch.

    python -m tests.cuda_sim.sanitized '{"<case>": "<module>", ...}'

A sanitizer's finding ends the process.
"""

import json
import sys
from pathlib import Path

import numpy as np

from . import executed
from .cases import all_cases
from .simulation import ORDERS, Simulation


def main(modules: dict[str, str]) -> None:
    loaded = {path: Simulation(Path(path)) for path in set(modules.values())}
    for case in all_cases():
        if case.name in modules:
            module = loaded[modules[case.name]]
            for order in ORDERS:
                with module.order(order):
                    mistake = case.mistake(case.simulate(module))
                assert not mistake, f"{case.name}: {mistake}"
    for name, path in modules.items():
        if name.startswith("misdeed "):
            loaded[path].call("launch_misdeed", np.zeros(8, np.float32), int(name.split()[1]))
    print("all good:", *executed.lines())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
