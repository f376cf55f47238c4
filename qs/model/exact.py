"""float32 numbers in two halves: the bfloat16 that a model computes with, and 16 bits more.

Of the four bytes of a float32 weight and the two of its bfloat16 copy two are the same. Rounding to
nearest with ties away from zero gives every bfloat16 number exactly 2**16 float32 numbers, so that
16 bits say which one it was. (With ties to even, as PyTorch rounds, an even one has 2**16 + 1.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def split(wide: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (...) -> its nearest bfloat16 (...) and how far it is from that, int16 (...)."""
    bits = wide.contiguous().view(torch.int32)
    upper = (bits + 0x8000) >> 16
    return upper.short().view(torch.bfloat16), (bits - (upper << 16)).short()


def join(rounded: Tensor, low: Tensor) -> Tensor:
    """What was `split`, bit for bit."""
    bits = rounded.contiguous().view(torch.int16).int() << 16
    return (bits + low).view(torch.float32)


class Exact(NamedTuple):
    """A float32 tensor in halves; it answers what is asked of one that is loaded and saved.

    Attributes:
        rounded: (...) bfloat16, which a parameter shares.
        low: (...) int16.
    """

    rounded: Tensor
    low: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""
        return self.rounded.shape

    is_meta = property(lambda self: self.rounded.is_meta)

    def numel(self) -> int:
        """Numbers."""
        return self.rounded.numel()

    def element_size(self) -> int:
        """Bytes of a number."""
        return torch.float32.itemsize

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> Exact:
        """A view of another shape."""
        return Exact(*(half.unflatten(dim, sizes) for half in self))

    def detach(self) -> Tensor:
        """The float32 numbers, in memory of their own."""
        return join(*self)

    def isfinite(self) -> Tensor:
        """Where it is."""
        return self.detach().isfinite()

    @torch.no_grad()
    def copy_(self, source: Tensor) -> None:
        """Take the values of a tensor."""
        for half, values in zip(self, split(source.to(self.low.device).float()), strict=True):
            half.copy_(values)
