"""Weights as safetensors: three layouts of one model <-> our names.

Read: Hugging Face (`config.json` with `model.safetensors`, or with shards and their index), the
same with the extra tensors of the released Quiet-STaR, and Mistral's own (`params.json` with
`consolidated*.safetensors`). A folder that holds both is read as Hugging Face. The first two are
written. Inside, names are Mistral's, and queries and keys use Hugging Face's rotate-half
convention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qs.files import ONLY_TRAINING
from qs.model import shards
from qs.model.config import ModelConfig, read_model_config, read_settings, write_model_config
from qs.model.exact import Exact
from qs.model.folders import CONSOLIDATED, MODEL, layout_of, what_is_wrong
from qs.model.mistral import Mistral
from qs.model.tokenizer import TOKENIZER_FILES
from qs.plain import content_digest, file_digest

HF_NAMES = {  # ours (Mistral's) -> Hugging Face's; {} is the number of a layer
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "layers.{}.attention.wq.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.wk.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.wv.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attention.wq.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.{}.attention.wk.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.{}.attention.wv.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.{}.attention.q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.attention.k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "layers.{}.feed_forward.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.w2.weight": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.w3.weight": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
QUIET_NAMES = {  # ours -> the released Quiet-STaR's
    "start": "start_embedding",
    "end": "end_embedding",
    "mixer.0.weight": "talk_head.0.0.weight",
    "mixer.0.bias": "talk_head.0.0.bias",
    "mixer.2.weight": "talk_head.0.2.weight",
    "mixer.2.bias": "talk_head.0.2.bias",
    "mixer.4.weight": "talk_head.0.4.weight",
}
DRAWN_NAMES = {"end_output": "end_output_embedding"}  # ours; where thoughts end themselves
HEAD = "mixer."  # what names of the mixing head begin with
OWN_HEAD = "own_mixer"  # a setting in the checkpoint: the name of a head that is not the published
VECTORS = ("start", "end")  # stored as row 0 of [2, D]; row 1 was never used
INTERLEAVED = ("attention.wq.weight", "attention.wk.weight")  # in Mistral's own layout
IGNORED = re.compile(r"rotary_emb\.inv_freq$")  # a buffer of old files; follows from rope_theta


def meta_parameters(config: ModelConfig) -> dict[str, Tensor]:
    """Every parameter of a model by its name: shapes without memory."""
    with torch.device("meta"):
        return dict(Mistral(config).named_parameters())


def stored_name(name: str, layout: str) -> str:
    """Our name of a model's tensor -> its name in files of a layout (`hf` or `mistral`)."""
    if layout == "mistral":
        return name
    layer = re.match(r"layers\.(\d+)\.(.*)", name)
    return HF_NAMES[f"layers.{{}}.{layer[2]}"].format(layer[1]) if layer else HF_NAMES[name]


def has_own_head(settings: Mapping[str, Any] | None) -> bool:
    """Whether settings given to `save` say that the mixing head is not the published one."""
    return bool((settings or {}).get(OWN_HEAD))


def extra_names(names: Iterable[str], own: bool) -> dict[str, str]:
    """Our names of extras -> those in files; a mixing head of one's own keeps its names."""
    known = QUIET_NAMES | DRAWN_NAMES
    return {n: n if own and n.startswith(HEAD) else known.get(n, n) for n in names}


def stored_extras(stored: Collection[str], own: bool) -> dict[str, str]:
    """Our names of the extras that should be among some names in files -> those names."""
    drawn = {name for name, theirs in DRAWN_NAMES.items() if theirs in stored}
    head = {name for name in (stored if own else QUIET_NAMES) if name.startswith(HEAD)}
    return extra_names({*VECTORS, *head, *drawn}, own)


def holds_thoughts(stored: Collection[str]) -> bool:
    """Whether there are Quiet-STaR extras among some names in files."""
    return not set(QUIET_NAMES.values()).isdisjoint(stored)


Shapes = Mapping[str, Sequence[int] | None]  # by the name of a tensor; None: any


