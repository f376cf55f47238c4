"""Checkpoints as safetensors: three layouts of one model, read into and written from our names.

Read: Hugging Face (`config.json` with `model.safetensors`, or with shards and their index), the
same with the extra tensors of the released Quiet-STaR, and Mistral's own (`params.json` with
`consolidated*.safetensors`). A folder that holds both is read as Hugging Face. The first two are
written. Reading is in `qs/model/tensors.py` and `qs/model/config.py`, and offered here.

    python -m qs.model init --out weights/NAME --tokenizer FOLDER --dim 256 --layers 4 ...
    python -m qs.model export runs/NAME --layout hf --out FOLDER [--dtype bfloat16]
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qs.files import OPTIMIZER, flush
from qs.model.config import (
    CONSOLIDATED,
    INDEX,
    SINGLE,
    THOUGHT_MARKS,
    ModelConfig,
    checked,
    hf_json,
)
from qs.model.config import read_config as read_config
from qs.model.config import read_settings as read_settings
from qs.model.tensors import (
    VECTORS,
    extra_shapes,
    refuse,
    shapes,
    stored_name,
)
from qs.model.tensors import load_into as load_into

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
DOWNLOADS = {
    "mistral-7b": "hf download mistralai/Mistral-7B-v0.1 --local-dir weights/mistral-7b "
    "--include '*.json' --include tokenizer.model --include 'model-*.safetensors'",
    "quietstar-8-ahead": "hf download ezelikman/quietstar-8-ahead "
    "--local-dir weights/quietstar-8-ahead",
}


def save(
    folder: str | Path,
    config: ModelConfig,
    parameters: Mapping[str, Tensor],
    extras: Mapping[str, Tensor] | None = None,
    settings: dict[str, Any] | None = None,
    layout: str = "hf",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a checkpoint, flushed to disk; `config.json` comes last.

    Args:
        folder: made if missing; must hold no other weights.
        config: shape of the model.
        parameters: our name -> tensor, as of `shapes`.
        extras: our name -> tensor, as of `extra_shapes`; the vectors at their stored scale.
        settings: plain values that `read_settings` gives back; for either layout.
        layout: `hf` (plain language model) or `quietstar` (with extras).
        dtype: of the tensors in the files; None keeps each tensor's own.
        max_shard_bytes: largest file, unless one tensor alone is larger; also the host memory used.

    Raises:
        ValueError: if the layout has no place for what is given, or the folder holds weights.
        OSError: if the disk refuses.
    """
    folder = Path(folder)
    if layout not in ("hf", "quietstar") or (layout == "quietstar") != (extras is not None):
        raise ValueError(
            f"{folder}: expected layout hf without extras or quietstar with them, found {layout} "
            f"{'without' if extras is None else 'with'} them"
        )
    checked(config, str(folder))
    if any(folder.glob("model*.safetensors*")) or any(folder.glob(CONSOLIDATED)):
        raise ValueError(f"{folder}: holds weights already; save into another folder")
    ours = {**parameters, **(extras or {})}
    expected = shapes(config) | (extra_shapes(config.dim) if extras is not None else {})
    wrong = [f"{n}: {list(ours[n].shape)}" for n in ours if tuple(ours[n].shape) != expected.get(n)]
    refuse(str(folder), sorted(expected.keys() - ours.keys()), [], wrong)
    folder.mkdir(parents=True, exist_ok=True)
    shards, size = [[]], 0
    for name in expected:
        need = ours[name].numel() * (dtype or ours[name].dtype).itemsize * (1 + (name in VECTORS))
        if shards[-1] and size + need > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += need
    weight_map = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {stored_name(n, layout): _to_store(ours[n], dtype, n in VECTORS) for n in names}
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / file}: cannot be written: {error}") from None
        (folder / file).chmod(0o644)  # safetensors makes files that only their owner can read
        flush(folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(t.nbytes for t in tensors.values())
        kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        del tensors
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    if config.thought_ids:
        marks = dict(zip(THOUGHT_MARKS.values(), config.thought_ids, strict=True))
        _write_json(folder / "added_tokens.json", marks)
    _write_json(folder / "config.json", hf_json(config, kind, layout, settings))
    flush(folder)


def _to_store(tensor: Tensor, dtype: torch.dtype | None, is_vector: bool) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype or tensor.dtype)
    return (torch.stack([tensor, torch.zeros_like(tensor)]) if is_vector else tensor).contiguous()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    flush(path)


def resolve(name: str | Path, root: str | Path = "weights") -> Path:
    """The folder of a checkpoint: a folder as it is, a name in `root`, or a run's newest step.

    A step `step_*` is complete if it holds a `config.json` and weights; others are passed over.

    Raises:
        ValueError: if there is none; for checkpoints we know, with the command that gets them.
    """
    folder = next((f for f in (Path(name), Path(root) / name) if f.is_dir()), None)
    if folder is None:
        get = DOWNLOADS.get(str(name))
        hint = f"get it with: {get}" if get else f"give a folder or one of the names in {root}"
        raise ValueError(f"{name}: expected a checkpoint, found no such folder; {hint}")
    steps = [f for f in folder.glob("step_*") if f.is_dir()]
    done = [f for f in steps if re.fullmatch(r"step_\d+", f.name) and _complete(f)]
    if steps and not done:
        raise ValueError(f"{folder}: expected a run with a complete step_* folder, found none")
    return max(done, key=lambda f: int(f.name[5:])) if done else folder


def _complete(folder: Path) -> bool:
    weights = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return weights and (folder / "config.json").is_file()


def digest(folder: Path) -> str:
    """A short name for what a checkpoint says: the same for the same files, wherever they are."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        weights = path.suffix == ".safetensors" and path.name != OPTIMIZER
        if weights or path.name in ("config.json", "params.json", "tokenizer.model"):
            with path.open("rb") as file:
                found.update(
                    f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
                )
    return found.hexdigest()[:16]
