"""AdamW in 4.03 bytes a parameter, not 12: 8-bit moments, and of float32 weights the lower halves.

A moment is kept in blocks of 256 numbers: a float32 scale, the block's largest, and for each number
the nearest of 256 values between -1 and 1 (or 0 and 1), which lie the denser the smaller they are.
Unlike the source we keep of the second moment its square root, which is what an update divides by,
and never 0: otherwise a number whose gradients are 2,000 times smaller than a neighbour's would be
divided by nothing, and move up to 150 times as far as any does with float32 moments.

An update is one of float32 AdamW: the numbers are made wide, updated, and made narrow again, some
at a time.

Source: 8-bit optimizers via block-wise quantization (arXiv:2110.02861), section 2.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from qs.model.exact import Exact, join

BLOCK = 256  # numbers that share a scale
AT_ONCE = 2**24  # numbers that are wide at a time: about 1 GiB
MOMENTS = ("exp_avg", "exp_avg_sq")


@functools.cache
def code_values(signed: bool) -> Tensor:
    """(256,) float32, ascending: what a code stands for.

    0, 1, and in each of seven decades below 1 the middles of equal parts: 1 in the lowest, then 2,
    4, ... of either sign (without a sign twice as many).
    """
    values = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade * (1 if signed else 2) + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.float()


def quantize(wide: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """float32 numbers (N,), N a multiple of BLOCK -> uint8 codes (N,), float32 scales (N / BLOCK,).

    Each number takes the nearest value; of two as near the upper one.
    """
    values = code_values(signed)
    between = ((values[1:] + values[:-1]) / 2).to(wide.device)
    blocks = wide.view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    relative = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(relative, between, out_int32=True, right=True)
    return codes.byte().view(-1), scale


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """uint8 codes (N,) and scales (N / BLOCK,) -> float32 (N,)."""
    values = code_values(signed).to(codes.device)
    return (values[codes.int()].view(-1, BLOCK) * scale[:, None]).view(-1)


class LowBitAdamW(torch.optim.Optimizer):
    """AdamW of 8-bit moments over parameters, some of them with 16 bits more.

    Vectors, and tensors that are no whole number of blocks, have float32 moments.

    Args:
        groups: as of AdamW.
        halves: parameter in bfloat16 -> its float32 numbers, of which it is one half.
        betas: of AdamW.
    """

    def __init__(
        self,
        groups: list[dict],
        halves: Mapping[Tensor, Exact],
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        self.halves = halves
        super().__init__(groups, {"betas": betas, "eps": 1e-8})

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's state before its first step, zeros, on its device."""
        zeros = functools.partial(torch.zeros, device=parameter.device)
        state = {"step": zeros(())}
        whole = parameter.numel() % BLOCK == 0 and parameter.ndim > 1
        for name in MOMENTS:
            if whole:
                state[name] = zeros(parameter.shape, dtype=torch.uint8)
                state[f"{name}_scale"] = zeros(parameter.numel() // BLOCK)
            else:
                state[name] = zeros(parameter.shape)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update parameters from their gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter not in self.state:
                    self.state[parameter] = self.new_state(parameter)
                for first in range(0, parameter.numel(), AT_ONCE):
                    self._update(parameter, slice(first, first + AT_ONCE), group)
                self.state[parameter]["step"] += 1

    def _update(self, parameter: nn.Parameter, part: slice, group: dict) -> None:
        """Update some numbers of a parameter, all of whose tensors are contiguous."""
        state, halves = self.state[parameter], self.halves.get(parameter)
        numbers = parameter.data.view(-1)[part]
        low = None if halves is None else halves.low.view(-1)[part]
        wide = numbers if low is None else join(numbers, low)
        moments = [_read(state, name, part) for name in MOMENTS]
        adamw(
            [wide],
            [parameter.grad.reshape(-1)[part].float()],
            *([moment] for moment in moments),
            [],
            [state["step"].clone()],  # counted once for all parts
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, moment in zip(MOMENTS, moments, strict=True):
            _write(state, name, part, moment)
        if low is not None:
            Exact(numbers, low).copy_(wide)


def _read(state: dict[str, Tensor], name: str, part: slice) -> Tensor:
    """Some numbers of a moment in float32: a copy, or where they are kept so a view."""
    kept = state[name].view(-1)[part]
    if (scale := state.get(f"{name}_scale")) is None:
        return kept
    scale = scale[part.start // BLOCK : part.stop // BLOCK]
    if name == "exp_avg":
        return dequantize(kept, scale, True)
    return dequantize(kept, scale, False).square_()


def _write(state: dict[str, Tensor], name: str, part: slice, wide: Tensor) -> None:
    """Keep what `_read` gave and was updated."""
    if (scale := state.get(f"{name}_scale")) is None:
        return
    signed = name == "exp_avg"
    codes, scales = quantize(wide if signed else wide.sqrt(), signed)
    if not signed:
        codes.clamp_(min=1)  # an update never divides by what was rounded to 0
    state[name].view(-1)[part] = codes
    scale[part.start // BLOCK : part.stop // BLOCK] = scales
