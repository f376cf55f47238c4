"""Runs on disk: a folder with `config.json`, `log.jsonl`, `step_*/` and results.

A `step_*` folder is a checkpoint in the layout of `qs/weights.py` (float32 weights, tokenizer) plus
`optimizer.safetensors` and `trainer.json`. Everything is written aside, flushed and renamed, so
that what bears its final name is complete. safetensors and JSON only.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.config import Config, check_names
from qs.distributed import like, whole
from qs.files import flush

CONFIG, LOG, RESULTS = "config.json", "log.jsonl", "results.json"  # of a run
TRAINER, OPTIMIZER = "trainer.json", "optimizer.safetensors"  # of a checkpoint


def finite(value: Any) -> Any:
    """The same with null for what is not finite: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, found something damaged ({error})") from None


def new_run(out: str | Path, name: str, config: Config) -> Path:
    """Make `out/name` (or `name-2`, `name-3`, ...) and write its `config.json`."""
    Path(out).mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        run = Path(out) / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir()
            break
        except FileExistsError:
            number += 1
    write_json(run / CONFIG, config.to_json())
    return run


def read_config(run: Path) -> Config:
    """Settings of a run.

    Raises:
        ValueError: not a run folder, or written by another version.
    """
    values = read_json(run / CONFIG)
    try:
        return Config.from_json(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run / CONFIG}: expected the settings of a run, found something else ({error}); is "
            f"{run} a run folder?"
        ) from None


def save_step(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make `run/step_NNNNNN` whole or not at all; `write` fills it."""
    final = run / f"step_{step:06d}"
    aside = run / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    write(aside)
    for path in aside.iterdir():
        flush(path)
    flush(aside)
    if final.exists():  # the same step of the same run: equal, and the old one is complete
        shutil.rmtree(aside)
        return final
    aside.rename(final)
    flush(run)
    return final


def saved_steps(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, the oldest first."""
    found = [p for p in Path(run).glob("step_*") if re.fullmatch(r"step_\d{6,}", p.name)]
    return dict(sorted((int(p.name.removeprefix("step_")), p) for p in found))


def newest_step(run: Path) -> Path:
    """The last complete checkpoint of a run.

    Raises:
        ValueError: there is none.
    """
    found = saved_steps(run)
    if not found:
        raise ValueError(
            f"{run}: no checkpoint (step_*/) to go on from; start the run again with "
            f"`python train.py` and the settings in {Path(run) / CONFIG}"
        )
    return found[max(found)]


def finished(run: Path) -> bool:
    """Whether a run has done all its steps and saved the last one."""
    return read_config(run).run.steps in saved_steps(run)


def add_results(run: Path, found: dict[str, Any]) -> None:
    """Write into `results.json`; what else it holds stays."""
    path = run / RESULTS
    write_json(path, (read_json(path) if path.is_file() else {}) | found)


def gathered(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU; every process takes part, one by one, and some keep nothing."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


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
        for key in keys[1:]:
            if state[key].shape != parameter.shape:
                raise ValueError(
                    f"{path}: expected {key}/{names[parameter]} of shape {list(parameter.shape)}, "
                    f"found {list(state[key].shape)}"
                )
            state[key] = like(state[key], parameter)
        optimizer.state[parameter] = state


class Log:
    """`log.jsonl`: one JSON object a line, appended and flushed as it is written."""

    def __init__(self, run: Path):
        self.path = run / LOG

    def cut(self, step: int) -> None:
        """Drop what was logged after `step`, so that a resumed log equals an uninterrupted one."""
        if not self.path.is_file():
            return
        kept = [r for r in self.records() if r.get("step", 0) <= step]
        aside = self.path.with_name(LOG + ".tmp")
        aside.write_text("".join(json.dumps(r) + "\n" for r in kept))
        flush(aside)
        aside.replace(self.path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All whole lines; a line cut short by a kill is left out."""
        found = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(record, dict):  # a number cut short is a number still
                break
            found.append(record)
        return found
