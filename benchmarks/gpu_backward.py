"""The contenders of benchmarks/gpu.py with gradients: a chain from noise to x_0 and all the way back.

A call samples with the condition's keys and values and the modulation, and asks for the gradients of the condition and
of every parameter of the denoiser. compile and graph differentiate the hoisted step of benchmarks/training_methods.py.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from gpu_problem import BACKENDS
from gpu_providers import Contender, given_noise, request_of
from sampling_problem import Problem
from torch import Tensor
from training_methods import Compiled, Hoisted, torch_noise

from rohydr_fast.diffusion.sampler import sample_many
from rohydr_fast.diffusion.schedule import Schedule
from rohydr_fast.ops.philox import Stream
from rohydr_fast.ops.reverse_loop.graphed import record


class Backward:
    """A problem with leaves of its own, and what the gradient of x_0 is multiplied by on its way back."""

    def __init__(self, problem: Problem):
        self.problem = problem
        denoiser = copy.deepcopy(problem.denoiser).requires_grad_(True)
        cond = problem.cond.detach().clone().requires_grad_(True)
        self.request = request_of(replace(problem, denoiser=denoiser, cond=cond))._replace(schedule=Schedule())
        self.leaves = {"cond": cond, **dict(denoiser.named_parameters())}
        way = torch.randn(problem.shape, generator=torch.Generator().manual_seed(1))
        self.way = way.to(problem.cond)

    def run(self, sample: Callable) -> dict[str, Tensor]:
        """x_0 and all gradients, by name; `sample` takes a request."""
        x_0 = sample(self.request)
        gradients = torch.autograd.grad(x_0, list(self.leaves.values()), self.way)
        return {"x_0": x_0.detach(), **dict(zip(self.leaves, gradients, strict=True))}


def own(backend: str) -> Callable[..., Tensor]:
    """`sample` of this package."""
    return lambda request: sample_many([request], backend=backend)[0]


def exact_answers(problem: Problem) -> dict[str, Tensor]:
    """Those of the reference in float64, on the same noise."""
    denoiser = copy.deepcopy(problem.denoiser).double()
    double = replace(problem, denoiser=denoiser, cond=problem.cond.double())
    return Backward(double).run(own("reference"))


class Drawn:
    """Noise that lies in memory, as a `Draw` of benchmarks/training_methods.py."""

    def __init__(self, buffer: Tensor):
        self.buffer = buffer  # (K, B, T, C), in the order of use

    def __call__(self, x: Tensor, noise, *, step: int, stream: Stream) -> Tensor:
        return self.buffer[0 if stream == Stream.START else len(self.buffer) - step + 1]


def build_backward(name: str, problem: Problem, few: Problem) -> Contender:
    """A contender; see `gpu_providers.build_forward`."""
    full, small = Backward(problem), Backward(few)
    if name in BACKENDS:
        sample = own(BACKENDS[name])
        call = _repeated(full, sample)
        return Contender(lambda: small.run(sample), call, call, exact=name != "eager")
    if name == "graph":
        return _graphed(full, small)
    call = _repeated(full, Compiled(torch_noise).chain)
    return Contender(lambda: small.run(Compiled(Drawn(given_noise(few))).chain), call, call)


def _repeated(backward: Backward, sample: Callable) -> Callable[[], None]:
    def call() -> None:
        backward.run(sample)  # the gradients are freed here

    return call


class GraphedBackward:
    """All steps of the hoisted loop, forward and back, as one CUDA graph."""

    def __init__(self, backward: Backward):
        self.backward = backward
        self.noise = given_noise(backward.problem)
        self.found: dict[str, Tensor] = {}
        self.launch = record(self._once, self.noise.device)

    def _once(self) -> None:
        self.found = self.backward.run(Hoisted(Drawn(self.noise)).chain)

    def check(self) -> dict[str, Tensor]:
        """On the noise of the package."""
        self.launch()
        return {name: tensor.clone() for name, tensor in self.found.items()}

    def call(self) -> None:
        """On new noise."""
        self.noise.normal_()
        self.launch()


def _graphed(full: Backward, small: Backward) -> Contender:
    graphs: list[GraphedBackward] = []

    def call() -> None:  # the recording of the full chain waits until the gate has passed
        if not graphs:
            graphs.append(GraphedBackward(full))
        graphs[0].call()

    return Contender(lambda: GraphedBackward(small).check(), call, call)
