"""The way back through the operations of `library`: operations of their own, and the formulas that call them.

A formula saves what it reads with `save_for_backward`: an argument that is changed in place before it runs is torch's
error. The native core computes all gradients of a call, whichever are wanted; they are differentiable once.
"""

from collections.abc import Callable, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from .. import _native
from ..errors import BackendUnavailable
from .chain_lists import SCHEMA, TENSOR_FIELDS, ChainLists, by_chain
from .dispatch import wanting
from .memory import empty
from .packing import CACHE, as_array, as_optional_array, native_threads
from .support import NO_NATIVE_GRADIENT

SCHEMAS = {
    "denoiser_block_backward": (
        "(Tensor out_gradient, Tensor x, Tensor modulation, Tensor cond_kv, Tensor[] weights, int num_heads, "
        "Tensor? token_mask, Tensor? key_mask) -> (Tensor, Tensor, Tensor, Tensor[])"
    ),
    "denoiser_backward": (
        "(Tensor out_gradient, Tensor x, Tensor position, Tensor modulation_blocks, Tensor modulation_final, "
        "Tensor cond_kv, Tensor[] weights, int num_heads, Tensor? token_mask, Tensor? key_mask, Tensor? tape=None) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor[])"
    ),
    "reverse_loops_backward": (
        f"(Tensor?[] out_gradient, Tensor[] states, Tensor[] tapes, {SCHEMA}) "
        "-> (Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])"
    ),
}
"""They return the gradients of x, of the modulation, of cond_kv and of the weights."""


def _fake(x: Tensor, like: Tensor) -> Tensor:
    """Uninitialised and contiguous, with the shape of `like` and the dtype of `x`; of what kind, `x` says."""
    return x.new_empty(like.shape)


def _new(x: Tensor, like: Tensor) -> Tensor:
    """The same, in memory of the CPU."""
    return empty(like.shape, x.dtype)


class _Network:
    """The way back through the network once, or through one block of it.

    Args:
        op: the operation forward.
        packed: the kind of its weights for `PackingCache.get`.
        tensors: names of its tensors before the weights; all but the position have a gradient.
        options: those that the way back takes after the number of heads: masks, and a tape.
    """

    def __init__(self, op: str, packed: str, tensors: tuple[str, ...], options: int = 2):
        self.op, self.packed, self.tensors, self.options = op, packed, tensors, options
        self.wanted = [i for i, name in enumerate(tensors) if name != "position"]

    def setup_context(self, ctx, inputs, output) -> None:
        self._save(ctx, (*inputs, *[None] * (self.options - 2)))

    def setup_context_with_tape(self, ctx, inputs, output) -> None:
        _, tape = output
        ctx.mark_non_differentiable(tape)
        ctx.set_materialize_grads(False)  # nobody needs zeros in the size of the tape
        self._save(ctx, (*inputs[:-1], tape if tape.numel() else None))

    def _save(self, ctx, inputs: tuple) -> None:
        count = len(self.tensors)
        tensors, (weights, ctx.num_heads, *options) = inputs[:count], inputs[count:]
        refuse(self.op, tensors[0], weights, **dict(zip(self.tensors, tensors, strict=True)))
        ctx.save_for_backward(*tensors, *options, *weights)

    def formula(self, ctx, out_gradient: Tensor | None, *_) -> tuple:
        if out_gradient is None:
            return for_inputs(ctx, {})
        count, saved = len(self.tensors), ctx.saved_tensors
        last = count + self.options
        *gradients, of_weights = getattr(torch.ops.rohydr_fast, f"{self.op}_backward")(
            out_gradient, *saved[:count], list(saved[last:]), ctx.num_heads, *saved[count:last]
        )
        return for_inputs(ctx, {**dict(zip(self.wanted, gradients, strict=True)), count: of_weights})

    def run(self, out_gradient: Tensor, *inputs) -> tuple:
        """The CPU implementation."""
        *gradients, of_weights = self.allocate(out_gradient, *inputs, new=_new)
        count = len(self.tensors)
        tensors, (weights, num_heads, token_mask, key_mask, *tape) = inputs[:count], inputs[count:]
        if out_gradient.numel() == 0:
            return *[gradient.zero_() for gradient in gradients], [gradient.zero_() for gradient in of_weights]
        getattr(_native.load(), f"{self.op}_backward")(
            CACHE.get(self.packed, weights, num_heads, out_gradient.dtype == torch.float64),
            *[as_array(tensor) for tensor in tensors],
            as_optional_array(token_mask),
            as_optional_array(key_mask),
            as_array(out_gradient),
            *[gradient.numpy() for gradient in gradients],
            tuple([gradient.numpy() for gradient in of_weights]),
            native_threads(),
            **({"tape": as_optional_array(tape[0])} if tape else {}),
        )
        return *gradients, of_weights

    def allocate(self, out_gradient: Tensor, *inputs, new: Callable = _fake) -> tuple:
        """Gradients without content; the fake implementation."""
        weights = inputs[len(self.tensors)]
        return *[new(out_gradient, inputs[i]) for i in self.wanted], [new(out_gradient, w) for w in weights]


