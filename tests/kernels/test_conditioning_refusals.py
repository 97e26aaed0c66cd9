"""The way back of the conditioning refuses what does not fit, by a sentence, and then writes nothing."""

import numpy as np
import pytest

from . import driver
from .fuzz import conditioning_backward_arguments
from .valid_calls import NO_INTEGERS, read_only, wrong_arrays

NAMES = (
    *("features", "encoded", "weights", "biases", "blocks_gradient", "final_gradient", "cond_kv_gradient"),
    *("wanted", "gradients", "threads"),
)
LISTS = ("weights", "biases")
IMPLY = {"features": ("weights[0]", "blocks_gradient"), "encoded": ("cond_kv_gradient",), "weights": ("biases",)}
"""What no longer fits where another size would be right by itself."""


def refused(place: int, value, label: str = "") -> None:
    arguments = conditioning_backward_arguments()
    with pytest.raises(ValueError) as caught:
        driver.CORE.conditioning_backward(*arguments[:place], value, *arguments[place + 1 :])
    name, message = NAMES[place], str(caught.value)
    assert message.startswith("conditioning_backward: ") and message.endswith("."), f"{label}: {message}"
    assert any(one in message for one in (name, *IMPLY.get(name, ()))), f"{label}: {message}"
    assert np.isnan(arguments[NAMES.index("gradients")]).all(), label


def test_the_call_itself_is_valid():
    arguments = conditioning_backward_arguments()
    driver.CORE.conditioning_backward(*arguments)
    assert np.isfinite(arguments[NAMES.index("gradients")]).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*LISTS, "wanted", "threads")])
def test_arrays_that_do_not_fit(name):
    place = NAMES.index(name)
    value = conditioning_backward_arguments()[place]
    for label, wrong in [*wrong_arrays(value), ("None", None)]:
        refused(place, wrong, label)


def test_a_row_that_cannot_be_written():
    place = NAMES.index("gradients")
    refused(place, read_only(conditioning_backward_arguments()[place]))


@pytest.mark.parametrize("name", LISTS)
def test_layers_that_do_not_fit(name):
    place = NAMES.index(name)
    layers = conditioning_backward_arguments()[place]
    for wrong in (None, list(layers), layers[:-1], layers[:3], ()):
        refused(place, wrong)
    for i in range(len(layers)):
        for wrong in (None, layers[i][:-1], layers[i].astype(np.float64)):
            refused(place, (*layers[:i], wrong, *layers[i + 1 :]), f"layer {i}")


def test_what_is_wanted_is_one_boolean_for_each_input():
    place = NAMES.index("wanted")
    wanted = conditioning_backward_arguments()[place]
    for wrong in (None, True, list(wanted), wanted[:-1], (*wanted, True), (*wanted[:-1], None), (*wanted[:-1], 2)):
        refused(place, wrong, repr(wrong))


def test_threads_that_are_none():
    for value in NO_INTEGERS:
        refused(NAMES.index("threads"), value)
