"""A call that eager mode records by lists is the operation of torch: its results, gradients, and what it refuses."""

import pytest
import torch
from torch import Tensor

from rohydr_fast.errors import BackendUnavailable
from rohydr_fast.ops import library, recording
from tests.native_spy import needs_core
from tests.ops.inputs import loss_inputs
from tests.ops.operations import DIFFERENTIABLE, losses_operation

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]


def conditioning_operation() -> tuple:
    given = loss_inputs()
    layers = (given["layer_weights"], given["layer_biases"])
    return torch.ops.rohydr_fast.conditioning.default, (given["features"], given["encoded"], *layers)


OPERATIONS = {**DIFFERENTIABLE, "conditioning": conditioning_operation, "diffusion_losses": losses_operation}


def flat(values) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [t for value in values for t in flat(value)] if isinstance(values, list | tuple) else []


def with_leaves(arguments: tuple, wanted) -> tuple[tuple, list[Tensor]]:
    """Copies of the arguments, of which every tensor that `wanted` names by its number is a leaf."""
    leaves, numbers = [], iter(range(1000))

    def copy(value):
        if isinstance(value, list):
            return [copy(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        value = value.clone()
        if next(numbers) in wanted and value.is_floating_point():
            leaves.append(value.requires_grad_())
        return value

    return tuple([copy(argument) for argument in arguments]), leaves


def differentiable(op: str, arguments: tuple) -> list[int]:
    """Numbers of the tensors whose gradient the core has: all but tables of numbers and the position."""
    without = ("x_0", "rows", "position", "features", "coefficients")
    schema = getattr(torch.ops.rohydr_fast, op).default._schema
    numbers, count = [], 0
    for given, value in zip(schema.arguments, arguments, strict=False):
        for tensor in flat(value):
            if given.name not in without and tensor.is_floating_point():
                numbers.append(count)
            count += 1
    return numbers


@pytest.mark.parametrize("every", [1, 3], ids=["all-gradients", "a-third-of-them"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_results_and_gradients_are_those_of_torchs_way(op, every):
    arguments = OPERATIONS[op]()[1]
    wanted = differentiable(op, arguments)[::every]
    found = []
    for call in (getattr(torch.ops.rohydr_fast, op), lambda *given: recording.call(op, *given)):
        given, leaves = with_leaves(arguments, wanted)
        results = call(*given)
        assert len(leaves) == len(wanted)
        value = sum(r.square().sum() for r in flat(results) if r.requires_grad)
        found.append((results, torch.autograd.grad(value, leaves)))
    (expected, of_torch), (results, gradients) = found
    assert type(results) is type(expected)
    assert [type(part) for part in results] == [type(part) for part in expected]
    assert [r.requires_grad for r in flat(results)] == [r.requires_grad for r in flat(expected)]
    for mine, other in zip(flat(results), flat(expected), strict=True):
        assert torch.equal(mine, other)
    assert any(gradient.any() for gradient in gradients)
    for mine, other in zip(gradients, of_torch, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("op", OPERATIONS)
def test_nothing_is_recorded_that_nobody_asks_for(op):
    arguments = OPERATIONS[op]()[1]
    assert not any(result.requires_grad for result in flat(recording.call(op, *arguments)))
    given, leaves = with_leaves(arguments, differentiable(op, arguments))
    with torch.no_grad():
        assert leaves and not any(result.requires_grad for result in flat(recording.call(op, *given)))


def test_every_operation_with_a_way_back_of_its_own_is_here():
    assert set(OPERATIONS) == {op for op in library.FORMULAS if not op.endswith("_backward")}


def test_what_the_core_cannot_differentiate_is_refused():
    arguments = losses_operation()[1]
    arguments[0][0].requires_grad_()
    with pytest.raises(BackendUnavailable, match="diffusion_losses: x_0 must not require a gradient"):
        recording.call("diffusion_losses", *arguments)
