"""The operations in numpy's long double, for judging float64: written from the equations, not from the torch code."""

import numpy as np
from torch import Tensor

from rohydr_fast.ops import philox
from rohydr_fast.ops.denoiser_block.reference import LAYER_NORM_EPS

Wide = np.longdouble
IS_WIDER = np.finfo(Wide).eps < np.finfo(np.float64).eps / 100


def wide(value: Tensor) -> np.ndarray:
    return value.detach().double().numpy().astype(Wide)


def linear(x: np.ndarray, weight: Tensor, bias: Tensor) -> np.ndarray:
    return x @ wide(weight).T + wide(bias)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, exists: np.ndarray) -> np.ndarray:
    """One sample: q (T, W), k and v (S, W), exists (S,)."""
    k, v = k[exists], v[exists]
    if not len(k):
        return np.zeros_like(q)
    parts = []
    for one_q, one_k, one_v in zip(*(np.split(x, heads, -1) for x in (q, k, v)), strict=True):
        scores = one_q @ one_k.T / np.sqrt(Wide(one_q.shape[-1]))
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weight @ one_v / weight.sum(-1, keepdims=True))
    return np.concatenate(parts, -1)


def modulate(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + Wide(LAYER_NORM_EPS)) * (1 + scale) + shift


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / Wide(np.pi)) * (x + Wide(0.044715) * x**3)))


def block(x: np.ndarray, rows: np.ndarray, kv: np.ndarray, w, heads: int, tokens, keys) -> np.ndarray:
    """One sample: x (T, W), rows (9, W), kv (2, S, W)."""
    q, k, v = np.split(linear(modulate(x, rows[0], rows[1]), w.qkv_weight, w.qkv_bias), 3, -1)
    x = x + rows[2] * linear(attention(q, k, v, heads, tokens), w.self_out_weight, w.self_out_bias)
    q = linear(modulate(x, rows[3], rows[4]), w.q_weight, w.q_bias)
    x = x + rows[5] * linear(attention(q, kv[0], kv[1], heads, keys), w.cross_out_weight, w.cross_out_bias)
    hidden = gelu(linear(modulate(x, rows[6], rows[7]), w.fc1_weight, w.fc1_bias))
    return x + rows[8] * linear(hidden, w.fc2_weight, w.fc2_bias)


def masks_of(arguments: dict, sample: int, tokens: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = ((arguments.get("token_mask"), tokens), (arguments["key_mask"], keys))
    return tuple(np.ones(size, bool) if mask is None else mask[sample].numpy() for mask, size in pairs)


def network(a: dict, sample: int, x: np.ndarray, blocks: np.ndarray, final: np.ndarray) -> np.ndarray:
    """One pass of one sample: x (T, C), blocks (L, 9, W), final (2, W); prediction and v side by side."""
    w, kv = a["weights"], wide(a["cond_kv"][:, :, sample])
    tokens, keys = masks_of(a, sample, len(x), kv.shape[2])
    h = linear(x, w.in_weight, w.in_bias) + wide(a["position"])
    for layer, weights in enumerate(w.blocks):
        h = block(h, blocks[layer], kv[layer], weights, a["num_heads"], tokens, keys)
    return linear(modulate(h, *final), w.out_weight, w.out_bias)


def chain(a: dict, sample: int) -> np.ndarray:
    """All steps of one sample."""
    x, (blocks, final) = wide(a["x"][sample]), (wide(table) for table in a["modulation"])
    for step in range(len(a["coefficients"]), 0, -1):
        prediction, v = np.split(network(a, sample, x, blocks[step - 1], final[step - 1]), 2, -1)
        c_x, c_p, log_beta, log_posterior = wide(a["coefficients"][step - 1])
        x = c_x * x + c_p * prediction
        if step > 1:
            seed, ids, modality = a["noise"]
            key = {"modality": modality, "step": step, "stream": philox.Stream.STEP, "count": x.size}
            z = wide(philox.normal(seed, ids[sample : sample + 1], **key, backend="reference")).reshape(x.shape)
            u = (v + 1) / 2
            x = x + np.exp((u * log_beta + (1 - u) * log_posterior) / 2) * z
    return x


def exact(operation: str, arguments: dict) -> np.ndarray:
    """The result in long double, (B, T, channels)."""
    a, heads, results = arguments, arguments["num_heads"], []
    for sample in range(len(a["q"] if operation == "cross_attention" else a["x"])):
        if operation == "reverse_loop":
            results.append(chain(a, sample))
        elif operation == "denoiser":
            blocks, final = a["modulation"]
            row = slice(None) if final.dim() == 2 else sample
            results.append(network(a, sample, wide(a["x"][sample]), wide(blocks[row]), wide(final[row])))
        elif operation == "cross_attention":
            q, k, v = (wide(a[name][sample]) for name in "qkv")
            results.append(attention(q, k, v, heads, masks_of(a, sample, len(q), len(k))[1]))
        else:
            rows = a["modulation"] if a["modulation"].dim() == 2 else a["modulation"][sample]
            x, kv = wide(a["x"][sample]), wide(a["cond_kv"][:, sample])
            masks = masks_of(a, sample, len(x), kv.shape[1])
            results.append(block(x, wide(rows), kv, a["weights"], heads, *masks))
    return np.stack(results)
