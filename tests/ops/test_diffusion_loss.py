"""Eq. 3 in one call of the core: the numbers of the reference, all gradients, and what it does not look at."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rohydr_fast.config import LOSSES, PREDICTIONS
from rohydr_fast.diffusion.process import DenoisingRequest, DiffusionProcess, denoising_losses
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.errors import BackendUnavailable, UsageError
from rohydr_fast.models.denoiser import Denoiser
from rohydr_fast.ops.diffusion_loss import LossTerm, diffusion_loss, diffusion_losses
from rohydr_fast.ops.diffusion_loss.reference import COLUMNS
from rohydr_fast.ops.philox import Stream
from rohydr_fast.ops.reverse_loop import NoiseKey
from rohydr_fast.ops.reverse_loop.reference import step_noise
from tests.kernels.driver import ISAS
from tests.native_spy import needs_core, spy_on_core
from tests.ops.inputs import KEYS, TOKENS, loss_inputs
from tests.small_model import open_up

pytestmark = [needs_core, pytest.mark.usefixtures("one_thread")]

ULP = torch.finfo(torch.float32).eps
FLOOR = 8 * ULP  # of the norm: what a gradient may be off where the reference was lucky
CAP = 3e-4


class Problem:
    """A random denoiser with its batch; masks leave each sample a token and a key."""

    def __init__(self, width, heads, layers, channels, samples, tokens, keys, prediction, loss, seed, masked=True):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.denoiser = Denoiser(channels, width, layers, heads)
        open_up(self.denoiser, 0.15)
        self.x_0 = torch.randn(samples, tokens, channels, generator=generator)
        self.encoded = torch.randn(samples, keys, width, generator=generator)
        self.t = torch.randint(1, 1001, (samples,), generator=generator)
        self.noise = NoiseKey(seed, torch.arange(samples) * 7, 1)
        self.masks = {}
        if masked:
            for name, size in (("token_mask", tokens), ("key_mask", keys)):
                mask = torch.rand(samples, size, generator=generator) > 0.3
                mask[:, 0] = True
                self.masks[name] = mask
        self.process = DiffusionProcess(Schedule(), prediction, loss)

    def request(self, dtype, encoded) -> DenoisingRequest:
        return DenoisingRequest(
            self.process, self.denoiser, self.x_0.to(dtype), self.t, encoded, self.noise, **self.masks
        )

    def gradients(self, dtype, backend, scale=1.0) -> dict[str, Tensor]:
        """The loss, and the gradient of everything that has one, of `scale` times it."""
        return gradients([self], dtype, backend, [scale])[0]


def gradients(problems: list[Problem], dtype, backend, scales) -> list[dict[str, Tensor]]:
    """Those of each problem, of the sum of their scaled losses by one call."""
    leaves = [problem.encoded.detach().to(dtype, copy=True).requires_grad_() for problem in problems]
    for problem in problems:
        problem.denoiser.to(dtype).zero_grad()
    requests = [problem.request(dtype, encoded) for problem, encoded in zip(problems, leaves, strict=True)]
    values = denoising_losses(requests, backend=backend)
    sum(scale * value for scale, value in zip(scales, values, strict=True)).backward()
    results = []
    for problem, value, encoded in zip(problems, values, leaves, strict=True):
        found = {name: parameter.grad.clone() for name, parameter in problem.denoiser.named_parameters()}
        problem.denoiser.float()
        results.append({"loss": value.detach(), "encoded": encoded.grad, **found})
    return results


def distance(found: Tensor, exact: Tensor, size: float | None = None) -> float:
    """Relative to `size`, by default that of `exact`."""
    return float((found - exact).norm() / max(float(exact.norm()) if size is None else size, 1e-30))


def layer_sizes(exact: dict[str, Tensor]) -> dict[str, float]:
    """The norm of each gradient. A bias has that of its layer: it is a column of it, whose terms may all but cancel."""
    sizes = {name: float(value.norm()) for name, value in exact.items()}
    layers = {name: name.removesuffix("bias") + "weight" for name in sizes}
    return {
        name: math.hypot(size, sizes[layers[name]]) if name.endswith("bias") else size for name, size in sizes.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([(4, 2), (12, 3), (16, 4), (32, 4), (33, 3), (40, 1), (64, 4)]),
    layers=st.integers(1, 3),
    channels=st.integers(1, 35),
    samples=st.integers(1, 6),
    tokens=st.integers(2, 55),
    keys=st.integers(2, 70),
    prediction=st.sampled_from(PREDICTIONS),
    loss=st.sampled_from(LOSSES),
    seed=st.integers(0, 2**32),
    masked=st.booleans(),
)
@example(
    **dict(heads=(32, 4), layers=1, channels=1, samples=5, tokens=41, keys=2, prediction="v", loss="hybrid"),
    **dict(seed=591470, masked=True),  # of the gradient of a bias hardly anything is left
)
def test_loss_and_gradients_are_as_near_to_float64_as_pytorchs(heads, **sizes):
    problem = Problem(*heads, **sizes)
    exact = problem.gradients(torch.float64, "reference")
    plain, found = (problem.gradients(torch.float32, backend) for backend in ("reference", "cpp"))
    double = problem.gradients(torch.float64, "cpp")
    value, floats, mine = (float(found["loss"]) for found in (exact, plain, found))
    few = sizes["samples"] * sizes["tokens"] * sizes["channels"] < 64
    luck = 10 if few else 3  # of few numbers the reference's roundings may cancel
    term = ULP / 2 if sizes["loss"] == "kl" else 1e-8  # KL is a difference of numbers of the size of 1
    assert abs(mine - value) <= luck * abs(floats - value) + 4e-6 * abs(value) + term
    for results in (exact, plain, found, double):
        del results["loss"]
    sizes = layer_sizes(exact)
    largest = max(sizes.values())
    large = [name for name, size in sizes.items() if size > 1e-3 * largest]
    own = max(distance(plain[name], exact[name], sizes[name]) for name in large)
    for name, value in exact.items():
        if name not in large:  # hardly any: what rounding of the larger ones leaves
            assert (found[name] - value).norm() <= CAP * largest, name
            continue
        seen = distance(found[name], value, sizes[name])
        luck = 10 if few or value.numel() < 64 else 3
        assert seen <= luck * own + FLOOR, name
        assert seen <= CAP or own > CAP / 3, name  # where KL is all but 0, its gradient is what rounding leaves
        assert distance(double[name], value, sizes[name]) <= 1e-9, name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_it_is_the_loss_of_the_network_at_each_samples_step(backend, loss):
    problem = Problem(16, 4, 2, 6, 3, 5, 7, "v", loss, 4)
    eps, previous = (
        step_noise(problem.x_0, problem.noise, step=0, stream=stream)
        for stream in (Stream.FORWARD, Stream.FORWARD_PREVIOUS)
    )
    drawn = problem.process.sample(problem.x_0, problem.t, eps, previous)
    with torch.no_grad():
        prediction, v = problem.denoiser(drawn.x_t, problem.t, problem.encoded, *problem.masks.values())
    expected = problem.process.eq3_loss(drawn, prediction, v, problem.masks["token_mask"])
    found = denoising_losses([problem.request(torch.float32, problem.encoded)], backend=backend)[0]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_instruction_set_and_any_number_of_threads(isa, loss, monkeypatch):
    monkeypatch.setenv("ROHYDR_FAST_CPU", isa)
    problem = Problem(24, 3, 2, 10, 11, 17, 23, "eps", loss, 5)
    exact, first = problem.gradients(torch.float64, "reference"), problem.gradients(torch.float32, "cpp")
    assert all(distance(first[name], value) < 1e-4 for name, value in exact.items())
    for threads in (2, 3, 8, 1):
        torch.set_num_threads(threads)
        again = problem.gradients(torch.float32, "cpp")
        assert all(torch.equal(again[name], value) for name, value in first.items())


def test_several_at_once_are_what_each_is_alone():
    """Other sizes, losses and masks side by side, on any number of threads: every bit, and a term without tokens."""
    problems = [
        Problem(16, 4, 2, 6, 3, 5, 7, "v", "hybrid", 1),
        Problem(24, 3, 1, 10, 11, 17, 23, "eps", "nll", 5),
        Problem(16, 2, 2, 6, 4, 0, 2, "x0", "kl", 3, masked=False),
        Problem(32, 4, 1, 3, 9, 20, 8, "x0", "kl", 3, masked=False),
    ]
    scales = [1.0, -2.0, 1.0, 0.5]
    alone = [p.gradients(torch.float32, "cpp", scale) for p, scale in zip(problems, scales, strict=True)]
    assert all(found["time.0.weight"].any() for found in (alone[0], alone[1], alone[3]))
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        for found, expected in zip(gradients(problems, torch.float32, "cpp", scales), alone, strict=True):
            assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_loss_that_nobody_uses_has_a_gradient_of_zero():
    problems = [Problem(16, 4, 1, 6, 3, 5, 7, "v", "hybrid", seed) for seed in (1, 2)]
    encoded = [problem.encoded.clone().requires_grad_() for problem in problems]
    requests = [problem.request(torch.float32, leaf) for problem, leaf in zip(problems, encoded, strict=True)]
    denoising_losses(requests, backend="cpp")[1].backward()
    assert encoded[1].grad.any() and not encoded[0].grad.any()


def test_of_no_term_there_is_no_loss():
    assert denoising_losses([]) == []


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_what_is_wrong_with_one_of_several_names_it(backend):
    given = loss_inputs()
    short = LossTerm(**{**given, "rows": given["rows"][1:]})
    with pytest.raises(UsageError, match=r"diffusion_losses, term 1: rows must have shape \(3, 11\)"):
        diffusion_losses([LossTerm(**given), short], backend=backend)
    with pytest.raises(UsageError, match="term 1: x_0 must be torch.float32 on cpu as in term 0, got torch.float64"):
        diffusion_losses([LossTerm(**given), LossTerm(**loss_inputs(dtype=torch.float64))], backend=backend)


def test_the_gradient_of_a_multiple_is_the_multiple():
    problem = Problem(16, 4, 2, 6, 3, 5, 7, "v", "hybrid", 1)
    once, thrice = (problem.gradients(torch.float64, "cpp", scale) for scale in (1.0, 3.0))
    assert once.pop("loss") == thrice.pop("loss")
    for name, value in once.items():
        torch.testing.assert_close(thrice[name], 3 * value, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("rows", [True, False], ids=["own-steps", "one-row"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradcheck(backend, rows):
    given = loss_inputs(batch=2, tokens=3, keys=4, dtype=torch.float64, rows=rows, loss="nll")
    time, block, final, kv = 1, 3, 4, 6  # of the time embedding, the last block's modulation, the final one, K and V
    leaves = [given["layer_weights"][time][:, :3], *[given["layer_weights"][i][:5] for i in (block, final, kv)]]
    leaves += [given["encoded"], *given["layer_biases"][:2], given["weights"].blocks[0].fc1_weight[:7]]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def function(time_part, block_part, final_part, kv_part, encoded, first_bias, second_bias, fc1_part):
        layers, biases = list(given["layer_weights"]), [first_bias, second_bias, *given["layer_biases"][2:]]
        layers[time] = torch.cat([time_part, layers[time][:, 3:]], 1)
        for i, part in ((block, block_part), (final, final_part), (kv, kv_part)):
            layers[i] = torch.cat([part, layers[i][5:]])
        first = given["weights"].blocks[0]
        first = first._replace(fc1_weight=torch.cat([fc1_part, first.fc1_weight[7:]]))
        weights = given["weights"]._replace(blocks=(first, *given["weights"].blocks[1:]))
        changed = dict(encoded=encoded, layer_weights=layers, layer_biases=biases, weights=weights)
        return diffusion_loss(**{**given, **changed}, backend=backend)

    assert torch.autograd.gradcheck(function, leaves)


def test_a_sample_without_keys_and_one_without_tokens_leave_the_others_alone():
    given = loss_inputs(masked=False)
    key_mask, token_mask = torch.ones(3, KEYS, dtype=torch.bool), torch.ones(3, TOKENS, dtype=torch.bool)
    key_mask[1], token_mask[2] = False, False
    results = []
    for backend in ("cpp", "reference"):
        encoded = given["encoded"].clone().requires_grad_()
        changed = {**given, "encoded": encoded, "key_mask": key_mask, "token_mask": token_mask}
        value = diffusion_loss(**changed, backend=backend)
        results.append((value, *torch.autograd.grad(value, encoded)))
    torch.testing.assert_close(*[value for value, _ in results], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*[gradient for _, gradient in results], rtol=1e-3, atol=1e-5)
    assert not results[0][1][1:].any()


def test_padding_and_absent_keys_are_not_looked_at():
    given = loss_inputs()
    encoded, dirty = given["encoded"], given["encoded"].clone()
    x_0 = given["x_0"].masked_fill(~given["token_mask"][..., None], math.nan)
    dirty[~given["key_mask"]] = math.inf
    found = []
    for changed in (dict(encoded=encoded), dict(encoded=dirty, x_0=x_0)):
        leaf = changed["encoded"].clone().requires_grad_()
        value = diffusion_loss(**{**given, **changed, "encoded": leaf}, backend="cpp")
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not found[0][1][~given["key_mask"]].any()


@pytest.mark.parametrize("sizes", [dict(batch=0), dict(tokens=0)], ids=str)
def test_of_nothing_the_loss_and_its_gradients_are_zero(sizes):
    given = loss_inputs(**sizes)
    leaf = given["weights"].out_weight.clone().requires_grad_()
    value = diffusion_loss(**{**given, "weights": given["weights"]._replace(out_weight=leaf)}, backend="cpp")
    assert value.item() == 0 and not torch.autograd.grad(value, leaf)[0].any()


def test_without_a_gradient_to_come_it_is_the_same_loss_by_one_call(monkeypatch):
    given = loss_inputs()
    calls = spy_on_core(monkeypatch)
    alone = diffusion_loss(**given, backend="cpp")
    encoded = given["encoded"].clone().requires_grad_()
    value = diffusion_loss(**{**given, "encoded": encoded}, backend="cpp")
    value.backward()
    assert alone.item() == value.item() and not alone.requires_grad
    assert [call.op for call in calls] == ["diffusion_loss"] * 2


def test_inputs_stay_as_they_are_and_any_layout_gives_the_same():
    given = loss_inputs()
    kept = {name: given[name].clone() for name in ("x_0", "rows", "encoded")}
    value = diffusion_loss(**given, backend="cpp")
    for name, tensor in kept.items():
        assert torch.equal(given[name], tensor)
        turned = tensor.transpose(0, -1).contiguous().transpose(0, -1)
        assert diffusion_loss(**{**given, name: turned}, backend="cpp").item() == value.item(), name


def test_bfloat16_weights_are_widened():
    given = loss_inputs()
    layers = [w.bfloat16() for w in given["layer_weights"]]
    half = dict(weights=given["weights"].to(torch.bfloat16), layer_weights=layers)
    wide = dict(weights=half["weights"].to(torch.float32), layer_weights=[w.float() for w in layers])
    found = [diffusion_loss(**{**given, **weights}, backend="cpp").item() for weights in (half, wide)]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["encoded", "layer_weights", "weights"])
def test_what_changed_in_place_before_the_way_back_is_torchs_error(name):
    given = loss_inputs()
    layer, weight = given["layer_weights"][0], given["weights"].in_weight
    tensor = {"encoded": given["encoded"], "layer_weights": layer, "weights": weight}
    tensor[name].requires_grad_()
    value = diffusion_loss(**given, backend="cpp")
    with torch.no_grad():
        tensor[name].mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_graph_that_is_kept_goes_back_again(monkeypatch):
    """Gradients are the caller's to change, and those of the next time are right all the same."""
    given, calls = loss_inputs(), spy_on_core(monkeypatch)
    leaf = given["weights"].in_weight.requires_grad_()
    value = diffusion_loss(**given, backend="cpp")
    first = torch.autograd.grad(2 * value, leaf, retain_graph=True)[0]
    expected = first.clone()
    first.fill_(math.nan)
    value.backward(retain_graph=True)
    assert torch.equal(2 * leaf.grad, expected)
    value.backward()
    assert torch.equal(leaf.grad, expected) and len(calls) == 3
    with pytest.raises(RuntimeError, match="a second time"):
        value.backward()


