"""`torch.compile` sees through the operations: single kernels stand in its graph, with what they write known.

No device is needed: the graph is made from fake tensors, and what would run it gives zeros.
"""

import os
from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from rohydr_fast.ops.triton import status

found, reason = status.installed()
pytestmark = [
    pytest.mark.skipif(found is None, reason=reason),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: operations are closed"),
]


class Driver:
    """What Triton asks a device's driver for when a kernel is only analysed."""

    def __init__(self):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", 90, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0


@pytest.fixture
def as_on_a_device(monkeypatch):
    """The backend is chosen as on a machine with a GPU, for tensors on the CPU."""
    import triton

    monkeypatch.setattr(status, "interpreted", lambda: (True, "a test traces it"))
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A compiler that notes the graphs down; what it makes of them gives zeros."""

    def __init__(self):
        self.graphs = []
        self.backend = aot_autograd(fw_compiler=self._compile)

    def _compile(self, module, inputs):
        self.graphs.append(module.graph)
        (outputs,) = (node.args[0] for node in module.graph.nodes if node.op == "output")
        values = [None if node is None else node.meta["val"] for node in outputs]
        results = [
            torch.zeros([hint(n) for n in value.shape], dtype=value.dtype)
            if isinstance(value, torch.Tensor)
            else hint(value)
            for value in values
        ]
        return make_boxed_func(lambda *args: list(results))

    def launches(self) -> list[list[tuple[str, frozenset[str]]]]:
        """Of each graph, the kernels, and the names of what each writes."""
        from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

        return [
            [
                (
                    kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__,
                    frozenset(node.kwargs["tensors_to_clone"]),
                )
                for node in graph.nodes
                if "triton_kernel_wrapper" in str(node.target)
            ]
            for graph in self.graphs
        ]

    def views_of_bool(self) -> list:
        """Which Inductor cannot make: what is seen as another type must not be bool."""
        nodes = [node for graph in self.graphs for node in graph.nodes if node.target == torch.ops.aten.view.dtype]
        return [node for node in nodes if node.args[0].meta["val"].dtype == torch.bool]

    def kernels(self) -> list[Counter]:
        """How often each kernel stands in each graph."""
        return [Counter(name for name, _ in launches) for launches in self.launches()]


def hint(size):
    """A number of the traced call, where the graph has a symbol."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


WRITTEN = {
    "linear_fwd_kernel": {"out_ptr", "kept_ptr"},
    "attention_fwd_kernel": {"out_ptr", "norm_ptr"},
    "linear_bwd_input_kernel": {"out_ptr", "parts_ptr"},
    "modulated_bwd_input_kernel": {"out_ptr", "parts_ptr"},
    "linear_bwd_weight_kernel": {"parts_ptr"},
    "attention_bwd_query_kernel": {"of_q_ptr"},
    "attention_bwd_key_kernel": {"of_k_ptr", "of_v_ptr"},
}
FORWARD = {"linear_fwd_kernel": 6, "attention_fwd_kernel": 2}
BACKWARD = {
    "linear_bwd_input_kernel": 3,
    "modulated_bwd_input_kernel": 3,
    "linear_bwd_weight_kernel": 6,
    "attention_bwd_query_kernel": 2,
    "attention_bwd_key_kernel": 1,  # nobody asks for the gradient of the condition: the compiler leaves it out
}


@pytest.mark.usefixtures("as_on_a_device", "one_thread")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_block_and_its_gradients_are_single_kernels_in_one_graph_each(dynamic):
    from rohydr_fast.ops.denoiser_block import denoiser_block
    from tests.ops.inputs import block_inputs

    given, graphs = block_inputs(batch=3, tokens=5, keys=7), Graphs()
    weights = given.pop("weights")
    weights[0].requires_grad_()

    def call(x, modulation, cond_kv, token_mask, key_mask):
        masks = dict(token_mask=token_mask, key_mask=key_mask)
        return denoiser_block(x, modulation, cond_kv, weights, num_heads=4, backend="triton", **masks).sum()

    run = torch.compile(call, fullgraph=True, backend=graphs.backend, dynamic=dynamic)
    x = given["x"].requires_grad_()
    run(x, *(given[name] for name in ("modulation", "cond_kv", "token_mask", "key_mask"))).backward()
    assert graphs.kernels() == [FORWARD, BACKWARD]
    assert x.grad.shape == x.shape
    for name, written in (launch for launches in graphs.launches() for launch in launches):
        assert written and written <= WRITTEN[name], (name, written)
    assert not graphs.views_of_bool()


@pytest.mark.usefixtures("as_on_a_device", "one_thread")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("wanted", ["q", "qkv"])
def test_attention_and_the_gradients_that_are_wanted_are_single_kernels(wanted, dynamic):
    from rohydr_fast.ops.cross_attention import cross_attention
    from tests.ops.inputs import attention_inputs

    given, graphs = attention_inputs(batch=3, tokens=5, keys=7), Graphs()
    for name in wanted:
        given[name].requires_grad_()

    def call(q, k, v, key_mask):
        return cross_attention(q, k, v, num_heads=4, key_mask=key_mask, backend="triton").sum()

    run = torch.compile(call, fullgraph=True, backend=graphs.backend, dynamic=dynamic)
    run(*(given[name] for name in ("q", "k", "v", "key_mask"))).backward()
    backward = {"attention_bwd_query_kernel": 1} | ({"attention_bwd_key_kernel": 1} if wanted == "qkv" else {})
    assert graphs.kernels() == [{"attention_fwd_kernel": 1}, backward]
    assert all(given[name].grad.shape == given[name].shape for name in wanted)
    for name, written in (launch for launches in graphs.launches() for launch in launches):
        assert written and written <= WRITTEN[name], (name, written)
    assert not graphs.views_of_bool()


@pytest.mark.usefixtures("as_on_a_device", "one_thread")
def test_a_chain_is_one_graph():
    from rohydr_fast.ops.reverse_loop import reverse_loops
    from tests.ops.inputs import LAYERS, make_chain

    chain, graphs = make_chain(steps=2), Graphs()

    def call(x):
        return reverse_loops([chain._replace(x=x)], backend="triton")[0]

    torch.compile(call, fullgraph=True, backend=graphs.backend)(chain.x)
    (kernels,) = graphs.kernels()
    assert kernels == {"linear_fwd_kernel": 2 * (6 * LAYERS + 2), "attention_fwd_kernel": 2 * 2 * LAYERS}
