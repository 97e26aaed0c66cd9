"""Checks of shape, dtype and device that every backend of an op relies on; each failure is one sentence."""

from torch import Tensor

from ..errors import UsageError


def require(condition: bool, op: str, argument: str, rule: str, got: object, advice: str) -> None:
    """Raise `UsageError` in the house form unless `condition` holds."""
    if not condition:
        raise UsageError(f"{op}: {argument} must {rule}, got {got}. {advice}")


def check_heads(op: str, width: int, num_heads: int) -> None:
    """The width must divide into the heads."""
    require(
        num_heads >= 1 and width % num_heads == 0,
        op,
        "num_heads",
        f"divide the width {width}",
        num_heads,
        "Choose a width that is a multiple of the number of heads.",
    )


def check_like(op: str, argument: str, tensor: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """`tensor` must have `shape` (None is any size), and the dtype and device of `like`."""
    fits = tensor.dim() == len(shape) and all(b is None or a == b for a, b in zip(tensor.shape, shape, strict=True))
    wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
    require(fits, op, argument, f"have shape {wanted}", tuple(tensor.shape), "See the op's docstring for the letters.")
    require(
        tensor.dtype == like.dtype and tensor.device == like.device,
        op,
        argument,
        f"be {like.dtype} on {like.device}",
        f"{tensor.dtype} on {tensor.device}",
        "Convert it with .to().",
    )


def check_mask(op: str, argument: str, mask: Tensor | None, shape: tuple[int, int], like: Tensor) -> None:
    """A mask is None or a bool tensor of `shape` on the device of `like`."""
    if mask is None:
        return
    require(
        mask.dtype.is_floating_point is False and str(mask.dtype) == "torch.bool" and tuple(mask.shape) == shape,
        op,
        argument,
        f"be bool with shape {shape}",
        f"{mask.dtype} with shape {tuple(mask.shape)}",
        "True marks what exists.",
    )
    require(mask.device == like.device, op, argument, f"be on {like.device}", mask.device, "Move it with .to().")


def check_attention(op: str, q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_mask: Tensor | None) -> None:
    """Queries (B, T, W), keys and values (B, S, W), S >= 1, mask (B, S)."""
    require(
        q.dim() == 3 and q.is_floating_point(), op, "q", "be (B, T, W) of a float dtype", _what(q), "Add a dimension."
    )
    batch, _, width = q.shape
    check_heads(op, width, num_heads)
    check_like(op, "k", k, (batch, None, width), q)
    check_like(op, "v", v, (batch, k.shape[1], width), q)
    _check_keys(op, k.shape[1])
    check_mask(op, "key_mask", key_mask, (batch, k.shape[1]), q)


def check_block(
    op: str, x: Tensor, cond_kv: Tensor, num_heads: int, token_mask: Tensor | None, key_mask: Tensor | None
) -> None:
    """Tokens (B, T, W), condition (2, B, S, W), S >= 1, masks (B, T) and (B, S)."""
    require(
        x.dim() == 3 and x.is_floating_point(), op, "x", "be (B, T, W) of a float dtype", _what(x), "Add a dimension."
    )
    batch, tokens, width = x.shape
    check_heads(op, width, num_heads)
    check_like(op, "cond_kv", cond_kv, (2, batch, None, width), x)
    _check_keys(op, cond_kv.shape[2])
    check_mask(op, "token_mask", token_mask, (batch, tokens), x)
    check_mask(op, "key_mask", key_mask, (batch, cond_kv.shape[2]), x)


def check_loop(op, x, position, modulation, cond_kv, coefficients, num_heads, token_mask, key_mask) -> None:
    """x (B, T, C), cond_kv (L, 2, B, S, W), position (T, W), tables with the same number K >= 1 of rows."""
    require(
        x.dim() == 3 and x.is_floating_point(), op, "x", "be (B, T, C) of a float dtype", _what(x), "Add a dimension."
    )
    require(cond_kv.dim() == 5, op, "cond_kv", "be (L, 2, B, S, W)", _what(cond_kv), "Stack the blocks' K and V.")
    batch, tokens, _ = x.shape
    layers, width, steps = cond_kv.shape[0], cond_kv.shape[-1], len(coefficients)
    require(steps >= 1, op, "coefficients", "have at least one step", steps, "Use Schedule.table(K) with K >= 1.")
    check_heads(op, width, num_heads)
    check_like(op, "cond_kv", cond_kv, (layers, 2, batch, None, width), x)
    _check_keys(op, cond_kv.shape[3])
    check_like(op, "position", position, (tokens, width), x)
    check_like(op, "modulation.blocks", modulation.blocks, (steps, layers, 9, width), x)
    check_like(op, "modulation.final", modulation.final, (steps, 2, width), x)
    require(
        tuple(coefficients.shape) == (steps, 4) and bool(coefficients.isfinite().all()),
        op,
        "coefficients",
        f"be ({steps}, 4) and finite",
        _what(coefficients),
        "Use Schedule.table.",
    )
    check_mask(op, "token_mask", token_mask, (batch, tokens), x)
    check_mask(op, "key_mask", key_mask, (batch, cond_kv.shape[3]), x)


def _check_keys(op: str, keys: int) -> None:
    require(keys >= 1, op, "the condition", "have at least one key", keys, "Give it at least one available modality.")


def _what(tensor: Tensor) -> str:
    return f"{tensor.dtype} with shape {tuple(tensor.shape)}"
