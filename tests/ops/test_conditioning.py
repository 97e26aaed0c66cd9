"""What the blocks read of steps and condition, in one call."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rohydr_fast import _native
from rohydr_fast.errors import UsageError
from rohydr_fast.models.denoiser import TIME_FEATURES, Denoiser
from rohydr_fast.models.sequences import sinusoidal
from rohydr_fast.ops.conditioning import conditioning

pytestmark = pytest.mark.skipif(not _native.status()[0], reason=_native.status()[1])


def case(rows=3, inputs=5, width=4, layers=2, samples=2, keys=3, dtype=torch.float32, seed=0, requires_grad=False):
    """Keyword arguments of `conditioning`; the numbers do not depend on the dtype."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape, scale=1.0):
        numbers = scale * torch.randn(shape, generator=generator, dtype=torch.float64).float()
        return numbers.to(dtype).requires_grad_(requires_grad)

    outputs = [width, width, *[9 * width] * layers, *[2 * width] * (layers + 1)]
    depths = [inputs, *[width] * (len(outputs) - 1)]
    return dict(
        features=make(rows, inputs),
        encoded=make(samples, keys, width),
        weights=[make(*shape, scale=shape[1] ** -0.5) for shape in zip(outputs, depths, strict=True)],
        biases=[make(size) for size in outputs],
    )


def results(arguments: dict, backend: str) -> list[torch.Tensor]:
    found = conditioning(**arguments, backend=backend)
    return [*found.modulation, found.cond_kv]


def tensors_of(arguments: dict) -> list[torch.Tensor]:
    return [arguments["features"], arguments["encoded"], *arguments["weights"], *arguments["biases"]]


SIZES = dict(
    rows=st.integers(0, 150),
    inputs=st.integers(1, 70),
    width=st.integers(1, 40),
    layers=st.integers(0, 3),
    samples=st.integers(0, 9),
    keys=st.integers(0, 50),
    seed=st.integers(0, 999),
)


@settings(deadline=None)
@given(**SIZES)
def test_the_native_core_is_as_exact_as_torch(**sizes):
    mine, plain = (results(case(**sizes), backend) for backend in ("cpp", "reference"))
    exact = results(case(**sizes, dtype=torch.float64), "reference")
    for found, float32, truth in zip(mine, plain, exact, strict=True):
        assert found.shape == float32.shape == truth.shape and found.is_contiguous()
        if truth.numel():
            error, allowed = (found - truth).abs().max(), (float32 - truth).abs().max()
            assert error <= 2 * allowed + 2e-6 * truth.abs().max()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_denoiser_hands_over_its_layers_in_order(backend):
    torch.manual_seed(0)
    denoiser = Denoiser(4, 8, 3, 2)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    steps, encoded = torch.tensor([1, 500]), torch.randn(2, 5, 8)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROHYDR_FAST_BACKEND", backend)
        (blocks, final), kv = denoiser.conditioning(steps, encoded)
        time = F.silu(denoiser.time(sinusoidal(steps, TIME_FEATURES)))
        assert (blocks.shape, final.shape, kv.shape) == ((2, 3, 9, 8), (2, 2, 8), (3, 2, 2, 5, 8))
        torch.testing.assert_close(final.flatten(1), denoiser.final_modulation(time))
        for i, block in enumerate(denoiser.blocks):
            torch.testing.assert_close(blocks[:, i].flatten(1), block.modulation(time))
            torch.testing.assert_close(torch.cat([kv[i, 0], kv[i, 1]], -1), block.kv(encoded))


