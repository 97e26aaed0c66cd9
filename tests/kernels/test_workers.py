"""The core in the processes of a DataLoader, and Ctrl-C while it computes."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from . import cases, driver

pytestmark = driver.needs_core


class Sampled(Dataset):
    """Items that are computed by the core, by several threads."""

    def __init__(self, threads: int):
        self.threads = threads

    def __len__(self) -> int:
        return 6

    def __getitem__(self, seed: int) -> torch.Tensor:
        case = cases.reverse_loop_case(seed, samples=2, tokens=9, channels=4, steps=2, largest_width=24)
        return driver.native("reverse_loop", case, threads=self.threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_of_a_data_loader_compute_the_same_bits(start, threads):
    """The parent has used the core, with a pool of threads that a forked worker does not have."""
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform starts no process by {start}")
    data = Sampled(threads)
    here = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=120)
    assert all(driver.same_bits(*pair) for pair in zip(loader, here, strict=True))


LONG = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
from tests.kernels import cases, driver
arguments = cases.reverse_loop_case(5, largest_width=64, samples=8, tokens=70, steps=100, scale=0.3)
expected = driver.native("reverse_loop", arguments)
print("computing", flush=True)
try:
    while True:
        driver.native("reverse_loop", arguments, threads=THREADS)
except KeyboardInterrupt:
    again = driver.native("reverse_loop", arguments, threads=THREADS)
    sys.exit(5 if driver.same_bits(again, expected) else 6)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_ends_a_call_after_it_and_the_core_goes_on(threads, repo_root):
    command = [sys.executable, "-c", LONG.replace("THREADS", str(threads))]
    child = subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "computing\n", child.communicate(timeout=60)[1]
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 5, f"exit code {child.returncode}: {errors[-800:]}"
