"""Memory for large results."""

import gc
import threading

import pytest
import torch

from rohydr_fast import sample
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops import memory
from tests.native_spy import needs_core

COUNT = memory.LARGE // 4

pytestmark = pytest.mark.skipif(not hasattr(memory.mmap, "MADV_HUGEPAGE"), reason="large pages are Linux's")


@pytest.fixture(autouse=True)
def nothing_kept():
    memory._free.clear()
    yield
    memory._free.clear()


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (5,), (COUNT,), (COUNT // 4, 4), (2, COUNT + 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_tensor_like_any_other(shape, dtype):
    made = memory.empty(shape, dtype)
    assert (made.shape, made.dtype, made.device.type) == (shape, dtype, "cpu") and made.is_contiguous()
    assert made.data_ptr() % 64 == 0
    assert made.fill_(2).sum() == 2 * made.numel() and made.requires_grad_().clone().grad_fn is not None


def test_what_was_freed_is_used_again_and_what_is_in_use_is_not():
    first = memory.empty((COUNT + 1,), torch.float32)
    place, view = first.data_ptr(), first[:4]
    del first
    gc.collect()
    second = memory.empty((COUNT,), torch.float32)
    assert second.data_ptr() != place  # the view is still there
    del view
    assert memory.empty((COUNT,), torch.float32).data_ptr() == place
    assert memory.empty((COUNT // 2,), torch.float64).data_ptr() == place  # freed at once


def test_a_block_that_does_not_fit_makes_room_for_one_that_does():
    memory.empty((COUNT,), torch.float32)
    assert [len(block) for block in memory._free] == [memory.LARGE]
    memory.empty((3 * COUNT,), torch.float32)
    assert [len(block) for block in memory._free] == [3 * memory.LARGE]
    memory.empty((COUNT,), torch.float32)  # which does not drive out a larger one
    assert [len(block) for block in memory._free] == [3 * memory.LARGE, memory.LARGE]


def test_no_more_than_the_limit_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 2 * memory.LARGE)
    blocks = [memory.empty((COUNT,), torch.float32) for _ in range(3)]
    blocks.clear()
    assert len(memory._free) == 2
    memory.empty((3 * COUNT,), torch.float32)
    assert not memory._free


def test_threads_share_what_is_free_and_never_what_is_in_use():
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            made = memory.empty((COUNT,), torch.float32)
            made[::512] = number
            wrong.extend([number] * int((made[::512] != number).any()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and 1 <= len(memory._free) <= 8  # a thread makes its next one before it drops the last


def test_deterministic_algorithms_see_nan_in_what_nobody_wrote():
    torch.use_deterministic_algorithms(True)
    try:
        assert memory.empty((COUNT,), torch.float32).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


@needs_core
def test_a_training_step_takes_the_tape_of_the_last_one():
    """Whatever else a step allocates must not drive it out: touching fresh memory takes as long as the step."""
    torch.manual_seed(0)
    denoiser, cond = Denoiser(4, 96, 4, 4), torch.randn(2, 10, 96)

    def tapes_after_step() -> set[int]:
        denoiser.zero_grad()
        sample(denoiser, cond, steps=8, tokens=40, prediction="x0", backend="cpp").square().sum().backward()
        gc.collect()
        return {id(free) for free in memory._free if len(free) > 4 * memory.LARGE}

    tapes_after_step()
    tapes = tapes_after_step()
    assert tapes and tapes_after_step() == tapes
