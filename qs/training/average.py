"""An exponential moving average of a model's weights: whose prediction a thought has to beat.

    average <- decay average + (1 - decay) weights,    after every optimiser step

The model trains towards thoughts that help it; compared with its own prediction without a thought,
which it may spoil, they can gain for nothing. The average lags behind, and is a constant for the
gradient.

Source: RLP (arXiv:2510.01265), section 3, decay 0.999.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qs.files import AVERAGE
from qs.model import shards
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.losses import linear_nll
from qs.quietstar.terms import Targets
from qs.settings import check_names
from qs.training.optimizer import exact_parameters


class Average:
    """The average of one process's model, float32 or wider, where its exact weights are.

    Args:
        quiet: the module, whose model's weights it begins with.
        decay: what a step leaves of it, from 0 to 1: with 1 it is a frozen copy.
        whole: the copy has vectors and mixing head too, with which it can think.
    """

    def __init__(self, quiet: QuietStar, decay: float, whole: bool = False):
        self.decay, self.whole = decay, whole
        self.weights = {name: x.detach().clone() for name, x in self._of(quiet).items()}

    def _of(self, quiet: QuietStar) -> dict[str, Tensor]:
        """What is trained of a module, as far as this is its average."""
        exact = exact_parameters(quiet).items()
        return {name: x for name, x in exact if self.whole or name.startswith("model.")}

    @torch.no_grad()
    def update(self, quiet: QuietStar) -> None:
        """Move towards the module's weights, after an optimiser step."""
        for name, value in self._of(quiet).items():
            self.weights[name].lerp_(value.detach(), 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self, quiet: QuietStar) -> Iterator[None]:
        """The module computes with the average for a while, and then has its own bits again."""
        own = {name: p.data.clone() for name, p in quiet.named_parameters() if name in self.weights}
        parameters = dict(quiet.named_parameters())
        for name in own:
            parameters[name].data.copy_(self.weights[name])
        try:
            yield
        finally:
            for name, values in own.items():
                parameters[name].data.copy_(values)

    @torch.no_grad()
    def judge(
        self, quiet: QuietStar, tokens: Tensor, documents: Tensor, targets: Targets
    ) -> Targets:
        """Targets of (B, T) tokens with the average's NLL of the next ones as their reference."""
        with self.in_place(quiet):
            outputs, _ = quiet.base(tokens, documents)
            nll = linear_nll(outputs, quiet.model.head, targets.next)
        return targets._replace(reference=nll.where(targets.next_valid, 0.0))

    def save(self, folder: Path) -> None:
        """Write `average.safetensors`, or its shards.

        Raises:
            OSError: the disk refuses.
        """
        shards.write(folder, AVERAGE, self.weights, lambda name: self.weights[name])

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: files are missing or damaged, or hold the average of another model.
        """
        path = folder / f"{AVERAGE}.safetensors"
        found, listed = shards.files_of(folder, AVERAGE)
        if not found:
            raise ValueError(f"{path}: no such file; --reference average or --distil needs it")
        stored = shards.headers(found, listed)
        check_names(str(path), stored, self.weights)
        for name, values in self.weights.items():
            if stored[name].shape != tuple(values.shape):
                shape, other = list(values.shape), list(stored[name].shape)
                raise ValueError(f"{path}: expected {name} of shape {shape}, found {other}")
            values.copy_(stored[name].read(name))
