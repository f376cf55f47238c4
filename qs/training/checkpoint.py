"""Runs on disk: a folder with `config.json`, `log.jsonl`, `step_*/` and results.

A `step_*` folder is a checkpoint in the layout of `qs/model/weights.py` (float32 weights,
tokenizer) plus `optimizer.safetensors` and `trainer.json`. Everything is written aside, flushed and
renamed, so that what bears its final name is complete. safetensors and JSON only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.config import Config, check_names
from qs.files import OPTIMIZER
from qs.model import weights
from qs.model.config import ModelConfig
from qs.model.tokenizer import copy_tokenizer
from qs.quietstar.load import STORED
from qs.training.distributed import like, whole


def gathered(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU; every process takes part, one by one, and some keep nothing."""
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            kept[name] = full.cpu().contiguous()
    return kept


def save_model(
    folder: Path,
    shape: ModelConfig,
    parameters: dict[str, Tensor],
    config: Config,
    source: Path,
) -> None:
    """Write weights and tokenizer, in the layout of Quiet-STaR if the model thinks.

    Args:
        folder: to write into.
        shape: of the model.
        parameters: of `QuietStar`, whole (see `gathered`).
        config: settings of the run.
        source: folder that holds the tokenizer.
    """
    model = {n.removeprefix("model."): x for n, x in parameters.items() if n.startswith("model.")}
    if config.run.thinks:
        thought = {n: x for n, x in parameters.items() if not n.startswith("model.")}
        stored = {name: getattr(config.thought, name) for name in (*STORED, "thoughts", "ahead")}
        stored["objective"] = config.run.objective
        weights.save(folder, shape, model, thought, stored)
    else:
        weights.save(folder, shape, model)
    copy_tokenizer(source, folder)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[Tensor, str], keep: bool = True
) -> dict[str, Tensor]:
    """The optimiser's state as whole named tensors: `exp_avg/NAME`, `step/NAME`, ...

    `names` maps each parameter to its name. Every process must take part.
    """
    named = {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    return gathered(named, keep)


def save_optimizer(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `optimizer.safetensors` from `optimizer_tensors`.

    Raises:
        OSError: the disk refuses.
    """
    try:
        save_file(tensors, folder / OPTIMIZER)
    except SafetensorError as error:
        raise OSError(f"{folder / OPTIMIZER}: cannot be written: {error}") from None


def load_optimizer(
    folder: Path, optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
) -> None:
    """Read `optimizer.safetensors` back into an optimiser that has not stepped yet.

    A parameter that the loss never reached (the mixing head in plain training) has no state.

    Raises:
        ValueError: the file is missing or damaged, or its tensors do not fit the parameters.
    """
    path = folder / OPTIMIZER
    if not path.is_file():
        raise ValueError(f"{path}: no such file; resume needs a checkpoint written by train.py")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, found: {error}") from None
    keys = ("step", "exp_avg", "exp_avg_sq")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    stepped = [p for p in parameters if any(f"{key}/{names[p]}" in stored for key in keys)]
    check_names(str(path), stored, {f"{key}/{names[p]}" for p in stepped for key in keys})
    for parameter in stepped:
        state = {key: stored[f"{key}/{names[parameter]}"] for key in keys}
        state["step"] = state["step"].to(parameter.device)
        for key in keys[1:]:
            if state[key].shape != parameter.shape:
                raise ValueError(
                    f"{path}: expected {key}/{names[parameter]} of shape {list(parameter.shape)}, "
                    f"found {list(state[key].shape)}"
                )
            state[key] = like(state[key], parameter)
        optimizer.state[parameter] = state
