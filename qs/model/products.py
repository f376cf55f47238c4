"""Matrix products: on a CPU at the machine's rate in float32, logits on CUDA by bfloat16 halves.

PyTorch's default library for float32 products reaches half of what AMD processors with AVX-512 can
do; oneDNN, which is in PyTorch as well, reaches all of it. It generates code for every shape and
keeps it (0.6 MB each), so rows go to it in blocks of few sizes, and what is left to the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qs.model import kernels

BLOCKS = (512, 64)  # rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) @ weight (M, K) transposed + bias (M,)."""
    if x.numel() < BLOCKS[-1] * x.shape[-1] or not kernels.serves(x) or not by_blocks(x.dtype):
        return F.linear(x, weight, bias)
    out = Product.apply(x, weight) if torch.is_grad_enabled() else _forward(x, weight)
    return out if bias is None else out + bias


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) @ weight (V, D) transposed.

    On CUDA, where float32 products need not be of the "highest" precision, `by_halves`.
    """
    wide = x.dtype != torch.float32 or x.device.type != "cuda"
    if wide or torch.get_float32_matmul_precision() == "highest":
        return linear(x, weight)
    return by_halves(x, weight)


def by_halves(x: Tensor, weight: Tensor) -> Tensor:
    """`product` of float32 numbers by bfloat16 tensor cores.

    Each number is the sum of two bfloat16 numbers, of whose four products the smallest is left out:
    the relative error is 2^-16, that of one TF32 product 2^-11, which drowns the reward of a
    thought.
    """
    (high, low), (w_high, w_low) = _halves(x.reshape(-1, x.shape[-1])), _halves(weight)
    left, right = torch.cat([high, low, high], 1), torch.cat([w_high, w_high, w_low], 1)
    if x.device.type == "cuda":
        out = torch.mm(left, right.T, out_dtype=torch.float32)
    else:  # has no such product
        out = left.float() @ right.float().T
    return out.view(*x.shape[:-1], len(weight))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16()
    return high, (x - high).bfloat16()


class Product(torch.autograd.Function):
    """x (..., K) @ weight (M, K) transposed, forward and backward in blocks of rows."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _forward(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.reshape(-1, len(weight))
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = multiply(gradient, weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            dweight = add_outer(torch.zeros_like(weight), gradient, x.reshape(-1, x.shape[-1]))
        return dx, dweight


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    return multiply(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], len(weight))


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """x (N, K) @ y (K, M)."""
    out = x.new_empty(len(x), y.shape[1])
    _by_rows(lambda rows: torch.mm(x[rows], y, out=out[rows]), x)
    return out


def add_outer(out: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """out (M, K) += x (N, M) transposed @ y (N, K), in place."""
    _by_rows(lambda rows: torch.addmm(out, x[rows].T, y[rows], out=out), x)
    return out


def _by_rows(multiply_rows: Callable[[slice], object], x: Tensor) -> None:
    """Call for all rows of x: for blocks of the sizes of BLOCKS with oneDNN, then for the rest."""
    start = 0
    if x.is_cpu and by_blocks(x.dtype):
        with onednn():
            for size in BLOCKS:
                while len(x) - start >= size:
                    multiply_rows(slice(start, start + size))
                    start += size
    if start < len(x):
        multiply_rows(slice(start, None))


@contextmanager
def onednn() -> Iterator[None]:
    """Float32 products on the CPU by oneDNN, which PyTorch asks only where less would do."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


@cache
def by_blocks(dtype: torch.dtype) -> bool:
    """Whether blocks go to oneDNN: of float32, and where it computes in no less than float32.

    "bf16" lets it compute in bfloat16, which it does where the processor has units for that
    (AMX). One product tells: its error is 2^-21 in float32, 2^-11 in TF32, 2^-8 in bfloat16.
    """
    if dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    x = torch.randn(BLOCKS[0], BLOCKS[0], generator=torch.Generator().manual_seed(0))
    with onednn():
        found = x @ x
    exact = x.double() @ x.double()
    return bool((found - exact).norm() < 2**-18 * exact.norm())
