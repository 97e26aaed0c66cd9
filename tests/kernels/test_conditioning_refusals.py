"""The way back of the conditioning refuses what does not fit, by a sentence, and then writes nothing."""

import numpy as np
import pytest

from . import driver
from .fuzz import conditioning_backward_arguments, conditioning_layers
from .valid_calls import NO_INTEGERS, Call, read_only, wrong_arrays

NAMES = (
    *("layers", "features", "encoded", "blocks_gradient", "final_gradient", "cond_kv_gradient"),
    *("wanted", "gradients", "threads"),
)
IMPLY = {"features": ("blocks_gradient",), "encoded": ("cond_kv_gradient",)}
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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("layers", "wanted", "threads")])
def test_arrays_that_do_not_fit(name):
    place = NAMES.index(name)
    value = conditioning_backward_arguments()[place]
    for label, wrong in [*wrong_arrays(value), ("None", None)]:
        refused(place, wrong, label)


def test_a_row_that_cannot_be_written():
    place = NAMES.index("gradients")
    refused(place, read_only(conditioning_backward_arguments()[place]))


def test_layers_that_are_none():
    place, others = NAMES.index("layers"), Call("denoiser_block").values["packed"]
    for wrong in (None, conditioning_layers(), tuple(conditioning_layers()), others, "layers"):
        refused(place, wrong)


def test_layers_of_another_dtype():
    doubles = [layer.astype(np.float64) for layer in conditioning_layers()]
    arguments = conditioning_backward_arguments()
    with pytest.raises(ValueError, match=r"^conditioning_backward: features must have dtype float64, got float32\. "):
        driver.CORE.conditioning_backward(driver.CORE.pack_conditioning(doubles), *arguments[1:])


def test_arrays_that_are_no_layers():
    layers = conditioning_layers()
    wrong = [None, "layers", {}, [], layers[:-1], layers[:3], layers[::-1], *[layers[:i] for i in range(len(layers))]]
    for i, layer in enumerate(layers):
        replaced = [value for _, value in wrong_arrays(layer)] if i else [layer[0], layer[:, ::2], layer[:0], 1.0]
        replaced.append(None)
        wrong += [[*layers[:i], value, *layers[i + 1 :]] for value in replaced]
    for value in wrong:
        with pytest.raises(ValueError, match=r"^pack_conditioning: arrays(\[\d+\])? must .*, got .*\. .*\.$"):
            driver.CORE.pack_conditioning(value)


def test_layers_cannot_be_made_from_nothing():
    for make in (driver.CORE.ConditioningLayers, lambda: object.__new__(driver.CORE.ConditioningLayers)):
        with pytest.raises(TypeError):
            make()


def test_what_is_wanted_is_one_boolean_for_each_input():
    place = NAMES.index("wanted")
    wanted = conditioning_backward_arguments()[place]
    for wrong in (None, True, list(wanted), wanted[:-1], (*wanted, True), (*wanted[:-1], None), (*wanted[:-1], 2)):
        refused(place, wrong, repr(wrong))


def test_threads_that_are_none():
    for value in NO_INTEGERS:
        refused(NAMES.index("threads"), value)
