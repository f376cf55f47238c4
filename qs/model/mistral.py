"""Mistral in plain PyTorch: embeddings, positions, a visibility and a cache in, outputs out.

RMSNorm, rotary embedding, grouped-query attention, SwiGLU. Llama is the same; Llama 3 slows
rotation down, Qwen2 has biases and Qwen3 norms on queries and keys: a line each. Who sees whom is
the argument `attend` (see `qs/quietstar/attention.py`), so that one model serves plain text, packed
thoughts and decoding. Parameters may be kept in float32 while the arithmetic runs in
`compute_dtype`: each linear layer casts its weight on use, which costs nothing where `narrow` has
cast it for good.

Parameter names are Mistral's own; queries and keys use the rotate-half convention of Hugging Face
(`qs/model/weights.py` permutes the other one while reading).

Source: Mistral 7B (arXiv:2310.06825), Llama 3 (arXiv:2407.21783), Qwen2 (arXiv:2407.10671), Qwen3
(arXiv:2505.09388).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qs.model import kernels, products
from qs.model.config import ModelConfig
from qs.model.rope_scaling import RopeScaling

Cache = tuple[Tensor, ...]  # of one layer
Angles = tuple[Tensor, Tensor]  # cos and sin, (B, S, 1, d)
Attend = Callable[[Tensor, Tensor, Tensor, Cache | None], Tensor]
"""(q (B, S, H, d), k (B, S, G, d), v (B, S, G, d), one layer's cache) -> (B, S, H, d)."""


def at_least_float32(x: Tensor) -> Tensor:
    """float32, or float64 where that is what comes in: norms, angles, losses are never in bf16."""
    return x if x.dtype == torch.float64 else x.float()


class Linear(nn.Linear):
    """Linear layer whose parameters are cast to the dtype of its input on use."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return products.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if kernels.serves(x):
            return kernels.normalize(x, self.weight.to(x.dtype), self.eps)
        wide = at_least_float32(x)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * wide.to(x.dtype)


def rotary_angles(
    positions: Tensor,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    scaling: RopeScaling | None = None,
) -> Tensor:
    """(B, S, head_dim / 2) angles in radians, float32 or wider (RoFormer, arXiv:2104.09864)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim
    frequency = 1.0 / theta**exponent
    if scaling is not None:
        turns = frequency * (scaling.original_positions / (2 * math.pi))
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        frequency = frequency * (kept + (1 - kept) / scaling.factor)
    return positions[..., None].to(wide) * frequency


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of x (B, S, heads, d) by angles of cos and sin (B, S, 1, d)."""
    if kernels.serves(x):
        return kernels.rotate(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.wq = Linear(config.dim, config.heads * config.head_dim, config.qkv_bias)
        self.wk = Linear(config.dim, config.kv_heads * config.head_dim, config.qkv_bias)
        self.wv = Linear(config.dim, config.kv_heads * config.head_dim, config.qkv_bias)
        self.wo = Linear(config.heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: Angles, attend: Attend, cache: Cache | None) -> Tensor:
        heads = (-1, self.head_dim)
        q = rotate(self.q_norm(self.wq(x).unflatten(-1, heads)), *angles)  # (B, S, H, d)
        k = rotate(self.k_norm(self.wk(x).unflatten(-1, heads)), *angles)  # (B, S, G, d)
        v = self.wv(x).unflatten(-1, heads)
        return self.wo(attend(q, k, v, cache).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.w1(x), self.w3(x)
        return self.w2(kernels.gate(gate, x) if kernels.serves(x) else F.silu(gate) * x)


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, angles: Angles, attend: Attend, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, attend, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class Mistral(nn.Module):
    """The language model.

    Args:
        config: its shape.
        compute_dtype: dtype of the arithmetic; parameters keep their own.
        recompute: recompute each layer in the backward pass instead of storing it.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute_dtype: torch.dtype = torch.float32,
        recompute: bool = False,
    ):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.recompute = recompute
        self.compiled = False  # whether layers are compiled: then nothing is decided for eager ones
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied:
            self.output = Linear(config.dim, config.vocab_size, bias=False)

    @property
    def head(self) -> Tensor:
        """(V, D) weight of the language-model head, tied or not."""
        return self.tok_embeddings.weight if self.config.tied else self.output.weight

    def narrow(self, gradients: torch.dtype = torch.float32) -> None:
        """Keep the matrices of the layers in the compute dtype, and their gradients in another."""
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(self.compute_dtype)
                parameter.grad_dtype = gradients

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (...) -> embeddings (..., D) in the compute dtype."""
        return self.tok_embeddings(tokens).to(self.compute_dtype)

    def eager(self, x: Tensor) -> Tensor | None:
        """An input, if the layers that take it are not compiled."""
        return None if self.compiled else x

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs (..., D) -> logits (..., V), float32 or wider."""
        wide = at_least_float32(outputs)
        return products.product(wide, self.head.to(wide.dtype))

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """Cosine and sine (B, S, 1, d) of the rotary angles of (B, S) positions."""
        c = self.config
        half = rotary_angles(positions, c.head_dim, c.rope_theta, dtype, c.rope_scaling)
        angles = torch.cat([half, half], -1)[:, :, None]  # (B, S, 1, d)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attend: Attend,
        cache: Sequence[Cache] | None = None,
        angles: Angles | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: (B, S, D) embeddings of the slots.
            positions: (B, S) rotary position of each slot.
            attend: the visibility (see `qs/quietstar/attention.py`).
            cache: one entry for each layer, handed to `attend`; it may write into it.
            angles: of the positions, where `self.angles` gave them already.

        Returns:
            (B, S, D) outputs after the final norm.
        """
        if angles is None:
            angles = self.angles(positions, x.dtype)
        for index, layer in enumerate(self.layers):
            entry = None if cache is None else cache[index]
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(
                    layer, x, angles, attend, entry, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = layer(x, angles, attend, entry)
        return self.norm(x)
