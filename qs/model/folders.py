"""Folders of weights: which one a name means, whose layout it has, and what is wrong with it."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from qs.digests import damage
from qs.files import LOG, MADE, OPTIMIZER, TRAINER, names_in, places, read_object, saved_steps
from qs.output import there

MODEL = "model"  # what names of files with weights begin with
SINGLE, INDEX = f"{MODEL}.safetensors", f"{MODEL}.safetensors.index.json"
SHARDS, CONSOLIDATED = "model-*.safetensors", "consolidated*.safetensors"
ADAPTER = "adapter_config.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
DOWNLOADS = {
    "mistral-7b": "mistralai/Mistral-7B-v0.1 --local-dir weights/mistral-7b "
    "--include '*.json' --include tokenizer.model --include 'model-*.safetensors'",
    "quietstar-8-ahead": "ezelikman/quietstar-8-ahead --local-dir weights/quietstar-8-ahead",
}


def find(name: str | Path, root: str | Path = "weights") -> Path:
    """The folder that a name means: a folder as it is, or a name in `root`.

    Raises:
        ValueError: if there is none; for checkpoints we know, with the command that gets them.
    """
    some = places(name, root) if str(name) else []  # without a name it would be this folder
    if (folder := next((folder for folder in some if folder.is_dir()), None)) is not None:
        return folder
    hint = f"give a run, a folder, or one of the names in {root} {there(str(name), names_in(root))}"
    if repository := DOWNLOADS.get(str(name)):
        hint += f", or get it with: hf download {repository}"
    raise ValueError(
        f"{str(name) or repr('')}: expected a checkpoint, found no such folder; {hint}"
    )


def resolve(name: str | Path, root: str | Path = "weights") -> Path:
    """The folder of a checkpoint: a folder as it is, a name in `root`, or a run's newest step.

    A step of a run that is not whole (see `damage_of_step`) is passed over, and said so on stderr.
    Of a Hugging Face cache it is the one folder in `snapshots/`.

    Raises:
        ValueError: if there is none (see `find`), a run has saved no step or none is whole, there
            are several snapshots, or it only holds runs.
    """
    folder = find(name, root)
    steps = saved_steps(folder)
    if steps:
        weights_of = functools.partial(damage_of_step, training=False)
        return first_whole(folder, reversed(steps.values()), weights_of)
    if any((folder / name).is_file() for name in (LOG, MADE)):
        raise ValueError(
            f"{folder}: expected a run that has saved a checkpoint (step_*/), found one that has "
            "none yet; give another model"
        )
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    if len(snapshots) > 1:
        raise ValueError(
            f"{folder}: expected one snapshot in this folder of a Hugging Face cache, found "
            f"{len(snapshots)}; give one of {', '.join(map(str, snapshots))}"
        )
    described = any((folder / name).is_file() for name in ("config.json", "params.json"))
    runs = [str(path) for path in sorted(folder.iterdir()) if saved_steps(path)]
    if runs and not described:
        raise ValueError(
            f"{folder}: expected a run or a checkpoint, found a folder of runs; give one of them "
            f"{there('', runs)}"
        )
    return snapshots[0] if snapshots else folder


def first_whole(
    run: Path, steps: Iterable[Path], damage_of: Callable[[Path], str], says: bool = True
) -> Path:
    """The first of some checkpoints of a run that is whole.

    Args:
        run: its folder.
        steps: the newest first.
        damage_of: `damage_of_step`, as one process or several see it.
        says: print what was passed over, in one line on stderr.

    Raises:
        ValueError: none is.
    """
    newest, passed = "", []
    for step in steps:
        if not (found := damage_of(step)):
            if newest and says:
                print(f"{newest}; taking {step}, the newest that is whole", file=sys.stderr)
            return step
        newest = newest or found
        passed.append(step)
    weights = not all(damage_of_step(step, training=False) for step in passed)
    begin = f", or begin a new run from its weights with --weights {shlex.quote(str(run))}"
    raise ValueError(f"{newest}; no checkpoint of {run} is whole: start it again{begin * weights}")


def damage_of_step(step: Path, training: bool = True) -> str:
    """What a checkpoint of a run lacks, or which file is damaged; "" if it is whole.

    `training`: whether what only training goes on with counts too.
    """
    needed = [(SINGLE, INDEX), ("config.json",)]
    if training:
        needed += [tuple(f"{OPTIMIZER}{name.removeprefix(MODEL)}" for name in needed[0])]
        needed += [(TRAINER,)]
    for names in needed:
        if not any((step / name).is_file() for name in names):
            return f"{step}: expected {' or '.join(names)}, found none"
    return damage(step, training)


def layout_of(folder: Path) -> Literal["hf", "mistral"]:
    """Whose layout a folder has; Hugging Face's where it has both.

    Raises:
        ValueError: if there is no such folder, or nothing in it that says (see `what_is_wrong`).
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder with a checkpoint, found none; see --weights"
        )
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return "hf"
    described = (folder / "config.json").is_file()
    pickled = any(file for like in PICKLES for file in folder.glob(like))
    consolidated = any(folder.glob(CONSOLIDATED)) or not (described or pickled)
    if (folder / "params.json").is_file() and consolidated:
        return "mistral"
    if not described:
        raise ValueError(what_is_wrong(folder))
    return "hf"


def what_is_wrong(folder: Path) -> str:
    """What a folder holds whose weights cannot be read, and what to do, in one line."""

    def first(*patterns: str) -> str | None:
        return min((file.name for like in patterns for file in folder.glob(like)), default=None)

    if first(ADAPTER):
        base = read_object(folder / ADAPTER).get("base_model_name_or_path")
        found = f"an adapter (LoRA) of {base} alone; merge it into that model and give the result"
    elif file := first(SHARDS):
        found = f"{file} without {INDEX}; get the index from where the shards are from"
    elif file := first(CONSOLIDATED):
        found = f"{file} without params.json; get that from where the weights are from"
    elif file := first(*PICKLES):
        found = (
            f"{file}; pickled weights are never opened, as they can run any code: get the "
            "checkpoint as safetensors, or convert it (load it with transformers where you trust "
            "it, then save_pretrained)"
        )
    elif file := first("*.gguf"):
        found = f"{file}; get the checkpoint that it was made from, as safetensors"
    else:
        found = "none; give the folder that holds the weights"
    return f"{folder}: expected {SINGLE}, {INDEX} or {CONSOLIDATED}, found {found}"
