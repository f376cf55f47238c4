"""AdamW in float32, whatever the model computes in and wherever there is room for its state.

A parameter of fewer bits has a float32 master copy, which is what is updated, saved and resumed;
the model's own is rounded from it after each step. With `offload` masters and moments live in host
memory: 12 bytes a parameter that the device need not hold, for one transfer of gradients and
weights a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qs.config import OptimConfig
from qs.model.exact import Exact
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import THOUGHT_VECTORS
from qs.training.lowbit import LowBitAdamW


class MasterAdamW(torch.optim.AdamW):
    """Fused AdamW over the float32 tensors that parameters are kept in.

    Args:
        groups: as of AdamW, of parameters or, where they have one, their masters.
        copies: master -> the parameter that is rounded from it.
        offload: masters are in host memory and are updated one at a time, so that gradients pass
            through two buffers of the largest of them.
        betas: of AdamW.
    """

    def __init__(
        self,
        groups: list[dict],
        copies: dict[Tensor, nn.Parameter],
        offload: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        self.copies, self.offload = copies, offload
        super().__init__(groups, betas=betas, fused=True)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of one that is updated, before its first step."""
        moments = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
        step = torch.zeros((), device=parameter.device)
        return dict(zip(("step", "exp_avg", "exp_avg_sq"), (step, *moments), strict=True))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update masters and parameters from the parameters' gradients."""
        if self.offload:
            for _ in self._gradients_on_the_host():
                super().step()
            return
        for master, parameter in self.copies.items():
            master.grad = parameter.grad
        super().step()
        for master, parameter in self.copies.items():
            master.grad = None
            parameter.copy_(master)

    def _gradients_on_the_host(self) -> Iterator[None]:
        """Give each master its gradient in turn, and the parameter its new value afterwards.

        On CUDA the next gradient and the last value are on their way meanwhile.
        """
        pairs = [(m, p) for m, p in self.copies.items() if p.grad is not None]
        if not pairs:
            return
        cuda = pairs[0][1].device.type == "cuda"
        size = max(m.numel() for m, _ in pairs)
        gradients, values = (  # two of each: one is used while the other travels
            [torch.empty(size, pin_memory=cuda) for _ in range(2)] for _ in range(2)
        )
        streams = [torch.cuda.Stream() for _ in range(2)] if cuda else [None, None]
        if cuda:
            streams[0].wait_stream(torch.cuda.current_stream())
        arrived, left = [None, None], [None, None]

        def copy(target: Tensor, source: Tensor, way: int) -> torch.cuda.Event | None:
            with torch.cuda.stream(streams[way]):
                target.copy_(source, non_blocking=True)
                return streams[way].record_event() if cuda else None

        def fetch(i: int) -> None:
            parameter = pairs[i][1]
            buffer = gradients[i % 2][: parameter.numel()].view(parameter.shape)
            arrived[i % 2] = copy(buffer, parameter.grad, 0)

        fetch(0)
        for i, (master, parameter) in enumerate(pairs):
            side = i % 2
            if arrived[side]:
                arrived[side].synchronize()
            if i + 1 < len(pairs):
                fetch(i + 1)
            master.grad = gradients[side][: master.numel()].view(master.shape)
            yield
            master.grad = None
            if left[side]:
                left[side].synchronize()
            rounded = values[side].view(parameter.dtype)[: master.numel()].view(master.shape)
            rounded.copy_(master)
            left[side] = copy(parameter, rounded, 1)
        if cuda:
            torch.cuda.current_stream().wait_stream(streams[1])
            streams[1].synchronize()  # before the buffers go


def make_optimizer(
    quiet: QuietStar, config: OptimConfig, offload: bool = False, eight_bits: bool = False
) -> MasterAdamW | LowBitAdamW:
    """AdamW with a learning rate for each of model, mixing head, and vectors of start and end.

    Weight decay touches matrices only.

    Args:
        quiet: whose `masters` are used.
        config: rates.
        offload: every parameter has its master in host memory.
        eight_bits: moments have them.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    own = dict(quiet.named_parameters())
    for name, tensor in (own if eight_bits else exact_parameters(quiet)).items():
        lr = config.lr
        if name.startswith("mixer."):
            lr = config.mixer_lr
        elif name in THOUGHT_VECTORS:
            lr = config.thought_lr
        decay = config.weight_decay if tensor.ndim >= 2 else 0.0
        groups.setdefault((lr, decay), []).append(tensor)
    rated = [
        {"params": tensors, "lr": lr, "peak_lr": lr, "weight_decay": decay}
        for (lr, decay), tensors in groups.items()
    ]
    betas = 0.9, config.beta2
    if eight_bits:
        return LowBitAdamW(rated, {own[n]: halves for n, halves in quiet.masters.items()}, betas)
    copies = {master: own[name] for name, master in quiet.masters.items()}
    return MasterAdamW(rated, copies, offload, betas)


def exact_parameters(quiet: QuietStar) -> dict[str, Tensor | Exact]:
    """What is trained and saved: each parameter by name, or the master it is rounded from."""
    return {n: quiet.masters.get(n, p) for n, p in quiet.named_parameters()}


def names_of_updated(quiet: QuietStar) -> dict[Tensor, str]:
    """The names of what an optimiser may hold: parameters, and masters that are tensors."""
    masters = {x: n for n, x in quiet.masters.items() if isinstance(x, Tensor)}
    return {p: n for n, p in quiet.named_parameters()} | masters
