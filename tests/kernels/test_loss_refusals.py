"""What the core's Eq. 3 refuses, by name, before anything is computed."""

import numpy as np
import pytest
import torch

from rohydr_fast.ops.weight_checks import conditioning_shapes
from tests.ops.inputs import LAYERS

from . import driver
from .loss_call import loss_term, run, untouched
from .valid_calls import NO_INTEGERS, read_only, wrong_arrays

ARRAYS = [name for name, value in loss_term().items() if isinstance(value, np.ndarray) and name != "out"]
LEADING = {
    "x_0": "rows|encoded|position",
    "encoded": "the condition|position|key_mask",
    "features": "layers",
}
"""Where sizes are read from: when one of these is wrong, another may be named instead."""


def refused(call: dict, name: str, value, label: str = "") -> None:
    with pytest.raises(ValueError) as caught:
        run(loss_term(), call | {name: value})
    message, names = str(caught.value), (name, *LEADING.get(name, name).split("|"))
    starts = [f"diffusion_loss: {place}{one}" for one in names for place in ("terms[1].", "")]
    assert message.startswith(tuple(starts)), f"{label}: {message}"
    assert message.endswith("."), f"{label}: {message}"
    assert untouched(call), f"{label}: something was written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_call_itself_is_valid(dtype):
    call = loss_term(dtype)
    run(call)
    assert np.isfinite(call["out"]).all() and np.isfinite(call["gradients"]).all()


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_do_not_fit(name):
    call = loss_term()
    optional = name.endswith("_mask") or name == "gradients"
    for label, value in [*wrong_arrays(call[name]), *([] if optional else [("None", None)])]:
        refused(call, name, value, label)


def test_no_place_for_the_loss():
    call = loss_term()
    for value in (None, 0.0, [0.0], read_only(call["out"]), call["out"].astype(np.float64), np.zeros(2, np.float32)):
        refused(call, "out", value)


@pytest.mark.parametrize("name", ["seed", "modality"])
def test_integers_that_are_none(name):
    call = loss_term()
    for value in NO_INTEGERS:
        refused(call, name, value)


def test_threads_that_are_none():
    for value in NO_INTEGERS:
        call = loss_term()
        with pytest.raises(ValueError, match="diffusion_loss: threads must be"):
            run(call, threads=value)
        assert untouched(call)


def test_terms_that_are_none():
    term = tuple(loss_term().values())
    for value in (None, 0, "terms", {}, set()):
        with pytest.raises(ValueError, match="diffusion_loss: terms must be a list, got "):
            driver.CORE.diffusion_loss(value, 1)
    for value in ([None], [[*term]], [term, term[:-1]], [(*term, None)], [()]):
        with pytest.raises(ValueError, match=r"diffusion_loss: terms\[[01]\] must be a tuple of 15, got "):
            driver.CORE.diffusion_loss(value, 1)
    driver.CORE.diffusion_loss([], 1)


def test_layers_that_do_not_fit():
    call = loss_term()
    for wrong in (None, (), "layers", call["packed"], loss_term(torch.float64)["layers"]):
        refused(call, "layers", wrong)
    _, inputs = call["features"].shape
    _, _, width = call["encoded"].shape
    for sizes in ((LAYERS + 1, width, inputs), (LAYERS, 2 * width, inputs), (LAYERS, width, inputs + 1)):
        weights, biases = ([np.ones(shape, np.float32) for shape in part] for part in conditioning_shapes(*sizes))
        refused(call, "layers", driver.CORE.pack_conditioning(weights + biases), str(sizes))


@pytest.mark.parametrize("loss", ["l2", "", None, 0, b"nll", ["nll"]])
def test_an_unknown_loss(loss):
    refused(loss_term(), "loss", loss)


def test_a_sample_id_out_of_range():
    call = loss_term()
    refused(call, "sample_ids", call["sample_ids"] + 2**48)
    refused(call, "sample_ids", call["sample_ids"] - 1000)


def test_weights_of_another_kind():
    call, given = loss_term(), np.ones
    block = driver.CORE.pack_block([given(shape, np.float32) for shape in block_shapes(16)], 4, False)
    for packed in (None, "packed", block):
        refused(call, "packed", packed)


def block_shapes(width: int) -> list[tuple[int, ...]]:
    square, row = (width, width), (width,)
    attention = [(3 * width, width), (3 * width,), square, row, square, row, square, row]
    return [*attention, square, row, square, row]


def test_gradients_that_do_not_fit():
    call = loss_term()
    row = call["gradients"]
    for wrong in ([], (), (row,), read_only(row)):
        refused(call, "gradients", wrong)
