"""Shared by all tests: fixed seeds, the `gpu` marker, the folder of the checkout, which CUDA kernels were executed."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.cuda_sim import executed
from tests.threads import one_thread

settings.register_profile("seeded", derandomize=True)  # the same cases everywhere; tests.reliability looks for others
settings.load_profile("seeded")


def pytest_runtest_setup(item: pytest.Item) -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(f"no CUDA device that torch {torch.__version__} can use")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # a process of pytest-xdist, whose lines nobody would see
        output["kernels"] = executed.launches()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    executed.add(getattr(node, "workeroutput", {}).get("kernels", {}))


def pytest_terminal_summary(terminalreporter) -> None:
    for line in executed.lines():
        terminalreporter.write_line(f"CUDA kernels without a GPU: {line}")


@pytest.fixture
def repo_root() -> Path:
    """The checkout, with setup.py and csrc."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(name="one_thread")
def _one_thread():
    """See `tests.threads`."""
    with one_thread():
        yield
