"""The shape of a checkpoint: `config.json` or `params.json` beside its tensors <-> ModelConfig.

`config.json` is Hugging Face's, `params.json` Mistral's own. What would make a checkpoint another
model than the one in `qs/model/mistral.py` is refused by name, never ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qs.files import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONSOLIDATED = "consolidated*.safetensors"
HF_FIELDS = {  # ours -> Hugging Face's
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "window": "sliding_window",
    "max_positions": "max_position_embeddings",
    "tied": "tie_word_embeddings",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
HF_DEFAULTS = {  # what stock transformers takes where a Mistral config.json is silent
    "num_key_value_heads": 8,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "hidden_act": "silu",
}
HF_CONSTANTS = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}
QUIET_FLAGS = {  # of the released Quiet-STaR: the one architecture we know
    "merged_talk_heads": True,
    "merged_lm_and_talk_heads": False,
    "merged_lm_and_think_heads": True,
    "use_concat_talk_head": True,
    "use_shallow_think": True,
    "use_shallow_talk": False,
    "use_complex_think_head": False,
    "use_complex_talk_head": True,
    "use_weighted_talk_head": True,
}
MISTRAL_FIELDS = {  # ours -> Mistral's
    "vocab_size": "vocab_size",
    "dim": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "hidden_dim": "hidden_dim",
    "norm_eps": "norm_eps",
}
MISTRAL_OPTIONAL = {
    "rope_theta": "rope_theta",
    "window": "sliding_window",
    "tied": "tied_embeddings",
}
UNSUPPORTED = (  # keys of either file that, set, make it another model
    *("attention_bias", "mlp_bias", "use_biases", "moe", "lora", "llama_4_scaling"),
    *("yarn", "quantization", "quantization_config", "vision_encoder"),
)
THOUGHT_MARKS = {"startthought": "<|startthought|>", "endthought": "<|endthought|>"}


def layout_of(folder: Path) -> Literal["hf", "mistral"]:
    """Whose layout a folder has; Hugging Face's where it has both.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a folder with a checkpoint, found none; see --weights"
        )
    if any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return "hf"
    own = any(folder.glob(CONSOLIDATED)) or not (folder / "config.json").is_file()
    return "mistral" if own and (folder / "params.json").is_file() else "hf"


def read_config(folder: str | Path) -> ModelConfig:
    """The shape of a checkpoint, from Hugging Face's `config.json` or Mistral's `params.json`.

    Ids of thought marks come from `added_tokens.json` beside it, start first. Of several
    end-of-text ids the first is taken. A negative id means that there is no such token.

    Raises:
        ValueError: if a file is missing or malformed, or describes no Mistral that we can run.
    """
    folder = Path(folder)
    own = layout_of(folder) == "mistral"
    path = folder / ("params.json" if own else "config.json")
    values = read_object(path)
    found = (_mistral_fields if own else _hf_fields)(path, values)
    if changed := [key for key in UNSUPPORTED if values.get(key)]:
        raise ValueError(f"{path}: {', '.join(changed)} set: unsupported; use a plain Mistral")
    if found.get("head_dim") is None:
        dim, heads = found["dim"], found["heads"]
        whole = type(dim) is int and type(heads) is int and heads > 0 and dim % heads == 0
        if not whole:
            raise ValueError(f"{path}: expected heads that divide {dim!r}, found {heads!r}")
        found["head_dim"] = dim // heads
    for name in ("bos_id", "eos_id", "pad_id"):
        if name in found:
            found[name] = _token_id(found[name])
    found["thought_ids"] = _thought_ids(folder / "added_tokens.json")
    return checked(ModelConfig(**found), str(path))


