"""Tensors of a checkpoint: their names and shapes, and reading them one by one into ours.

Three layouts: Hugging Face (`model.safetensors`, or shards and their index), the same with the
extra tensors of the released Quiet-STaR, and Mistral's own (`consolidated*.safetensors`). Inside,
names are Mistral's, and queries and keys use Hugging Face's rotate-half convention.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qs.files import read_object
from qs.model.config import (
    CONSOLIDATED,
    INDEX,
    SINGLE,
    ModelConfig,
    layout_of,
    read_config,
)

HF_NAMES = {  # ours (Mistral's) -> Hugging Face's; {} is the number of a layer
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "layers.{}.attention.wq.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.wk.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.wv.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.feed_forward.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.w2.weight": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.w3.weight": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
VECTORS = ("start", "end")  # stored as row 0 of [2, D]; row 1 was never used
QUIET_NAMES = {  # ours -> the released Quiet-STaR's
    "start": "start_embedding",
    "end": "end_embedding",
    "mixer.0.weight": "talk_head.0.0.weight",
    "mixer.0.bias": "talk_head.0.0.bias",
    "mixer.2.weight": "talk_head.0.2.weight",
    "mixer.2.bias": "talk_head.0.2.bias",
    "mixer.4.weight": "talk_head.0.4.weight",
}
INTERLEAVED = ("attention.wq.weight", "attention.wk.weight")  # in Mistral's own layout
IGNORED = re.compile(r"rotary_emb\.inv_freq$")  # a buffer of old files; follows from rope_theta
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where, and what its header says."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a Mistral."""
    c, queries, keys = config, config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = {
        "attention.wq.weight": (queries, c.dim),
        "attention.wk.weight": (keys, c.dim),
        "attention.wv.weight": (keys, c.dim),
        "attention.wo.weight": (c.dim, queries),
        "feed_forward.w1.weight": (c.hidden_dim, c.dim),
        "feed_forward.w2.weight": (c.dim, c.hidden_dim),
        "feed_forward.w3.weight": (c.hidden_dim, c.dim),
        "attention_norm.weight": (c.dim,),
        "ffn_norm.weight": (c.dim,),
    }
    found = {"tok_embeddings.weight": (c.vocab_size, c.dim)}
    found |= {f"layers.{i}.{name}": layer[name] for i in range(c.layers) for name in layer}
    found |= {"norm.weight": (c.dim,)}
    return found if c.tied else found | {"output.weight": (c.vocab_size, c.dim)}


