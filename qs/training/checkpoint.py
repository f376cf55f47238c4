"""Runs on disk: a folder with `config.json`, `log.jsonl`, `step_*/` and results.

A `step_*` folder is a checkpoint in the layout of `qs/model/weights.py` (float32 weights,
tokenizer) plus `optimizer.safetensors` (or its shards and index), `trainer.json` and digests of
all of these. Everything is written aside, flushed and renamed, so that what bears its final name is
complete; what is damaged later shows before it is read. safetensors and JSON only.

Tensors are gathered, written and let go file by file, and read one by one to where they belong.
Where there are several processes the first one writes; the others take part with `folder=None`.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qs import files
from qs.config import Config
from qs.digests import write_digests
from qs.files import OPTIMIZER, TRAINER
from qs.model import folders, shards, weights
from qs.model.config import ModelConfig
from qs.model.tokenizer import copy_tokenizer
from qs.quietstar.stored import STORED
from qs.settings import check_names
from qs.training.distributed import anywhere, fill, from_first, local, whole
from qs.training.lowbit import LowBitAdamW
from qs.training.optimizer import MasterAdamW


def newest_whole(run: Path, first: bool) -> Path:
    """The newest checkpoint that every process finds whole; what is passed over is said.

    Raises:
        ValueError: none is.
    """
    left = list(files.saved_steps(run).values())

    def steps() -> Iterator[Path]:
        while name := from_first(str(left.pop()) if first and left else ""):
            yield Path(name)

    def damage_of(step: Path) -> str:
        found = folders.damage_of_step(step)
        elsewhere = f"{step}: expected a whole checkpoint, another process found a damaged one"
        return (found or elsewhere) if anywhere(bool(found)) else ""

    return folders.first_whole(run, steps(), damage_of, says=first)


def set_aside(run: Path, step: int) -> None:
    """Take from what was saved after a step its name: that was passed over."""
    for number, folder in files.saved_steps(run).items():
        if number > step:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{folder}: now {aside.name}; remove it", file=sys.stderr)


def records_until(records: Sequence[dict[str, Any]], step: int, log: Path) -> list[dict[str, Any]]:
    """What a log says up to a step; steps that it lacks are counted on stderr."""
    if missing := {*range(1, step + 1)} - {record.get("step") for record in records}:
        print(
            f"{log}: expected a line for each of {step} steps, found none for {len(missing)} (the "
            f"first is {min(missing)}); going on without them",
            file=sys.stderr,
        )
    return [record for record in records if record.get("step", 0) <= step]


def save_step(
    run: Path,
    step: int,
    fill: Callable[[Path | None], None],
    first: bool,
    held: Sequence[Any],
    keep: int,
) -> None:
    """`files.save_step` by the first process, while the others take part in `fill(None)`.

    Args:
        run: its folder.
        step: to save.
        fill: writes into a folder.
        first: whether this process writes.
        held: the tensors that it writes, for their size.
        keep: checkpoints that are left when this one is whole; 0: all.

    Raises:
        OSError: the disk refuses; on every process, so that none waits for another.
    """
    try:
        if first:

            def fill_and_sign(folder: Path) -> None:
                fill(folder)
                write_digests(folder)

            files.save_step(run, step, fill_and_sign)
        else:
            fill(None)
    except OSError as error:
        if not first:
            raise
        _go_on(failed=True)
        size, free = sum(x.numel() * x.element_size() for x in held), shutil.disk_usage(run).free
        raise OSError(
            error.errno,
            f"the checkpoint of step {step} could not be written: it needs {size / 2**30:.3g} GiB, "
            f"and {free / 2**30:.3g} GiB are free ({error.strerror})",
            str(run),
        ) from None
    _go_on()
    if first:
        remove_old_steps(run, keep)


def remove_old_steps(run: Path, keep: int) -> None:
    """Leave the last checkpoints of a run, `keep` of them; 0: all."""
    for old in list(files.saved_steps(run).values())[:-keep] if keep else []:
        with contextlib.suppress(OSError):  # one too many is no reason to end a run
            files.remove_step(old)


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
    if folder and not copy_tokenizer(source, folder):
        raise ValueError(f"{source}: expected a tokenizer, found none any more; put it back")


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
    folder: Path, optimizer: MasterAdamW | LowBitAdamW, names: dict[Tensor, str], updates: int
) -> None:
    """Read what `save_optimizer` wrote into an optimiser that has not stepped yet.

    Each rank reads its own part of a tensor. A parameter that the loss never reached (the mixing
    head in plain training) has no state.

    Args:
        folder: of the checkpoint.
        optimizer: to fill.
        names: of parameters.
        updates: how often it has stepped, skipped steps not counted.

    Raises:
        ValueError: files are missing or damaged, or their tensors do not fit the parameters, are
            not finite, or have stepped another number of times.
    """
    path = folder / f"{OPTIMIZER}.safetensors"
    found, listed = shards.files_of(folder, OPTIMIZER)
    if not found:
        raise ValueError(f"{path}: no such file; resume needs a checkpoint written by train.py")
    stored = shards.headers(found, listed, shards.DTYPES | {"U8": torch.uint8})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    reached = {name.partition("/")[2] for name in stored}
    states = {p: optimizer.new_state(p) for p in parameters if names[p] in reached}
    tensors = {f"{key}/{names[p]}": x for p, state in states.items() for key, x in state.items()}
    check_names(str(path), stored, tensors)
    for name, tensor in tensors.items():
        expected, other = (tensor.dtype, *tensor.shape), stored[name]
        if expected != (other.dtype, *other.shape):
            raise ValueError(
                f"{path}: expected {name} of dtype and shape {_words(*expected)}, found "
                f"{_words(other.dtype, *other.shape)}"
            )
    wrong = ""
    for name, tensor in tensors.items():
        fill(tensor, stored[name].read(name))
        wrong = wrong or _wrong(name, local(tensor), updates)
    optimizer.state.update(states)
    if anywhere(bool(wrong)):
        raise ValueError(
            f"{path}: {wrong or 'another process found numbers that cannot be'}; move {folder} "
            "away to go on from the checkpoint before it"
        )


def _words(dtype: torch.dtype, *shape: int) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _wrong(name: str, values: Tensor, updates: int) -> str:
    """What is wrong with a part of an optimiser's state, in words; "" if nothing is.

    A step number may be lower than that of the run: no loss reached the parameter in some steps.
    """
    if not values.numel():
        return ""
    least, most = (float(bound) for bound in torch.aminmax(values))
    if not math.isfinite(least) or not math.isfinite(most):
        return f"expected finite numbers, found NaN or infinity in {name}"
    if name.startswith("exp_avg_sq") and least < 0:
        return f"expected squares, found {least:.3g} in {name}"
    if name.startswith("step/") and not (0 <= least <= updates and least == int(least)):
        return f"expected {updates} steps at most, as in {TRAINER}, found {least:.9g} in {name}"
    return ""