def _fields(path: Path, values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    if missing := [name for name in names.values() if name not in values]:
        raise ValueError(f"{path}: {', '.join(missing)} missing; is this the file of a Mistral?")
    return {ours: values[name] for ours, name in names.items()}


def _hf_fields(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    kind, names = values.get("model_type"), values.get("architectures") or ["MistralForCausalLM"]
    if kind != "mistral" or "MistralForCausalLM" not in names:
        raise ValueError(
            f"{path}: expected model_type mistral and architecture MistralForCausalLM, found "
            f"{kind} and {names}; only Mistral is supported"
        )
    values = HF_DEFAULTS | values
    found = _fields(path, values, HF_FIELDS)
    if found["kv_heads"] is None:
        found["kv_heads"] = found["heads"]
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{path}: expected {key} to be an object or null, found {rope!r}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
        if kind != "default" or partial not in (None, 1):
            raise ValueError(f"{path}: expected no {key}, found {rope}; only plain rotary is known")
        found["rope_theta"] = rope.get("rope_theta", found["rope_theta"])
    if values["hidden_act"] != "silu":
        raise ValueError(f"{path}: expected hidden_act silu, found {values['hidden_act']!r}")
    if other := [key for key, flag in QUIET_FLAGS.items() if values.get(key, flag) != flag]:
        raise ValueError(f"{path}: {', '.join(other)} not as in the released Quiet-STaR model")
    return found


def _mistral_fields(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    given = {o: n for o, n in MISTRAL_OPTIONAL.items() if values.get(n) is not None}
    if "rope_theta" not in given:  # mistral-inference's rule: v0.1, with a window, states none
        values = values | {"rope_theta": 1e4 if "window" in given else 1e6}
        given["rope_theta"] = "rope_theta"
    return _fields(path, {"head_dim": None} | values, MISTRAL_FIELDS | given)


def _token_id(value: Any) -> Any:
    value = value[0] if isinstance(value, list) and value else value
    return None if isinstance(value, int) and value < 0 else value


def _thought_ids(path: Path) -> tuple[int, ...]:
    added = read_object(path) if path.is_file() else {}
    return tuple(i for mark in THOUGHT_MARKS for name, i in added.items() if mark in name)


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """The same config, if a model can be built from it.

    Args:
        config: what was read.
        where: the file it was read from, for messages.

    Raises:
        ValueError: naming the first field that is out of range.
    """

    def require(good: bool, field: str, what: str) -> None:
        if not good:
            value = getattr(config, field)
            raise ValueError(
                f"{where}: expected {field} ({HF_FIELDS[field]}) {what}, got {value!r}"
            )

    for field in HF_FIELDS:
        value = getattr(config, field)
        if field in ("norm_eps", "rope_theta"):
            number = type(value) in (int, float) and 0 < value < math.inf
            require(number, field, "to be a number above 0")
        elif field == "tied":
            require(type(value) is bool, field, "to be true or false")
        elif field.endswith("_id"):
            row = value is None or (type(value) is int and 0 <= value < config.vocab_size)
            require(row, field, f"to be null or an id below vocab_size {config.vocab_size}")
        elif not (field == "window" and value is None):
            require(type(value) is int and value > 0, field, "to be a whole number above 0")
    require(config.heads % config.kv_heads == 0, "kv_heads", f"to divide {config.heads} heads")
    require(config.head_dim % 2 == 0, "head_dim", "to be even")
    ids = config.thought_ids
    if len(ids) not in (0, 2) or not all(
        type(i) is int and 0 <= i < config.vocab_size for i in ids
    ):
        raise ValueError(
            f"{where}: expected no thought ids, or a start and an end below vocab_size "
            f"{config.vocab_size}, got {ids}"
        )
    return config


def hf_json(
    config: ModelConfig, dtype: str, layout: str, settings: dict[str, Any] | None
) -> dict[str, Any]:
    """What `config.json` holds, as stock transformers or the official Quiet-STaR expects it.

    Args:
        config: the shape.
        dtype: of the tensors, such as `bfloat16`.
        layout: `hf` or `quietstar`.
        settings: what `read_settings` is to give back. `thoughts` (n) and `ahead` (m) among them
            also make `max_thoughts`, which is otherwise that of the released checkpoint.
    """
    values = {theirs: getattr(config, ours) for ours, theirs in HF_FIELDS.items()}
    values |= HF_CONSTANTS | {"torch_dtype": dtype}
    if layout == "quietstar":
        settings = settings or {}
        n, m = settings.get("thoughts", 5), settings.get("ahead", 1)
        values |= QUIET_FLAGS | {"max_thoughts": (n + 3) + m + 1}  # n_ahead + n_ahead_talk + 1
    return values | ({"quiet_star": settings} if settings else {})


def read_settings(folder: str | Path) -> dict[str, Any] | None:
    """The settings given to `weights.save`; None where it was not us who wrote the checkpoint.

    Raises:
        ValueError: if the folder or its config file cannot be read.
    """
    folder = Path(folder)
    return (
        None
        if layout_of(folder) == "mistral"
        else read_object(folder / "config.json").get("quiet_star")
    )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Mistral, read from the checkpoint's own `config.json` or `params.json`.

    Attributes:
        dim, layers, heads, kv_heads, head_dim, hidden_dim: sizes (D, -, H, G, d, inner width).
        window: sliding window in tokens, or None.
        max_positions: longest row in tokens that the checkpoint was made for.
        tied: whether the head is the embedding.
        pad_id: id of padding, or None where the tokenizer has none.
        thought_ids: rows of the embedding that stand for thought marks in the released Quiet-STaR
            layout. They are not text: never encoded, never sampled.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    window: int | None = None
    max_positions: int = 32768
    tied: bool = False
    bos_id: int | None = 1
    eos_id: int | None = 2
    pad_id: int | None = None
    thought_ids: tuple[int, ...] = ()

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Ids that a thought never holds: BOS, padding and the thought marks."""
        return tuple(sorted({i for i in (self.bos_id, self.pad_id, *self.thought_ids)} - {None}))
