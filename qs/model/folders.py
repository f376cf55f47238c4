"""Folders of weights: which one a name means, whose layout it has, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qs.files import names_in, places, read_object, saved_steps
from qs.output import nearest

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


def resolve(name: str | Path, root: str | Path = "weights") -> Path:
    """The folder of a checkpoint: a folder as it is, a name in `root`, or a run's newest step.

    A step of a run is complete if it holds a `config.json` and weights; others are passed over. Of
    a Hugging Face cache it is the one folder in `snapshots/`.

    Raises:
        ValueError: if there is none; for checkpoints we know, with the command that gets them. If
            there are several snapshots.
    """
    folder = next((folder for folder in places(name, root) if folder.is_dir()), None)
    if folder is None:
        names = names_in(root)
        there = f"{root} ({', '.join(names) or 'none'})"
        hint = f"give a folder or one of the names in {there}{nearest(str(name), names)}"
        if repository := DOWNLOADS.get(str(name)):
            hint = f"get it with: hf download {repository}"
        raise ValueError(f"{name}: expected a checkpoint, found no such folder; {hint}")
    steps = saved_steps(folder)
    for step in reversed(steps.values()):
        weights = (step / SINGLE).is_file() or (step / INDEX).is_file()
        if weights and (step / "config.json").is_file():
            return step
    if steps:
        raise ValueError(f"{folder}: expected a run with a complete step_* folder, found none")
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    if len(snapshots) > 1:
        raise ValueError(
            f"{folder}: expected one snapshot in this folder of a Hugging Face cache, found "
            f"{len(snapshots)}; give one of {', '.join(map(str, snapshots))}"
        )
    return snapshots[0] if snapshots else folder


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
    if (folder / "params.json").is_file() and (any(folder.glob(CONSOLIDATED)) or not described):
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
    else:
        found = "none; give the folder that holds the weights"
    return f"{folder}: expected {SINGLE}, {INDEX} or {CONSOLIDATED}, found {found}"
