"""The reverse loop for an exported graph: the noise is given, and the network stands in it once, not K times.

The specification is `reference.py`.
"""

import torch
from torch import Tensor

from ..denoiser.reference import Modulation, denoiser
from ..scan import scan
from .reference import Chain, advance, has_history

State = tuple[Tensor, ...]


def reverse_loop(chain: Chain, noise: Tensor | None) -> Tensor:
    """All K steps of Eq. 2 from `chain.x`, whose key of the noise is not used; one scan where a graph is exported.

    Args:
        noise: (K - 1, B, T, C) z_i in the order of use, i = K..2; None for a sampler that adds none.

    Returns:
        (B, T, C) x_0. Rows that `chain.token_mask` leaves out hold numbers without meaning.
    """
    history = has_history(chain.coefficients)
    position, weights, heads = chain.position, chain.weights, chain.num_heads
    masks = {"token_mask": chain.token_mask, "key_mask": chain.key_mask}
    cond_kv = [kv.clone() for kv in chain.cond_kv]  # what a scan reads must not share memory

    def step(state: State, row: State) -> State:
        x, h = state if history else (*state, None)
        blocks, final, coefficients, *z = row
        prediction, v = denoiser(x, position, Modulation(blocks, final), cond_kv, weights, num_heads=heads, **masks)
        state = advance(x, h, prediction, v, coefficients, z[0] if z else None)
        return state if history else state[:1]

    tables = [*chain.modulation, chain.coefficients]
    if noise is not None:
        # One body serves all steps: the last, which draws nothing, adds exp(0) times 0, whatever its v.
        silent = chain.coefficients[:1] * (torch.arange(chain.coefficients.shape[1]) // 2 != 1)
        tables[-1] = torch.cat([silent, chain.coefficients[1:]])
    rows = [table.flip(0) for table in tables]  # step K stands last in them
    if noise is not None:
        rows.append(torch.cat([noise, torch.zeros_like(chain.x)[None]]))
    state = (chain.x, torch.zeros_like(chain.x)) if history else (chain.x,)
    if torch.compiler.is_exporting():
        return scan(lambda state, row: (step(state, row), ()), state, tuple(rows))[0][0]
    for row in zip(*rows, strict=True):
        state = step(state, row)
    return state[0]
