"""Parameters that passed are not looked at again, and nothing else passes for them."""

import pytest
import torch

from rohydr_fast.errors import UsageError
from rohydr_fast.ops import weight_checks
from rohydr_fast.ops.conditioning import conditioning
from rohydr_fast.ops.diffusion_loss import diffusion_loss
from rohydr_fast.ops.reverse_loop import reverse_loops
from tests.native_spy import needs_core
from tests.ops.inputs import loss_inputs, make_chain
from tests.ops.test_conditioning import case

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def nothing_passed(monkeypatch):
    monkeypatch.setattr(weight_checks, "_PASSED", {})


def loop() -> tuple:
    chain = make_chain()
    return lambda: reverse_loops([chain], backend="reference"), chain.weights.tensors()


def loss_network() -> tuple:
    given = loss_inputs()
    return lambda: diffusion_loss(**given, backend="reference"), given["weights"].tensors()


def loss_layers() -> tuple:
    given = loss_inputs()
    layers = [*given["layer_weights"], *given["layer_biases"]]
    return lambda: diffusion_loss(**given, backend="reference"), layers


def layers() -> tuple:
    given = case()
    return lambda: conditioning(**given, backend="reference"), [*given["weights"], *given["biases"]]


CALLS = [loop, loss_network, loss_layers, layers]


def other_shape(tensor):
    tensor.data = tensor.data.reshape(1, -1) if tensor.dim() == 2 else tensor.data[None]


def other_dtype(tensor):
    tensor.data = tensor.data.double()


def same_bytes_as_integers(tensor):
    tensor.data = tensor.data.detach().view(torch.int32)


def shorter(tensor):
    tensor.data = tensor.data[:-1]


@pytest.mark.parametrize("change", [other_shape, other_dtype, same_bytes_as_integers, shorter])
@pytest.mark.parametrize("make", CALLS)
def test_a_parameter_that_fits_no_more_is_refused(make, change):
    call, parameters = make()
    for _ in range(2):
        call()
    for i in (0, len(parameters) // 2, len(parameters) - 1):
        kept = parameters[i].data
        change(parameters[i])
        with pytest.raises(UsageError):
            call()
        parameters[i].data = kept
    call()


@needs_core
@pytest.mark.parametrize("make", CALLS)
def test_what_passed_is_not_looked_at_again(make, monkeypatch):
    call, parameters = make()
    call()
    before = dict(weight_checks._PASSED)
    assert before
    monkeypatch.setattr(weight_checks, "_block_shapes", lambda *args: pytest.fail("looked again"))
    monkeypatch.setattr(weight_checks, "conditioning_shapes", lambda *args: pytest.fail("looked again"))
    call()
    assert weight_checks._PASSED == before


@pytest.mark.parametrize("make", CALLS)
def test_without_signatures_all_is_looked_at(make, monkeypatch):
    monkeypatch.setattr(weight_checks, "signature", lambda tensors: None)
    call, parameters = make()
    call()
    assert weight_checks._PASSED == {}
    other_shape(parameters[1])
    with pytest.raises(UsageError):
        call()


@needs_core
def test_what_passed_for_other_sizes_does_not_count():
    """The same layers with features of another width."""
    given = case()
    conditioning(**given, backend="reference")
    with pytest.raises(UsageError, match=r"weights\[0\] must have shape"):
        conditioning(**given | {"features": torch.zeros(3, 6)}, backend="reference")
    with pytest.raises(UsageError, match="weights|encoded"):
        conditioning(**given | {"features": given["features"].double()}, backend="reference")


@needs_core
def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(weight_checks, "_PASSED_LENGTH", 5)
    kept = [case(seed=seed) for seed in range(20)]
    for given in kept:
        conditioning(**given, backend="reference")
        assert 1 <= len(weight_checks._PASSED) <= 5