def _check(where: str, found: Shapes, expected: Shapes) -> None:
    """Strict both ways: count and name what is missing, unexpected or of another shape."""
    misfits = [
        f"{name}: expected {list(shape)}, found {list(found[name])}"
        for name, shape in sorted(expected.items())
        if shape is not None and name in found and tuple(shape) != tuple(found[name])
    ]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": misfits,
    }
    problems = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {kind} "
        f"({', '.join(names[:4])}{', ...' * (len(names) > 4)})"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise ValueError(f"{where}: {', '.join(problems)}; is this the model of its config file?")


# Reading


def stored_tensors(folder: str | Path) -> dict[str, shards.Stored]:
    """Every tensor of a checkpoint by its name in the file; reads headers only.

    Where an index names the file of a tensor, copies of it in other files do not count.

    Raises:
        ValueError: if files are missing, damaged, or hold a tensor twice or of another type.
    """
    folder = Path(folder)
    if layout_of(folder) == "mistral":
        files, listed = sorted(folder.glob(CONSOLIDATED)), {}
    else:
        files, listed = shards.files_of(folder, MODEL)
    if not files:
        raise ValueError(what_is_wrong(folder))
    stored = shards.headers(files, listed)
    return {name: tensor for name, tensor in stored.items() if not IGNORED.search(name)}


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
        parameters: our name -> destination, as of `meta_parameters`.
        extras: our name -> destination: `start`, `end` and those of the mixing head (HEAD), and of
            `DRAWN_NAMES` if the output vector of `<end>` shall be read; not touched if the folder
            has none.

    Returns:
        Whether the folder holds the Quiet-STaR extras.

    Raises:
        ValueError: listing missing, unexpected and mis-shaped tensors by their names in the files;
            naming one that is not finite, which shows after those before it were copied.
    """
    folder = Path(folder)
    layout, names, stored, quiet = _matched(folder, parameters, extras)
    ours = {**parameters, **(extras or {})} if quiet else parameters
    head_dim = read_model_config(folder).head_dim if layout == "mistral" else 0
    for file in sorted({stored[theirs].file for theirs in names}):
        with shards.open_file(file) as handle, torch.no_grad():
            for theirs, name in names.items():
                if stored[theirs].file == file:
                    source = handle.get_tensor(theirs)
                    half = head_dim // 2 if name.endswith(INTERLEAVED) else 0
                    source = source[0] if name in VECTORS else source
                    _copy(ours[name], source, half)
                    _check_finite(f"{file}: {theirs}", source, ours[name])
    return quiet


def check_shapes(folder: Path, config: ModelConfig) -> None:
    """Compare a language model's shapes with those in its files, before memory is taken.

    Raises:
        ValueError: as of `load_into`.
    """
    _matched(folder, meta_parameters(config), None)


def _matched(
    folder: Path, parameters: Mapping[str, Tensor], extras: Mapping[str, Tensor] | None
) -> tuple[str, dict[str, str], dict[str, shards.Stored], bool]:
    """Layout, names (in the files -> ours), what is stored, and whether extras are among it."""
    layout, stored = layout_of(folder), stored_tensors(folder)
    quiet = holds_thoughts(stored)
    ours = {**parameters, **(extras or {})} if quiet else parameters
    names = {stored_name(name, layout): name for name in parameters}  # in the files -> ours
    own = quiet and has_own_head(read_settings(folder))
    names |= {theirs: name for name, theirs in extra_names(ours.keys() - parameters, own).items()}
    if "output.weight" not in parameters:
        _tie(stored, names, layout)
    expected = dict.fromkeys(stored_extras(stored, own).values() if quiet else ())
    for theirs, name in names.items():
        expected[theirs] = (2,) * (name in VECTORS) + tuple(ours[name].shape)
    _check(str(folder), {theirs: stored[theirs].shape for theirs in stored}, expected)
    return layout, names, stored, quiet


def _tie(stored: dict[str, shards.Stored], names: dict[str, str], layout: str) -> None:
    """Read the head where it stands for the embedding; leave out one that repeats it."""
    head = stored_name("output.weight", layout)
    embedding = stored_name("tok_embeddings.weight", layout)
    if head in stored and embedding not in stored:
        names[head] = names.pop(embedding)
    elif head in stored:
        if not torch.equal(stored[head].read(head), stored[embedding].read(embedding)):
            raise ValueError(
                f"{stored[head].file}: expected no {head} or one equal to {embedding}, as the "
                "head is tied, found another; to use both, set tie_word_embeddings to false "
                "in the config file"
            )
        del stored[head]


def _copy(destination: Tensor, source: Tensor, half: int) -> None:
    assert not destination.is_meta
    if half:  # rows (2i, 2i + 1) of a head rotate together there, rows (i, i + half) here
        source = source.unflatten(0, (-1, half, 2)).transpose(1, 2)  # (heads, 2, half, D)
        destination = destination.unflatten(0, (-1, 2, half))
    destination.copy_(source)


def _check_finite(where: str, source: Tensor, destination: Tensor | Exact) -> None:
    """Refuse NaN and infinity, by the bounds of what was copied: one pass where it is now."""

    def finite(x: Tensor) -> bool:
        return not x.numel() or all(math.isfinite(bound) for bound in torch.aminmax(x))

    if finite(destination.rounded if isinstance(destination, Exact) else destination):
        return
    if finite(source):
        dtype = str(destination.dtype).removeprefix("torch.")
        raise ValueError(f"{where} has numbers that {dtype} cannot hold; use --dtype float32")
    raise ValueError(
        f"{where}: expected finite numbers, found NaN or infinity; get the file again, or take "
        "weights from before they were lost"
    )


# Writing


def save(
    folder: str | Path | None,
    config: ModelConfig,
    parameters: Mapping[str, Tensor],
    extras: Mapping[str, Tensor] | None = None,
    settings: dict[str, Any] | None = None,
    whole: Callable[[Tensor], Tensor] = Tensor.detach,
) -> None:
    """Write a checkpoint, flushed to disk, in files of 2 GiB at most; `config.json` comes last.

    Args:
        folder: made if missing; must hold no other weights. None: another process writes, and this
            one takes part in `whole`.
        config: shape of the model.
        parameters: our name -> tensor, as of `meta_parameters`; each keeps its dtype.
        extras: our name -> tensor, as of `load_into`, the vectors at their stored scale; None
            writes a plain language model.
        settings: plain values that `read_settings` gives back.
        whole: makes one tensor of one that is spread over processes.

    Raises:
        ValueError: if tensors are missing, unexpected or mis-shaped, or the folder holds weights.
        OSError: if the disk refuses.
    """
    folder = None if folder is None else Path(folder)
    if folder and (any(folder.glob("model*.safetensors*")) or any(folder.glob(CONSOLIDATED))):
        raise ValueError(f"{folder}: holds weights already; save into another folder")
    ours = {**parameters, **(extras or {})}
    expected = {name: parameter.shape for name, parameter in meta_parameters(config).items()}
    own = has_own_head(settings)
    if extras is not None:
        expected |= dict.fromkeys(stored_extras(extras, own))
        expected |= dict.fromkeys(VECTORS, (config.dim,))
        expected |= dict.fromkeys(extras.keys() & DRAWN_NAMES, (config.dim,))
    _check(str(folder), {name: tensor.shape for name, tensor in ours.items()}, expected)
    names = {stored_name(name, "hf"): name for name in parameters}
    names |= {theirs: name for name, theirs in extra_names(extras or (), own).items()}

    def stored(theirs: str) -> Tensor:
        tensor = whole(ours[names[theirs]])
        if names[theirs] in VECTORS:
            tensor = torch.stack([tensor, torch.zeros_like(tensor)])
        return tensor

    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    shards.write(folder, MODEL, {theirs: ours[name] for theirs, name in names.items()}, stored)
    if folder:
        dtype = str(parameters["tok_embeddings.weight"].dtype).removeprefix("torch.")
        write_model_config(folder, config, dtype, extras is not None, settings)


def digest(folder: Path) -> str:
    """A short name for what a checkpoint says: the same for the same files, wherever they are."""
    parts = []
    for path in sorted(folder.iterdir()):
        weights = path.suffix == ".safetensors" and not path.name.startswith(ONLY_TRAINING)
        if weights or path.name in ("config.json", "params.json", *TOKENIZER_FILES):
            parts.append(f"{path.name} {file_digest(path)}")
    return content_digest("\n".join(parts).encode())
