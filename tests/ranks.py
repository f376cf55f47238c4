"""What each of several processes sees, for tests/training/test_distributed.py.

    torchrun --nproc-per-node 2 tests/ranks.py FOLDER FLAGS...

Each writes `FOLDER/RANK.json`; the first also `FOLDER/gradients.safetensors`.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from qs.model import shards
from qs.quietstar.sampler import step_generator
from qs.training import distributed
from qs.training.step import train_step
from qs.training.trainer import Trainer


class Heard(TorchDispatchMode):
    """Counts what is gathered and reduced, by (kind, dtype, numbers of this rank)."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.__name__
        if "allgather" in name or "reduce_scatter" in name:
            part = arguments[1] if isinstance(arguments[1], Tensor) else arguments[1][0]
            kind = "gather" if "allgather" in name else "reduce"
            self.counts[f"{kind} {part.dtype} {part.numel()}"] += 1
        return function(*arguments, **(keywords or {}))


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Whole gradients of the first step."""
    found = {}

    def keep() -> None:
        for name, parameter in trainer.quiet.named_parameters():
            if parameter.grad is not None:
                found[name] = distributed.whole(parameter.grad).float().clone()

    trainer.optimizer.step = keep
    trainer.step()
    del trainer.optimizer.step
    return found


def traffic(trainer: Trainer) -> dict[str, Any]:
    """What thinking about a batch, and scoring and learning from it, gather and reduce."""
    quiet, batch = trainer.quiet, trainer.windows.batch((0, 0), 2)[0]
    with Heard() as thinking, distributed.gathered(quiet.model.layers):
        quiet.think(batch.tokens, batch.documents, generator=step_generator(0, 0))
    with Heard() as step:
        config, ranks = trainer.chosen.changed(micro_batch=2), trainer.ranks
        train_step(quiet, trainer.optimizer, batch.tokens, batch.documents, config, 0, False, ranks)
    layer = sum(distributed.local(p).numel() for p in quiet.model.layers[0].parameters())
    return {"thinking": thinking.counts, "step": step.counts, "layer": layer}


def failure(trainer: Trainer) -> str:
    """What saving ends with."""
    try:
        trainer.save()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


def full(file: Path, tensors: dict[str, Tensor]) -> None:
    """A disk that takes one file and no more."""
    if not file.name.startswith("model-00001"):
        raise OSError(28, "No space left on device")


def main(folder: Path, flags: list[str]) -> None:
    distributed.PATIENCE = datetime.timedelta(seconds=60)
    trainer = train.load(train.settings(flags)[0], None)
    first, state = trainer.ranks.first, trainer.state
    found = gradients(trainer)
    if first:
        save_file(found, folder / "gradients.safetensors")
    told = {"traffic": traffic(trainer)}
    shards.LARGEST, write = 4000, shards._write_file
    shards._write_file = full
    told["full"] = failure(trainer)
    shards._write_file = write
    told["saved"] = failure(trainer)
    state.step += 1
    if not first:
        broken = distributed.local(trainer.quiet.model.layers[1].feed_forward.w1.weight.detach())
        broken[-1, 0] = torch.nan
        trainer.folder = folder / "seen by the first process only"
    told["nan"] = failure(trainer)
    told["agreed"] = [distributed.anywhere(first), distributed.anywhere(False)]
    (folder / f"{trainer.ranks.rank}.json").write_text(json.dumps(told))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
