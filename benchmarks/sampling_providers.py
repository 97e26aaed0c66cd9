"""The contenders of benchmarks/sampling.py: each turns a problem into a function that samples x_0.

Only `cpp` is this package's. The others are opponents, and as fast as we know how to make them: what was tried and
brought nothing is said at each. All but `reference` compute condition keys and values, modulation and coefficients
once a call, inside the timed call, with the same two matrix products.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from contenders import Provider, no_compiler, no_fused_loop
from hoisted import hoisted_network, sdpa, step_coefficients
from plain import features_of, plain_network
from sampling_problem import Problem
from torch import Tensor, nn

from rohydr_fast.diffusion.schedule import ReverseTable
from rohydr_fast.models.denoiser import TIME_FEATURES, Denoiser
from rohydr_fast.models.sequences import sinusoidal
from rohydr_fast.ops.reverse_loop.reference import reverse_step

ONNX_OPSET = 23
"""The first with an Attention operator: onnxruntime 1.32 is 15 to 20 % faster with it than with matrix products and
softmax, and faster than with its own MultiHeadAttention."""

Sampler = Callable[[Tensor | None], Tensor]
"""Noise (K, B, T, C), or None to draw it, to x_0 (B, T, C). The result may be overwritten by the next call."""


def onnx_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attention (B, T, W) as one ONNX operator, which spares the graph its transpositions."""
    return torch.onnx.ops.attention(q, k, v, mask, q_num_heads=heads, kv_num_heads=heads)[0]


