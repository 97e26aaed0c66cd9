"""The registered operations `torch.ops.rohydr_fast.*`, each with small arguments."""

import torch

from rohydr_fast import _native
from rohydr_fast.ops.diffusion_loss import LossTerm
from rohydr_fast.ops.diffusion_loss.operation import TermLists
from rohydr_fast.ops.library import signed
from rohydr_fast.ops.packing import as_array, as_optional_array
from rohydr_fast.ops.reverse_loop import Chain
from tests.ops.inputs import (
    BATCH,
    CHANNELS,
    HEADS,
    TOKENS,
    attention_inputs,
    block_inputs,
    denoiser_inputs,
    loss_inputs,
    make_chain,
    operation_arguments,
)

OPS = torch.ops.rohydr_fast
OTHER = dict(masked=False, keys=4, rows=False, loss="kl", seed=7)
"""What the second of two terms of Eq. 3 has."""


def attention_operation(**options) -> tuple:
    return OPS.cross_attention.default, tuple(attention_inputs(**options).values())


def block_operation(**options) -> tuple:
    given = block_inputs(rows=True, **options)
    args = (given["x"], given["modulation"], given["cond_kv"], list(given["weights"]), given["num_heads"])
    return OPS.denoiser_block.default, (*args, given.get("token_mask"), given.get("key_mask"))


def denoiser_operation(**options) -> tuple:
    given = denoiser_inputs(rows=True, **options)
    args = (given["x"], given["position"], *given["modulation"], given["cond_kv"], given["weights"].tensors())
    return OPS.denoiser.default, (*args, given["num_heads"], given.get("token_mask"), given.get("key_mask"))


def denoiser_with_tape_operation(**options) -> tuple:
    """Without a tape, see `states_operation`."""
    return OPS.denoiser_with_tape.default, (*denoiser_operation(**options)[1], 0)


def loops_operation(**options) -> tuple:
    return OPS.reverse_loops.default, operation_arguments(*_chains(**options))


def states_operation(**options) -> tuple:
    """Only x_t is kept, of the last three steps and of both: a tape has gaps between its numbers that nobody writes."""
    return OPS.reverse_loops_with_states.default, (*operation_arguments(*_chains(**options)), [3, 2], [0, 0])


def loops_way_back(**options) -> tuple:
    """One chain kept x_t of its last three steps, one everything, and of the third nobody used the result."""
    chains = _chains(**options)
    lists = operation_arguments(*chains, chains[0])
    outs, states, tapes = OPS.reverse_loops_with_states(*lists, [3, 2, 1], [0, tape_size(chains[1]), 0])
    gradients = [torch.randn_like(outs[0]), torch.randn_like(outs[1]), None]
    return OPS.reverse_loops_backward.default, (gradients, states, tapes, *lists[1:])


def losses_operation(gradients=True, masked=True, **options) -> tuple:
    """Two terms that differ in their sizes and their loss."""
    terms = [LossTerm(**loss_inputs(masked=masked, **options)), LossTerm(**loss_inputs(**{**options, **OTHER}))]
    tensors = [term.parameters() for term in terms]
    lists = [[getattr(term, name) for term in terms] for name in ("x_0", "rows", "position", "features", "encoded")]
    lists += [[term.noise.sample_ids for term in terms], [term.token_mask for term in terms]]
    lists += [[term.key_mask for term in terms], [tensor for part in tensors for tensor in part]]
    numbers = [[len(part) for part in tensors], [HEADS, HEADS], [signed(term.noise.seed) for term in terms], [2, 2]]
    return OPS.diffusion_losses.default, (*lists, *numbers, [term.loss for term in terms], gradients)


def losses_way_back(**options) -> tuple:
    operation, args = losses_operation(**options)
    values, gradients = operation(*args)
    lists = TermLists(*args)
    inputs = [tensor for tensors in lists.inputs() for tensor in tensors]
    return OPS.diffusion_losses_backward.default, (torch.randn_like(values), gradients, lists.sizes(), inputs)


def normal_operation(masked=True, batch=BATCH, tokens=TOKENS, dtype=None, **options) -> tuple:
    return OPS.philox_normal.default, (torch.arange(batch), -5, 2, 3, 1, tokens * CHANNELS)


def way_back(operation):
    """From an operation to that of its gradients, given a random one of the result."""

    def make(**options) -> tuple:
        forward, args = operation(**options)
        name = forward.name().removeprefix("rohydr_fast::")
        return getattr(OPS, f"{name}_backward").default, (torch.randn_like(forward(*args)), *args)

    return make


def _chains(masked=True, **options) -> tuple[Chain, Chain]:
    return make_chain(masked=masked, **options), make_chain(masked=False, seed=1, steps=2, **options)


def tape_size(chain: Chain) -> int:
    """Elements of what the layers compute in those of its steps that have a gradient."""
    if not chain.x.numel():
        return 0
    core, double = _native.load(), chain.x.dtype == torch.float64
    packed = core.pack_denoiser([as_array(tensor) for tensor in chain.weights.tensors()], chain.num_heads, double)
    steps = len(chain.coefficients) if chain.grad_steps is None else chain.grad_steps
    return core.reverse_loop_tape_size(packed, *chain.x.shape[:2], as_optional_array(chain.token_mask), steps)


DIFFERENTIABLE = {
    "denoiser_block": block_operation,
    "denoiser": denoiser_operation,
    "denoiser_with_tape": denoiser_with_tape_operation,
    "reverse_loops_with_states": states_operation,
}
OPERATIONS = {
    "cross_attention": attention_operation,
    **DIFFERENTIABLE,
    "reverse_loops": loops_operation,
    "denoiser_block_backward": way_back(block_operation),
    "denoiser_backward": way_back(denoiser_operation),
    "reverse_loops_backward": loops_way_back,
    "diffusion_losses": losses_operation,
    "diffusion_losses_backward": losses_way_back,
    "philox_normal": normal_operation,
}