def extra_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that Quiet-STaR adds."""
    vectors = {"start": (dim,), "end": (dim,)}
    first = {"mixer.0.weight": (dim, 2 * dim), "mixer.0.bias": (dim,)}
    second = {"mixer.2.weight": (dim, dim), "mixer.2.bias": (dim,)}
    return vectors | first | second | {"mixer.4.weight": (1, dim)}


def stored_name(name: str, layout: str) -> str:
    """Our name of a tensor -> its name in files of a layout (`hf`, `quietstar`, `mistral`)."""
    if name in QUIET_NAMES:
        return QUIET_NAMES[name]
    if layout == "mistral":
        return name
    layer = re.match(r"layers\.(\d+)\.(.*)", name)
    return HF_NAMES[f"layers.{{}}.{layer[2]}"].format(layer[1]) if layer else HF_NAMES[name]


def stored_tensors(folder: str | Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint by its name in the file; reads headers only.

    Where an index names the file of a tensor, copies of it in other files do not count.

    Raises:
        ValueError: if files are missing, damaged, or hold a tensor twice.
    """
    folder = Path(folder)
    listed: dict[str, str] = {}
    if layout_of(folder) == "mistral":
        files = sorted(folder.glob(CONSOLIDATED))
    elif (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    else:
        listed = _index(folder / INDEX) if (folder / INDEX).is_file() else {}
        files = [folder / name for name in sorted(set(listed.values()))]
    if not files:
        raise ValueError(
            f"{folder}: expected {SINGLE}, {INDEX} or {CONSOLIDATED}, found none; "
            "get the checkpoint as safetensors (*.bin and *.pth files are never unpickled)"
        )
    found: dict[str, Stored] = {}
    for file in files:
        with opened(file) as handle:
            names = handle.keys()
            for name in names:
                if listed.get(name, file.name) != file.name or IGNORED.search(name):
                    continue
                if name in found:
                    raise ValueError(f"{file}: {name} is also in {found[name].file.name}; keep one")
                part = handle.get_slice(name)
                found[name] = Stored(file, name, tuple(part.get_shape()), part.get_dtype())
    return found


def _index(path: Path) -> dict[str, str]:
    """Which file beside the index holds each tensor."""
    listed = read_object(path).get("weight_map")
    good = isinstance(listed, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in listed.values()
    )
    if not good:
        raise ValueError(
            f"{path}: expected a weight_map from tensors to names of files beside it, found "
            "something else; get the file again"
        )
    return listed


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A memory-mapped safetensors file, closed at the end.

    Raises:
        ValueError: if it cannot be opened or is none.
    """
    try:
        handle = safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file}: expected a safetensors file, found: {error}; get the file again"
        ) from None
    with handle:
        yield handle


def load_into(
    folder: str | Path, parameters: Mapping[str, Tensor], extras: Mapping[str, Tensor] | None = None
) -> bool:
    """Copy a checkpoint into tensors that exist, one by one, to their device and dtype.

    Nothing is copied unless everything fits. Beside the destinations at most one file is in host
    memory, mapped. Extras in the folder are left alone when `extras` is None: that is how the plain
    language model of a Quiet-STaR checkpoint is read. A tied model has no `output.weight` in
    `parameters`; a head in the folder must then equal the embedding.

    Args:
        folder: any of the three layouts.
        parameters: our name -> destination, as of `shapes`.
        extras: our name -> destination, as of `extra_shapes`; not touched if the folder has none.

    Returns:
        Whether the folder holds the Quiet-STaR extras.

    Raises:
        ValueError: listing missing, unexpected and mis-shaped tensors by their names in the files.
    """
    folder = Path(folder)
    layout, found = layout_of(folder), stored_tensors(folder)
    quiet = not found.keys().isdisjoint(QUIET_NAMES.values())
    if "output.weight" not in parameters:
        _tie(
            found,
            stored_name("output.weight", layout),
            stored_name("tok_embeddings.weight", layout),
        )
    ours = {**parameters, **(extras or {})} if quiet else dict(parameters)
    wanted = {stored_name(name, layout): name for name in ours}
    needed = wanted.keys() | (set(QUIET_NAMES.values()) if quiet else set())
    missing, unexpected = sorted(needed - found.keys()), sorted(found.keys() - needed)
    wrong = []
    for theirs, name in wanted.items():
        shape = (2,) * (name in VECTORS) + tuple(ours[name].shape)
        if theirs in found and (found[theirs].shape != shape or found[theirs].dtype not in DTYPES):
            wrong.append(
                f"{theirs}: expected {list(shape)}, found {found[theirs].dtype} "
                f"{list(found[theirs].shape)}"
            )
    refuse(str(folder), missing, unexpected, wrong)
    head_dim = read_config(folder).head_dim if layout == "mistral" else 0
    for file in sorted({found[theirs].file for theirs in wanted}):
        with opened(file) as handle, torch.no_grad():
            for theirs, name in wanted.items():
                if found[theirs].file == file:
                    half = head_dim // 2 if name.endswith(INTERLEAVED) else 0
                    _copy(ours[name], handle.get_tensor(found[theirs].name), half, name in VECTORS)
    return quiet


def _tie(found: dict[str, Stored], head: str, embedding: str) -> None:
    """Drop a stored head that is the embedding once more, or stands in its place."""
    if head in found and embedding not in found:
        found[embedding] = found.pop(head)
    elif head in found:
        with opened(found[head].file) as one, opened(found[embedding].file) as other:
            if torch.equal(one.get_tensor(head), other.get_tensor(embedding)):
                del found[head]


def _copy(destination: Tensor, source: Tensor, half: int, is_vector: bool) -> None:
    assert not destination.is_meta
    if is_vector:
        source = source[0]
    if half:  # rows (2i, 2i + 1) of a head rotate together there, rows (i, i + half) here
        source = source.unflatten(0, (-1, half, 2)).transpose(1, 2)
        destination = destination.unflatten(0, (-1, 2, half))
    destination.copy_(source)


def refuse(where: str, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    """Raise one ValueError that counts and names what is wrong, if anything is."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape or type": wrong}
    found = {kind: names for kind, names in kinds.items() if names}
    if found:
        parts = [
            f"{len(names)} tensor{'s' * (len(names) > 1)} {kind} "
            f"({', '.join(names[:4])}{', ...' * (len(names) > 4)})"
            for kind, names in found.items()
        ]
        raise ValueError(f"{where}: {', '.join(parts)}; is this a Mistral checkpoint?")