class HoistedStep(nn.Module):
    """One reverse step as a graph whose inputs are x, a row of the step's numbers, z and the condition's K and V.

    The row holds, for each block, shift, 1 + scale and gate of its three parts (so that adaLN is a LayerNorm with the
    row's weight and bias), the same for the last LayerNorm, and four coefficients: x_{t-1} = c0 x + c1 prediction +
    exp(c2 v + c3) z. At the last step z is zero.
    """

    def __init__(self, problem: Problem, attention: Callable = sdpa):
        super().__init__()
        denoiser, preset = problem.denoiser, problem.preset
        self.attention, self.preset = attention, preset
        weights = denoiser.weights()
        self.blocks = nn.ModuleList(nn.ParameterList(_frozen(tensor) for tensor in block) for block in weights.blocks)
        self.in_weight = _frozen(weights.in_weight)
        self.position = _frozen(weights.in_bias + denoiser.position(preset.tokens))
        self.out_weight, self.out_bias = _frozen(weights.out_weight), _frozen(weights.out_bias)
        self._prepare_tables(denoiser, problem.table)

    def _prepare_tables(self, denoiser: Denoiser, table: ReverseTable) -> None:
        """Stack the weights of what is computed once a call, so that it takes two matrix products."""
        width = self.preset.width
        layers = [block.modulation for block in denoiser.blocks] + [denoiser.final_modulation]
        bias = torch.cat([layer.bias for layer in layers]).view(-1, width).clone()
        bias[[9 * i + j for i in range(len(denoiser.blocks)) for j in (1, 4, 7)] + [-1]] += 1  # 1 + scale
        self.row_weight, self.row_bias = _frozen(torch.cat([layer.weight for layer in layers])), _frozen(bias.flatten())
        self.kv_weight = _frozen(torch.cat([b.kv.weight.view(2, width, width).mT for b in denoiser.blocks]))
        self.kv_bias = _frozen(torch.cat([b.kv.bias.view(2, 1, width) for b in denoiser.blocks]))
        self.time = copy.deepcopy(denoiser.time)
        self.features = _frozen(sinusoidal(table.timesteps.flip(0), TIME_FEATURES))
        self.coefficients = _frozen(step_coefficients(table.coefficients.flip(0)))

    def rows(self, out: Tensor | None = None) -> Tensor:
        """The rows of all steps in the order of use, (K, (9 L + 2) W + 4)."""
        modulation = F.linear(F.silu(self.time(self.features)), self.row_weight, self.row_bias)
        return torch.cat([modulation, self.coefficients], 1, out=out)

    def keys_values(self, cond: Tensor, out: Tensor | None = None) -> Tensor:
        """K and V of all blocks, (2 L, B, S, W), each of them contiguous."""
        flat = cond.flatten(0, 1).expand(len(self.kv_weight), -1, -1)
        out = None if out is None else out.flatten(1, 2)
        return torch.baddbmm(self.kv_bias, flat, self.kv_weight, out=out).unflatten(1, cond.shape[:2])

    def forward(
        self,
        x: Tensor,
        row: Tensor,
        z: Tensor,
        kv: list[Tensor],
        key_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """x_{t-1} (B, T, C) of x_t; masks (B, 1, T, S) and (B, 1, T, T)."""
        parts = row.flatten().split([self.preset.width] * (9 * self.preset.blocks + 2) + [1] * 4)
        prediction, v = hoisted_network(
            x, parts[:-4], kv, self.position, self, self.preset.heads, self.attention, key_mask, token_mask
        )
        c0, c1, c2, c3 = parts[-4:]
        return c0 * x + c1 * prediction + torch.exp(c2 * v + c3) * z.view(x.shape)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def _masks(problem: Problem) -> dict[str, Tensor]:
    """The masks as `HoistedStep.forward` and ONNX take them: (B, 1, T, S) and (B, 1, T, T)."""
    masks = {"key_mask": problem.key_mask, "token_mask": problem.token_mask}
    return {
        name: mask[:, None, None, :].expand(-1, 1, problem.preset.tokens, -1).contiguous()
        for name, mask in masks.items()
        if mask is not None
    }


class Buffers:
    """Memory that a runtime's inputs are bound to once; `fill` computes a call's tables into it.

    Runtimes keep addresses, not tensors: whoever samples must keep this object.
    """

    def __init__(self, problem: Problem, step: HoistedStep):
        self.problem, self.step = problem, step
        with torch.inference_mode():
            self.rows, self.kv = step.rows(), step.keys_values(problem.cond)
        self.noise = torch.zeros(problem.steps + 1, *problem.shape)  # the last stays zero: the last step's z
        self.fixed = {f"kv{i}": tensor for i, tensor in enumerate(self.kv)} | _masks(problem)

    def fill(self, noise: Tensor | None) -> None:
        """Draw or copy the noise, compute rows, keys and values.

        On one thread: the pool of torch would go on spinning while the pool of the runtime starts.
        """
        with torch.inference_mode(), _one_thread():
            self.step.rows(out=self.rows)
            self.step.keys_values(self.problem.cond, out=self.kv)
            draw = self.noise[:-1]
            draw.copy_(noise) if noise is not None else torch.randn(draw.shape, out=draw)


@contextmanager
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build_reference(problem: Problem, threads: int) -> Sampler:
    """The loop as one writes it first: the whole network at every step, condition and modulation included."""
    steps, table, denoiser = problem.steps, problem.table, problem.denoiser
    masks = {"token_mask": problem.token_mask, "key_mask": problem.key_mask}

    def sample(noise: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            noise = torch.randn(steps, *problem.shape) if noise is None else noise
            x = noise[0]
            for j, i in enumerate(reversed(range(steps)), 1):
                features = features_of(table.timesteps[i].expand(len(x)), x)
                position = denoiser.position(x.shape[1])
                prediction, v = plain_network(denoiser, x, features, position, problem.cond, **masks)
                x = reverse_step(x, prediction, v, table.coefficients[i], noise[j] if i else None)
            return x

    return sample


def build_hoisted(problem: Problem, threads: int) -> Sampler:
    """Eager, with everything that does not change from step to step taken out of the loop.

    It computes what the package's backend "reference" computes, but is 4 to 15 % faster: adaLN in one operation,
    stacked weights for what is computed once.
    """
    step = HoistedStep(problem).eval()
    return _chain(problem, step, step, torch.inference_mode)


def build_compile(problem: Problem, threads: int) -> Sampler:
    """`torch.compile` of the hoisted step.

    With the C++ wrapper, which is 10 % faster for one sample. Tried without gain on this task: max-autotune (no
    difference, or slower), attention written out as matrix products and softmax.
    """
    step = HoistedStep(problem).eval()
    compiled = torch.compile(step, fullgraph=True, dynamic=False, options={"freezing": True, "cpp_wrapper": True})
    return _chain(problem, step, compiled, torch.no_grad)  # freezing refuses weights of the inference mode


def _chain(problem: Problem, step: HoistedStep, run: Callable, no_gradients: Callable) -> Sampler:
    masks, last = _masks(problem), torch.zeros(problem.shape)

    def sample(noise: Tensor | None = None) -> Tensor:
        with no_gradients():
            noise = torch.randn(problem.steps, *problem.shape) if noise is None else noise
            kv, x = list(step.keys_values(problem.cond)), noise[0]
            for row, z in zip(step.rows(), (*noise[1:], last), strict=True):
                x = run(x, row, z, kv, **masks)
            return x

    return sample


@lru_cache(maxsize=2)
def onnx_step(problem: Problem) -> bytes:
    """The hoisted step as an ONNX model; inputs x, row, z, kv0 ..., and the masks of the problem."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    step, shape = HoistedStep(problem, onnx_attention).eval(), problem.shape
    masks = _masks(problem)
    kv = list(step.keys_values(problem.cond))
    # A leading 1 at row and z, as a loop over slices of the tables gives them.
    inputs = (torch.zeros(shape), step.rows()[:1], torch.zeros(1, *shape), kv)
    names = ["x", "row", "z", *(f"kv{i}" for i in range(len(kv))), *masks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter about torch's own code
        program = torch.onnx.export(
            step, inputs, kwargs=masks, dynamo=True, opset_version=ONNX_OPSET, input_names=names, verbose=False
        )
    return program.model_proto.SerializeToString()


def build_onnxruntime(problem: Problem, threads: int) -> Sampler:
    """ONNX Runtime, one run a step, all inputs and outputs bound beforehand to fixed memory.

    Tried without gain: the whole loop as one Scan (the same time), the exporter's matrix products instead of
    Attention (slower), com.microsoft.MultiHeadAttention (slower).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_step(problem), options, providers=["CPUExecutionProvider"])
    buffers = Buffers(problem, HoistedStep(problem))
    x = torch.empty(2, *problem.shape)  # step j reads x[j % 2] and writes the other
    element = {torch.float32: "float32", torch.bool: "bool"}
    bindings = []
    for j in range(problem.steps):
        binding = session.io_binding()
        inputs = {"x": x[j % 2], "row": buffers.rows[j : j + 1], "z": buffers.noise[j + 1 : j + 2], **buffers.fixed}
        for name, tensor in inputs.items():
            binding.bind_input(name, "cpu", 0, element[tensor.dtype], tensor.shape, tensor.data_ptr())
        target = x[1 - j % 2]
        name = session.get_outputs()[0].name
        binding.bind_output(name, "cpu", 0, "float32", tuple(target.shape), target.data_ptr())
        bindings.append(binding)

    def sample(noise: Tensor | None = None) -> Tensor:
        buffers.fill(noise)
        x[0] = buffers.noise[0]
        for binding in bindings:
            session.run_with_iobinding(binding)
        return x[problem.steps % 2].clone()

    return sample


def build_openvino(problem: Problem, threads: int) -> Sampler:
    """OpenVINO, the whole loop as one TensorIterator over the hoisted step, all tensors set beforehand.

    For one sample this is 15 to 25 % faster than an inference a step. Tried without gain: the step converted from
    torch instead of ONNX, other snippet modes.
    """
    import openvino
    from openvino import opset15 as op

    core = openvino.Core()
    body = core.read_model(onnx_step(problem))
    loop = openvino.op.tensor_iterator()
    loop.set_body(body)
    state = body.get_results()[0].output(0)
    buffers = Buffers(problem, HoistedStep(problem))
    sources = {"x": buffers.noise[0], "row": buffers.rows, "z": buffers.noise[1:], **buffers.fixed}
    parameters = []
    for inner in body.get_parameters():
        name = inner.get_friendly_name()
        outer = op.parameter(sources[name].shape, inner.get_element_type(), name=name)
        if name == "x":
            loop.set_merged_input(inner, outer.output(0), state)
        elif name in ("row", "z"):
            loop.set_sliced_input(inner, outer.output(0), 0, 1, 1, -1, 0)
        else:
            loop.set_invariant_input(inner, outer.output(0))
        parameters.append(outer)
    model = openvino.Model([op.result(loop.get_iter_value(state, -1))], parameters, "chain")
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    for index, parameter in enumerate(parameters):
        source = sources[parameter.get_friendly_name()]
        request.set_input_tensor(index, openvino.Tensor(source.numpy(), shared_memory=True))
    result = torch.from_numpy(request.get_output_tensor(0).data)

    def sample(noise: Tensor | None = None) -> Tensor:
        buffers.fill(noise)
        request.infer()
        return result.clone()

    return sample


def build_cpp(problem: Problem, threads: int) -> Sampler:
    """This package's fused loop, from the encoded condition to x_0: everything that the call of a user does.

    It draws its own noise, which is Philox's, so the noise that it is given is not looked at.
    """
    return lambda noise=None: problem.sample("cpp")


PROVIDERS = {
    "reference": Provider(build_reference),
    "hoisted": Provider(build_hoisted),
    "compile": Provider(build_compile, unusable=no_compiler),
    "onnxruntime": Provider(build_onnxruntime, ("onnxruntime", "onnx", "onnxscript")),
    "openvino": Provider(build_openvino, ("openvino", "onnx", "onnxscript")),
    "cpp": Provider(build_cpp, exact=True, unusable=no_fused_loop),
}
"""By name, in the order of tables and figures."""