def test_a_second_way_back_is_a_named_error():
    given = loss_inputs()
    encoded = given["encoded"].requires_grad_()
    gradient = torch.autograd.grad(diffusion_loss(**given, backend="cpp"), encoded, create_graph=True)[0]
    with pytest.raises(BackendUnavailable, match="diffusion_losses: its gradient on backend 'cpp' must not be diff"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["x_0", "rows", "position", "features"])
def test_a_gradient_that_the_core_does_not_have_is_the_references(name):
    given = loss_inputs()
    given[name] = given[name].clone().requires_grad_()
    assert torch.autograd.grad(diffusion_loss(**given), given[name])[0].any()
    with pytest.raises(BackendUnavailable, match=f"no gradient with respect to {name}"):
        diffusion_loss(**given, backend="cpp")


WRONG = {
    "x_0": (lambda given: given["x_0"][0], r"x_0 must be \(B, T, C\)"),
    "rows": (lambda given: given["rows"][:, 1:], r"rows must have shape \(3, 11\)"),
    "encoded": (lambda given: given["encoded"][:, :0], "at least one key"),
    "features": (lambda given: given["features"][1:], r"features must have shape \(3, any\)"),
    "layer_weights": (lambda given: given["layer_weights"][:6], "be 7 each, for 2 blocks, got 6 and 7"),
    "layer_biases": (
        lambda given: [*given["layer_biases"][:6], given["layer_biases"][6][1:]],
        r"layer_biases\[6\] must",
    ),
    "loss": (lambda given: "mse", "loss must be one of nll, kl, hybrid, got 'mse'"),
    "num_heads": (lambda given: 3, "num_heads must divide the width 16"),
    "token_mask": (lambda given: given["token_mask"].float(), "token_mask must be bool"),
    "key_mask": (lambda given: given["key_mask"][:, 1:], "key_mask must be bool with shape"),
    "noise": (lambda given: given["noise"]._replace(modality=256), "noise.modality must be"),
    "position": (lambda given: given["position"].double(), "position must be torch.float32"),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_a_named_error(name, backend):
    given = loss_inputs()
    wrong, message = WRONG[name]
    with pytest.raises(UsageError, match=message):
        diffusion_loss(**{**given, name: wrong(given)}, backend=backend)


def test_a_row_that_is_not_finite_is_named():
    given = loss_inputs()
    given["rows"][1, COLUMNS.index("noise")] = math.nan
    with pytest.raises(UsageError, match="rows must be finite, got .* in row 1"):
        diffusion_loss(**given)


def test_compiles_whole():
    problem = Problem(16, 4, 1, 6, 3, 5, 7, "eps", "hybrid", 2)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(encoded):
        return denoising_losses([problem.request(torch.float32, encoded)])[0]

    problem.masks = {}
    encoded = problem.encoded.clone().requires_grad_()
    found = torch.autograd.grad(compiled(encoded), encoded)[0]
    torch.testing.assert_close(found, problem.gradients(torch.float32, "cpp")["encoded"])