def _loops_setup_context(ctx, inputs, output) -> None:
    x, *lists, grad_steps, _ = inputs
    chains = ChainLists(*lists)
    for i, weights in enumerate(by_chain(chains.weights, chains.weight_counts)):
        tables = dict(position=chains.position[i], coefficients=chains.coefficients[i])
        refuse("reverse_loops_with_states", x[i], weights, **tables)
    outs, states, tapes = output
    without = [out for out, steps in zip(outs, grad_steps, strict=True) if steps == 0]
    ctx.mark_non_differentiable(*without, *states, *tapes)
    ctx.set_materialize_grads(False)  # an x_0 that nobody used needs no way back
    tensors = [states, tapes, *lists[:TENSOR_FIELDS]]
    ctx.counts, ctx.numbers = [len(part) for part in tensors], lists[TENSOR_FIELDS:]
    ctx.save_for_backward(*chain(*tensors))


def _loops_formula(ctx, out_gradients: Sequence[Tensor | None], *_) -> tuple:
    saved = iter(ctx.saved_tensors)
    states, tapes, *lists = [list(islice(saved, count)) for count in ctx.counts]
    chains = ChainLists(*lists, *ctx.numbers)
    found = torch.ops.rohydr_fast.reverse_loops_backward(list(out_gradients), states, tapes, *chains)
    used = [gradient is not None for gradient in out_gradients]
    gradients = [[g if used[i] else None for i, g in enumerate(part)] for part in found[:4]]
    of_weights = by_chain(found[4], chains.weight_counts)
    gradients.append([g if used[i] else None for i, part in enumerate(of_weights) for g in part])
    return for_inputs(ctx, dict(zip(_LOOP_PLACES, gradients, strict=True)))


def _loops_run(out_gradient, states, tapes, *lists) -> tuple:
    """The CPU implementation."""
    found = _loops_allocate(out_gradient, states, tapes, *lists, new=_new)
    chains, calls = ChainLists(*lists), []
    weights, of_weights = (by_chain(tensors, chains.weight_counts) for tensors in (chains.weights, found[4]))
    for i, (gradient, state) in enumerate(zip(out_gradient, states, strict=True)):
        of_x, of_blocks, of_final, of_cond = of_inputs = [part[i] for part in found[:4]]
        if gradient is None or state.numel() == 0:
            for tensor in (*of_inputs, *of_weights[i]):
                tensor.zero_()
            continue
        steps = len(state)  # the core is given a chain of so many: earlier steps have no gradient
        of_blocks[steps:], of_final[steps:] = 0, 0
        calls.append(
            (
                *chains.native(i, state, weights[i], steps),
                as_array(gradient),
                of_x.numpy(),
                of_blocks[:steps].numpy(),
                of_final[:steps].numpy(),
                of_cond.numpy(),
                tuple([tensor.numpy() for tensor in of_weights[i]]),
                as_array(tapes[i]) if tapes[i].numel() else None,
            )
        )
    if calls:
        _native.load().reverse_loop_backward(calls, native_threads())
    for i, state in enumerate(states):
        if len(state) < len(chains.coefficients[i]):
            found[0][i].zero_()  # it is not of x_K
    return found


