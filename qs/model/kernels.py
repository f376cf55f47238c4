"""Eager forms of normalisation, rotation and gating for the CPU, with their own backward passes.

They equal what `mistral` writes out, in value and gradient, and make few temporaries: on a CPU
these layers are bound by memory. On CUDA and under `torch.compile` the forms written out are used,
which the compiler fuses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def serves(x: Tensor) -> bool:
    """Whether these forms are the faster ones for an input."""
    wide = x.dtype in (torch.float32, torch.float64)
    return wide and x.is_cpu and not torch.compiler.is_compiling()


def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (arXiv:1910.07467)."""
    if torch.is_grad_enabled():
        return Normalize.apply(x, weight, eps)
    return (x * _scale(x, eps)).mul_(weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (i, i + d/2) of x (..., d) turned by angles of cos and sin (..., d)."""
    return Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turned(x, cos, sin, -1)


def gate(switch: Tensor, x: Tensor) -> Tensor:
    """silu(switch) * x (arXiv:2002.05202)."""
    return Gate.apply(switch, x) if torch.is_grad_enabled() else F.silu(switch).mul_(x)


class Normalize(torch.autograd.Function):
    """`normalize` with gradient."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, scale = ctx.saved_tensors
        D = x.shape[-1]
        rows, gradient, scale = x.reshape(-1, D), gradient.reshape(-1, D), scale.flatten()
        product = gradient * rows
        dweight = scale @ product
        # what the norm itself passes back: -x scale^3 mean(gradient weight x)
        through = (product @ weight).mul_(scale.pow(3)).div_(-D)
        dx = (gradient * weight).mul_(scale[:, None]).addcmul_(rows, through[:, None])
        return dx.view(x.shape), dweight, None


def _scale(x: Tensor, eps: float) -> Tensor:
    """(..., 1) 1 / rms."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class Rotate(torch.autograd.Function):
    """`rotate` with gradient."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, -1)

    @staticmethod
    def backward(ctx, gradient):
        return _turned(gradient, *ctx.saved_tensors, 1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    turned = x * cos
    low, high = x.chunk(2, -1)
    turned_low, turned_high = turned.chunk(2, -1)
    sin = sin[..., : low.shape[-1]]  # both halves turn by the same angles
    turned_low.addcmul_(high, sin, value=sign)
    turned_high.addcmul_(low, sin, value=-sign)
    return turned


class Gate(torch.autograd.Function):
    """`gate` with gradient."""

    @staticmethod
    def forward(ctx, switch, x):
        ctx.save_for_backward(switch, x)
        return F.silu(switch).mul_(x)

    @staticmethod
    def backward(ctx, gradient):
        switch, x = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * x, switch), F.silu(switch).mul_(gradient)
