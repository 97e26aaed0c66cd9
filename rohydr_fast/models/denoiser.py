"""The conditional transformer that predicts the noise and the variance of Eq. 2."""

import torch
from torch import Tensor, nn

from ..ops.conditioning import Conditioning, conditioning
from ..ops.denoiser import DenoiserWeights, denoiser
from ..ops.denoiser_block import BlockWeights
from .sequences import positions, sinusoidal

TIME_FEATURES = 256


class DenoiserBlock(nn.Module):
    """Parameters of one block; the computation is `ops.denoiser_block`."""

    def __init__(self, width: int, mlp_ratio: float):
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.modulation = nn.Linear(width, 9 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)  # W_K, W_V of the condition
        self.cross_out = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        # adaLN-Zero: every gate starts at 0, so the block starts as the identity.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def weights(self) -> BlockWeights:
        """The parameters in the order of use."""
        members = self._modules
        layers = [members[name] for name in ("qkv", "self_out", "q", "cross_out", "fc1", "fc2")]
        return BlockWeights._make(_parameters(layers))


class Denoiser(nn.Module):
    """x_t (B, T, C), the step and the condition to a prediction (B, T, C) and v (B, T, C).

    Args:
        channels: C.
        width: W, a multiple of `num_heads`.
        num_blocks: L.
        num_heads: H.
        mlp_ratio: hidden width of the MLP over W.
    """

    def __init__(self, channels: int, width: int, num_blocks: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.channels, self.width, self.num_heads = channels, width, num_heads
        self.embed = nn.Linear(channels, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DenoiserBlock(width, mlp_ratio) for _ in range(num_blocks))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.final_modulation.bias)
        # Small, but not zero as in DiT: with zeros here too, no block would see a gradient before the third step.
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def weights(self) -> DenoiserWeights:
        """What a step reads."""
        in_weight, in_bias, out_weight, out_bias = _parameters([self.embed, self.out])
        blocks = tuple([block.weights() for block in self.blocks])
        return DenoiserWeights(in_weight, in_bias, blocks, out_weight, out_bias)

    def conditioning(self, timesteps: Tensor, encoded: Tensor) -> Conditioning:
        """Shift, scale and gate at `timesteps` (K,), values 1..N, and K and V of `encoded` (B, S, W); once for a chain.

        In the wider dtype of `encoded` and the parameters, computed in float32 if that is a half.
        """
        layers = self.conditioning_layers()
        wider = torch.promote_types(encoded.dtype, layers[0][0].dtype)
        dtype = torch.promote_types(wider, torch.float32)
        if layers[0][0].dtype != dtype:
            layers = [_converted(tensors, dtype) for tensors in layers]
        encoded = encoded.to(dtype)
        found = conditioning(self.time_features(timesteps, encoded), encoded, *layers)
        return found if wider == dtype else found.to(wider)

    def conditioning_layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the 3 + 2 L layers of `ops.conditioning`."""
        members = [block._modules for block in self.blocks]
        tables, condition = [block["modulation"] for block in members], [block["kv"] for block in members]
        layers = [self.time[0], self.time[2], *tables, self.final_modulation, *condition]
        parameters = _parameters(layers)
        return parameters[::2], parameters[1::2]

    def time_features(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """What the time embedding reads of `timesteps` (K,), values 1..N: (K, 256), float32 where `like` is a half."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return sinusoidal(timesteps, TIME_FEATURES, device=like.device).to(dtype)

    def position(self, tokens: int) -> Tensor:
        """Positions (T, W) added to the embedded tokens."""
        return positions(tokens, self.width, self.out.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        encoded: Tensor,
        token_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The prediction and v at x_t for samples at their own steps `t` (B,): the call of Eq. 3.

        It is computed in the dtype of the parameters or, if that is wider, of `x`, also under `torch.autocast`.
        """
        modulation, cond_kv = self.conditioning(t, encoded).to(x.dtype)
        return denoiser(
            x,
            self.position(x.shape[1]),
            modulation,
            cond_kv,
            self.weights(),
            num_heads=self.num_heads,
            token_mask=token_mask,
            key_mask=key_mask,
        )


def _parameters(layers: list[nn.Module]) -> list[Tensor]:
    """Weight and bias of each linear layer. A chain asks for a hundred, and `nn.Module` looks in four places each."""
    if not torch.compiler.is_compiling():
        own = [layer._parameters for layer in layers]
        try:
            return [parameters[name] for parameters in own for name in ("weight", "bias")]
        except KeyError:  # a parametrized layer has none
            pass
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]


def _converted(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`tensors` in another dtype, by one conversion for all: on a device each takes a launch."""
    flat = torch._utils._flatten_dense_tensors(tensors).to(dtype)
    return list(torch._utils._unflatten_dense_tensors(flat, tensors))