@pytest.mark.parametrize("x", [-1e4, -200.0, -88.0, -3.0, 0.0, 3.0, 88.0, 200.0, 1e4, torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_of_large_numbers(x, dtype):
    """All layers pass on one number: the result is silu(silu(x))."""
    weights = [torch.ones(rows, 1, dtype=dtype) for rows in (1, 1, 2)]
    arguments = dict(features=torch.tensor([[x]], dtype=dtype), encoded=torch.zeros(1, 1, 1, dtype=dtype))
    arguments |= dict(weights=weights, biases=[torch.zeros(len(weight), dtype=dtype) for weight in weights])
    expected = F.silu(F.silu(torch.tensor(x, dtype=dtype))).expand(1, 2, 1)
    torch.testing.assert_close(results(arguments, "cpp")[1], expected, equal_nan=True, atol=1e-30, rtol=1e-6)


def gradients(arguments: dict, backend: str) -> list[torch.Tensor]:
    """Of random multiples of all results, with respect to every input; the multiples do not depend on the dtype."""
    found, generator = results(arguments, backend), torch.Generator().manual_seed(1)
    given = [torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype) for result in found]
    pairs = [pair for pair in zip(found, given, strict=True) if pair[0].requires_grad]  # without layers no K and V do
    found, given = zip(*pairs, strict=True)
    return list(torch.autograd.grad(found, tensors_of(arguments), given, allow_unused=True, materialize_grads=True))


@settings(deadline=None)
@given(**SIZES)
def test_gradients_of_the_core_are_as_exact_as_those_of_torch(**sizes):
    mine, plain = (gradients(case(**sizes, requires_grad=True), backend) for backend in ("cpp", "reference"))
    exact = gradients(case(**sizes, dtype=torch.float64, requires_grad=True), "reference")
    double = gradients(case(**sizes, dtype=torch.float64, requires_grad=True), "cpp")
    largest = max(truth.norm() for truth in exact)
    for found, float32, truth, float64 in zip(mine, plain, exact, double, strict=True):
        assert found.shape == truth.shape
        size = max(truth.norm(), 0.1 * largest)  # the terms of a sum may all but cancel
        assert (found - truth).norm() <= 3 * (float32 - truth).norm() + 1e-6 * size
        assert (found - truth).norm() <= 1e-5 * size  # whatever torch does
        assert (float64 - truth).norm() <= 1e-12 * size


@pytest.mark.parametrize("compute", [results, gradients])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads, compute):
    arguments = case(rows=1100, inputs=40, width=60, samples=50, keys=40, requires_grad=True)  # work for threads
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = compute(arguments, "cpp")
        torch.set_num_threads(threads)
        assert all(map(torch.equal, compute(arguments, "cpp"), alone))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layers", [0, 2])
def test_gradients_of_first_and_second_order(layers):
    arguments = case(rows=2, inputs=3, width=2, layers=layers, dtype=torch.float64, requires_grad=True)
    count = len(arguments["weights"])

    def call(features, encoded, *rest):
        layers = dict(weights=rest[:count], biases=rest[count:])
        return tuple(results(dict(features=features, encoded=encoded, **layers), "cpp"))

    # The core goes back where nothing is differentiated again, operations of torch do where something is.
    assert torch.autograd.gradcheck(call, tensors_of(arguments), nondet_tol=1e-10)
    assert torch.autograd.gradgradcheck(call, tensors_of(arguments), nondet_tol=1e-10)


def test_what_is_frozen_costs_no_gradient():
    arguments = case(requires_grad=True)
    frozen = [arguments["features"], arguments["encoded"], arguments["weights"][2], arguments["biases"][5]]
    for tensor in frozen:
        tensor.requires_grad_(False)
    sum(result.square().sum() for result in results(arguments, "cpp")).backward()
    assert [tensor.grad is None for tensor in tensors_of(arguments)] == [
        any(tensor is one for one in frozen) for tensor in tensors_of(arguments)
    ]


def test_strided_inputs():
    arguments = case(rows=6, samples=4)
    strided = dict(arguments, features=arguments["features"][::2], encoded=arguments["encoded"][::2])
    strided["weights"] = [weight.t().contiguous().t() for weight in arguments["weights"]]
    dense = {name: value.contiguous() for name, value in strided.items() if name in ("features", "encoded")}
    assert all(map(torch.equal, results(strided, "cpp"), results({**arguments, **dense}, "cpp")))


def change(name: str, place: int | None = None, value: torch.Tensor | None = None) -> dict:
    """An argument replaced, or an entry of it; without a value the last entry is left out."""
    arguments = case()
    if place is not None:
        arguments[name][place] = value
    else:
        arguments[name] = arguments[name][:-1] if value is None else value
    return arguments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (change("features", value=torch.zeros(3)), r"features must be \(R, D\) of a float dtype"),
        (change("features", value=torch.zeros(3, 6)), r"weights\[0\] must have shape \(4, 6\)"),
        (change("encoded", value=torch.zeros(2, 3, 5)), r"encoded must have shape \(any, any, 4\)"),
        (change("encoded", value=torch.zeros(2, 3, 4).double()), "encoded must be torch.float32 on cpu"),
        (change("weights"), r"weights and biases must be 3 \+ 2 L each, for L blocks, got 6 and 7"),
        (change("biases"), r"weights and biases must be 3 \+ 2 L each, for L blocks, got 7 and 6"),
        (change("weights", 0, torch.zeros(4)), r"weights\[0\] must have shape"),
        (change("weights", 2, torch.zeros(35, 4)), r"weights\[2\] must have shape \(36, 4\)"),
        (change("weights", 6, torch.zeros(8, 4).double()), r"weights\[6\] must be torch.float32 on cpu"),
        (change("biases", 4, torch.zeros(7)), r"biases\[4\] must have shape \(8,\)"),
    ],
)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_what_does_not_fit_is_named(arguments, sentence, backend):
    with pytest.raises(UsageError, match=f"^conditioning: {sentence}"):
        conditioning(**arguments, backend=backend)