def _loops_allocate(out_gradient, states, tapes, *lists, new: Callable = _fake) -> tuple:
    """Gradients without content; the fake implementation."""
    chains = ChainLists(*lists)
    like = zip(chains.cond_kv, states, strict=True)  # states can be wider
    of_x = [cond_kv.new_empty(state.shape[1:]) for cond_kv, state in like]
    inputs = (chains.modulation_blocks, chains.modulation_final, chains.cond_kv)
    of_inputs = [[new(x, tensor) for x, tensor in zip(of_x, part, strict=True)] for part in inputs]
    weights = by_chain(chains.weights, chains.weight_counts)
    return of_x, *of_inputs, [new(x, tensor) for x, part in zip(of_x, weights, strict=True) for tensor in part]


def refuse(op: str, x: Tensor, weights: Sequence[Tensor], /, **tensors: Tensor) -> None:
    """Inputs whose gradient nobody computes must not ask for one."""
    for name in wanting(x, weights, **tensors):
        if name in NO_NATIVE_GRADIENT:
            raise BackendUnavailable(
                f"torch.ops.rohydr_fast.{op}: {name} must not require a gradient, got one that does. Call the function "
                "of rohydr_fast.ops, which takes the reference then, or detach it."
            )


def for_inputs(ctx, gradients: dict[int, Tensor | list[Tensor | None]]) -> tuple:
    """What a formula returns: a gradient for each input of the operation that wants one, in torch's structure.

    Args:
        gradients: by the place of the input; a list for a list of tensors.
    """
    result = [[None] * len(wanted) if isinstance(wanted, list) else None for wanted in ctx.needs_input_grad]
    for place, gradient in gradients.items():
        wanted = ctx.needs_input_grad[place]
        if isinstance(wanted, list):
            result[place] = [g if want else None for g, want in zip(gradient, wanted, strict=True)]
        elif wanted:
            result[place] = gradient
    return tuple(result)


def once(op: str, backend: str = "cpp") -> Callable:
    """The formula of an operation of the way back."""

    def formula(ctx, *gradients):
        raise BackendUnavailable(
            f"{op.removesuffix('_backward')}: its gradient on backend {backend!r} must not be differentiated, got a "
            "second way back: it is once differentiable. Use backend='reference' inside of "
            "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)."
        )

    return formula


_BLOCK = _Network("denoiser_block", "block", ("x", "modulation", "cond_kv"))
_DENOISER = _Network("denoiser", "denoiser", ("x", "position", "modulation_blocks", "modulation_final", "cond_kv"), 3)
_LOOP_PLACES = [
    ("x", *ChainLists._fields).index(name)
    for name in ("x", "modulation_blocks", "modulation_final", "cond_kv", "weights")
]

CPU = {
    "denoiser_block_backward": _BLOCK.run,
    "denoiser_backward": _DENOISER.run,
    "reverse_loops_backward": _loops_run,
}
FAKE = {
    "denoiser_block_backward": _BLOCK.allocate,
    "denoiser_backward": _DENOISER.allocate,
    "reverse_loops_backward": _loops_allocate,
}
FORMULAS = {
    "denoiser_block": (_BLOCK.formula, _BLOCK.setup_context),
    "denoiser": (_DENOISER.formula, _DENOISER.setup_context),
    "denoiser_with_tape": (_DENOISER.formula, _DENOISER.setup_context_with_tape),
    "reverse_loops_with_states": (_loops_formula, _loops_setup_context),
    **{op: (once(op), None) for op in SCHEMAS},
}
"""op -> what `torch.library.register_autograd` takes: the formula, and what it saves of a call."""
