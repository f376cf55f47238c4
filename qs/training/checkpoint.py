"""Runs on disk: a folder with `config.json`, `log.jsonl`, `step_*/` and results.

A `step_*` folder is a checkpoint in the layout of `qs/model/weights.py` (float32 weights,
tokenizer) plus `optimizer.safetensors` (or its shards and index) and `trainer.json`. Everything is
written aside, flushed and renamed, so that what bears its final name is complete. safetensors and
JSON only.

Tensors are gathered, written and let go file by file, and read one by one to where they belong.
Where there are several processes the first one writes; the others take part with `folder=None`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from qs import files
from qs.config import Config
from qs.files import OPTIMIZER
from qs.model import shards, weights
from qs.model.config import ModelConfig
from qs.model.tokenizer import copy_tokenizer
from qs.quietstar.load import STORED
from qs.settings import check_names
from qs.training.distributed import anywhere, fill, whole
from qs.training.lowbit import LowBitAdamW
from qs.training.optimizer import MasterAdamW


def save_step(run: Path, step: int, fill: Callable[[Path | None], None], first: bool) -> None:
    """`files.save_step` by the first process, while the others take part in `fill(None)`.

    Raises:
        OSError: the disk refuses; on every process, so that none waits for another.
    """
    try:
        if first:
            files.save_step(run, step, fill)
        else:
            fill(None)
    except OSError:
        if first:
            _go_on(failed=True)
        raise
    _go_on()


def _go_on(failed: bool = False) -> None:
    """Before each tensor, and at the end: whether the process that writes has failed."""
    if anywhere(failed) and not failed:
        raise OSError("the first process could not write a checkpoint")


def _whole(tensor: Tensor) -> Tensor:
    _go_on()
    return whole(tensor.detach())


def save_model(
    folder: Path | None,
    shape: ModelConfig,
    parameters: dict[str, Tensor],
    config: Config,
    source: Path,
    own: Mapping[str, str],
) -> None:
    """Write weights and tokenizer, in the layout of Quiet-STaR if the model thinks.

    Args:
        folder: to write into; None: the first process writes.
        shape: of the model.
        parameters: of `QuietStar`, wherever they are.
        config: settings of the run.
        source: folder that holds the tokenizer.
        own: as of `parts.own_names`.
    """
    model = {n.removeprefix("model."): x for n, x in parameters.items() if n.startswith("model.")}
    if config.run.thinks:
        thought = {n: x for n, x in parameters.items() if not n.startswith("model.")}
        stored = {name: getattr(config.thinking, name) for name in (*STORED, "thoughts", "ahead")}
        stored |= {"objective": config.run.objective} | dict(own)
        weights.save(folder, shape, model, thought, stored, _whole)
    else:
        weights.save(folder, shape, model, whole=_whole)
    if folder:
        copy_tokenizer(source, folder)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, wherever they are: `exp_avg/NAME`, `step/NAME`, ...

    `names` maps each parameter to its name.
    """
    return {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def save_optimizer(folder: Path | None, tensors: dict[str, Tensor]) -> None:
    """Write `optimizer.safetensors`, or its shards, from `optimizer_tensors`.

    Raises:
        OSError: the disk refuses.
    """
    shards.write(folder, OPTIMIZER, tensors, lambda name: _whole(tensors[name]))


def load_optimizer(
    folder: Path, optimizer: MasterAdamW | LowBitAdamW, names: dict[Tensor, str]
) -> None:
    """Read what `save_optimizer` wrote into an optimiser that has not stepped yet.

    Each rank reads its own part of a tensor. A parameter that the loss never reached (the mixing
    head in plain training) has no state.

    Raises:
        ValueError: files are missing or damaged, or their tensors do not fit the parameters.
    """
    path = folder / f"{OPTIMIZER}.safetensors"
    found, listed = shards.files_of(folder, OPTIMIZER)
    if not found:
        raise ValueError(f"{path}: no such file; resume needs a checkpoint written by train.py")
    stored = shards.headers(found, listed, shards.DTYPES | {"U8": torch.uint8})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    reached = {name.partition("/")[2] for name in stored}
    states = {p: optimizer.new_state(p) for p in parameters if names[p] in reached}
    expected = {f"{key}/{names[p]}" for p, state in states.items() for key in state}
    check_names(str(path), stored, expected)
    for parameter, state in states.items():
        for key, tensor in state.items():
            name = f"{key}/{names[parameter]}"
            if (other := stored[name].shape) != tensor.shape:
                raise ValueError(
                    f"{path}: expected {name} of shape {list(tensor.shape)}, found {list(other)}"
                )
            fill(tensor, stored[name].read(name))
        optimizer.state[parameter] = state
