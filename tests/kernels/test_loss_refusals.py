"""What the core's Eq. 3 refuses, by name, before anything is computed."""

import numpy as np
import pytest
import torch

from . import driver
from .loss_call import loss_call, run, untouched
from .valid_calls import NO_INTEGERS, read_only, wrong_arrays

ARRAYS = [name for name, value in loss_call().items() if isinstance(value, np.ndarray) and name != "out"]
LEADING = {
    "x_0": "rows|encoded|position",
    "encoded": "the condition|position|key_mask",
    "modulation_blocks": "modulation_final",
}
"""Where sizes are read from: when one of these is wrong, another may be named instead."""


def refused(call: dict, name: str, value, label: str = "") -> None:
    with pytest.raises(ValueError) as caught:
        run(call, **{name: value})
    message = str(caught.value)
    assert any(message.startswith(f"diffusion_loss: {one}") for one in (name, *LEADING.get(name, name).split("|"))), (
        f"{label}: {message}"
    )
    assert message.endswith("."), f"{label}: {message}"
    assert untouched(call), f"{label}: something was written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_call_itself_is_valid(dtype):
    call = loss_call(dtype)
    run(call)
    assert np.isfinite(call["out"]).all() and np.isfinite(call["gradients"]).all()


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit(name):
    call = loss_call()
    optional = name.endswith("_mask") or name == "gradients"
    for label, value in [*wrong_arrays(call[name]), *([] if optional else [("None", None)])]:
        refused(call, name, value, label)


def test_no_place_for_the_loss():
    call = loss_call()
    for value in (None, 0.0, [0.0], read_only(call["out"]), call["out"].astype(np.float64), np.zeros(2, np.float32)):
        refused(call, "out", value)


@pytest.mark.parametrize("name", ["seed", "modality", "threads"])
def test_integers_that_are_none(name):
    call = loss_call()
    for value in NO_INTEGERS:
        refused(call, name, value)


@pytest.mark.parametrize("loss", ["l2", "", None, 0, b"nll", ["nll"]])
def test_an_unknown_loss(loss):
    refused(loss_call(), "loss", loss)


def test_a_sample_id_out_of_range():
    call = loss_call()
    refused(call, "sample_ids", call["sample_ids"] + 2**48)
    refused(call, "sample_ids", call["sample_ids"] - 1000)


def test_weights_of_another_kind():
    call, given = loss_call(), np.ones
    block = driver.CORE.pack_block([given(shape, np.float32) for shape in block_shapes(16)], 4, False)
    for packed in (None, "packed", block):
        refused(call, "packed", packed)


def block_shapes(width: int) -> list[tuple[int, ...]]:
    square, row = (width, width), (width,)
    attention = [(3 * width, width), (3 * width,), square, row, square, row, square, row]
    return [*attention, square, row, square, row]


def test_gradients_that_do_not_fit():
    call = loss_call()
    row = call["gradients"]
    for wrong in ([], (), (row,), read_only(row)):
        refused(call, "gradients", wrong)
