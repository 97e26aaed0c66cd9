"""Training by the native core is training by the reference."""

import pytest
import torch

from rohydr_fast import backend as use_backend
from rohydr_fast.config import TrainConfig
from rohydr_fast.training.stages import SCHEDULES
from tests.native_spy import FUSED, needs_core, spy_on_core
from tests.training.test_stages import runner, stage_batch

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]

BATCHES = 32
# The first batches differ by 1e-7, the rounding of float32. Adam divides each gradient by its size, and the rounding of
# a small one moves its parameter as far as a large one moves another: after 32 batches 1e-5 are seen. Were gradients of
# weights wrong by one part in a thousand, the norm of the first stage would be wrong by 5e-4.
TOLERANCE = 1e-4


def train(name: str) -> list[dict[str, float]]:
    """What each batch logs."""
    stages, batch, logged = runner(TrainConfig()), stage_batch(), []
    with use_backend(name):
        for i in range(BATCHES):
            terms = {}
            for stage in SCHEDULES["three-stage"]:
                terms |= stages.run(stage, batch, epoch=1, batch_index=i)
            logged.append(terms)
    return logged


def test_every_term_of_32_batches_is_that_of_the_reference(monkeypatch):
    calls = spy_on_core(monkeypatch)
    expected = train("reference")
    assert calls == []
    found = train("cpp")
    counts = {op: sum(call.op == op for call in calls) for op in FUSED}
    assert counts["reverse_loop"] == counts["reverse_loop_backward"] == 3 * BATCHES  # all modalities in one call
    assert counts["diffusion_loss"] == BATCHES  # Eq. 3 of all modalities in stage 1, with its gradients
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a == pytest.approx(b, rel=TOLERANCE), f"batch {i}"
    assert expected[-1]["S3"] < expected[0]["S3"] / 2  # something was learned, not nothing repeated
    assert all(torch.tensor(list(terms.values())).isfinite().all() for terms in found)
