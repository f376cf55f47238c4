"""The shape of a model: `config.json` or `params.json` beside its tensors <-> ModelConfig.

`config.json` is Hugging Face's, `params.json` Mistral's own. What would make a checkpoint another
model than the one in `qs/model/mistral.py` is refused by name, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qs.atomic import write_text
from qs.files import read_object
from qs.model.folders import layout_of
from qs.model.rope_scaling import LARGEST_NUMBER, SCALING, RopeScaling
from qs.settings import MOST

REQUIRED = object()
LARGEST = {  # sizes of a model, far beyond any there is: a damaged file is not built for ever
    "vocab_size": 2**24,
    "dim": 2**17,
    "layers": 2**10,
    "heads": 2**12,
    "kv_heads": 2**12,
    "head_dim": 2**13,
    "hidden_dim": 2**20,
}


class Key(NamedTuple):
    """What a field is called in `config.json` and `params.json` (None: it does not say).

    `default` is what stock transformers takes where `config.json` is silent (see `FAMILIES`).
    """

    hf: str
    mistral: str | None
    default: Any = REQUIRED


FIELDS = {  # of ModelConfig
    "vocab_size": Key("vocab_size", "vocab_size"),
    "dim": Key("hidden_size", "dim"),
    "layers": Key("num_hidden_layers", "n_layers"),
    "heads": Key("num_attention_heads", "n_heads"),
    "kv_heads": Key("num_key_value_heads", "n_kv_heads", None),
    "head_dim": Key("head_dim", "head_dim", None),
    "hidden_dim": Key("intermediate_size", "hidden_dim"),
    "norm_eps": Key("rms_norm_eps", "norm_eps", 1e-6),
    "rope_theta": Key("rope_theta", "rope_theta", 10000.0),
    "window": Key("sliding_window", "sliding_window", None),
    "max_positions": Key("max_position_embeddings", None),
    "tied": Key("tie_word_embeddings", "tied_embeddings", False),
    "bos_id": Key("bos_token_id", None, 1),
    "eos_id": Key("eos_token_id", None, 2),
    "pad_id": Key("pad_token_id", None, None),
}
QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
QWEN |= {"bos_token_id": None, "eos_token_id": None}
FAMILIES = {  # model_type -> defaults of its own, besides those of FIELDS
    "mistral": {
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "llama": {"max_position_embeddings": 2048},
    "qwen2": QWEN,
    "qwen3": QWEN | {"head_dim": 128},
}
HF_CONSTANTS = {
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
UNSUPPORTED = (  # keys of either file that, set, make it another model
    *("attention_bias", "mlp_bias", "use_biases", "moe", "lora", "llama_4_scaling"),
    *("yarn", "quantization", "quantization_config", "vision_encoder"),
    *("use_sliding_window", "clip_qkv", "attn_logit_softcapping", "final_logit_softcapping"),
    *("logit_scale", "embedding_multiplier", "residual_multiplier", "attention_multiplier"),
)
ADDED_TOKENS = "added_tokens.json"
THOUGHT_MARKS = {"startthought": "<|startthought|>", "endthought": "<|endthought|>"}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model, read from its `config.json` or `params.json`.

    Attributes:
        family: one of `FAMILIES`; what distinguishes them is a property each.
        dim, layers, heads, kv_heads, head_dim, hidden_dim: sizes (D, -, H, G, d, inner width).
        window: sliding window in tokens, or None.
        rope_scaling: how rotation is slowed down, or None.
        max_positions: longest row in tokens that the checkpoint was made for.
        tied: whether the head is the embedding.
        eos_id: id that ends a document, or None.
        other_ends: further ids after which no text goes on (a chat format's end of a message).
        pad_id: id of padding, or None where the tokenizer has none.
        thought_ids: rows of the embedding that stand for thought marks in the released Quiet-STaR
            layout. They are not text: never encoded, never sampled.
        text_ids: ids from here on belong to no token of the tokenizer (the vocabulary is padded, or
            has tokens of a chat format): never sampled. None: all are text. Not in a checkpoint's
            file, but known where a tokenizer is (`quietstar.load.read`).

    Raises:
        ValueError: naming the first field from which no model can be built.
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
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    max_positions: int = 32768
    tied: bool = False
    bos_id: int | None = 1
    eos_id: int | None = 2
    pad_id: int | None = None
    thought_ids: tuple[int, ...] = ()
    family: str = "mistral"
    text_ids: int | None = None
    other_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.family == "mistral" or (self.family in FAMILIES and self.window is None)
        for name in (*LARGEST, "max_positions", *["window"] * (self.window is not None)):
            size, most = getattr(self, name), LARGEST.get(name, MOST)
            whole = type(size) is int and 0 < size <= most
            self._require(whole, name, f"to be a whole number, at most {most} and above 0")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            number = type(value) in (int, float) and 0 < value <= LARGEST_NUMBER
            what = f"to be a number above 0, at most {LARGEST_NUMBER:g}"
            self._require(number, name, what)
        self._require(type(self.tied) is bool, "tied", "to be true or false")
        below = f"below vocab_size {self.vocab_size}"
        for name in ("bos_id", "eos_id", "pad_id"):
            token = getattr(self, name)
            row = token is None or self._is_row(token)
            self._require(row, name, f"to be null or an id {below}")
        self._require(all(map(self._is_row, self.other_ends)), "ends", f"to be ids {below}")
        self._require(self.heads % self.kv_heads == 0, "kv_heads", f"to divide {self.heads} heads")
        self._require(self.head_dim % 2 == 0, "head_dim", "to be even")
        if len(self.thought_ids) not in (0, 2) or not all(map(self._is_row, self.thought_ids)):
            raise ValueError(
                f"expected no thought ids, or a start and an end {below}, got {self.thought_ids}"
            )

    def _require(self, good: bool, name: str, what: str) -> None:
        if not good:
            value, key = getattr(self, name), FIELDS["eos_id" if name == "ends" else name]
            raise ValueError(f"expected {name} ({key.hf}) {what}, got {value!r}")

    def _is_row(self, token: Any) -> bool:
        return type(token) is int and 0 <= token < self.vocab_size

    @property
    def shared(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether every query and key head is normalised before it is rotated."""
        return self.family == "qwen3"

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids after which a text that is written ends."""
        return self.other_ends if self.eos_id is None else (self.eos_id, *self.other_ends)

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Ids that a thought never holds: BOS, padding, the thought marks and what is no text."""
        filling = range(self.text_ids or self.vocab_size, self.vocab_size)
        special = {self.bos_id, self.pad_id, *self.thought_ids} - {None}
        return tuple(sorted(special.union(filling)))


def read_model_config(folder: str | Path) -> ModelConfig:
    """The shape of a checkpoint, from Hugging Face's `config.json` or Mistral's `params.json`.

    Ids of thought marks come from `added_tokens.json` beside it, start first. A negative id means
    that there is no such token.

    Raises:
        ValueError: if a file is missing or malformed, or describes no model that we can run.
    """
    folder = Path(folder)
    mistral = layout_of(folder) == "mistral"
    path, added = folder / ("params.json" if mistral else "config.json"), folder / ADDED_TOKENS
    values, tokens = read_object(path), read_object(added) if added.is_file() else {}
    marks = tuple(i for mark in THOUGHT_MARKS for name, i in tokens.items() if mark in name)
    try:
        fields = _mistral_fields(values) if mistral else _hf_fields(values)
        if unsupported := [key for key in UNSUPPORTED if values.get(key)]:
            raise ValueError(f"{', '.join(unsupported)} set: unsupported; use a plain model")
        dim, heads = fields["dim"], fields["heads"]
        if fields["head_dim"] is None:
            if type(dim) is not int or type(heads) is not int or heads < 1 or dim % heads:
                raise ValueError(f"expected heads that divide {dim!r}, found {heads!r}")
            fields["head_dim"] = dim // heads
        return ModelConfig(**fields, thought_ids=marks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Values by our names, given `names` (ours -> theirs)."""
    if missing := [name for name in names.values() if values.get(name, REQUIRED) is REQUIRED]:
        raise ValueError(f"{', '.join(missing)} missing; is this the file of a language model?")
    return {ours: values[theirs] for ours, theirs in names.items()}


def _mistral_fields(values: dict[str, Any]) -> dict[str, Any]:
    # newer files say _sliding_window
    values = {key.removeprefix("_"): value for key, value in values.items() if value is not None}
    # mistral-inference's rule: v0.1, which has a window, does not state its rotary base
    theta = 1e4 if "sliding_window" in values else 1e6
    defaults = {"head_dim": None, "sliding_window": None, "tied_embeddings": False}
    names = {ours: key.mistral for ours, key in FIELDS.items() if key.mistral}
    return _named(defaults | {"rope_theta": theta} | values, names)


def _architecture(family: str) -> str:
    return f"{family.capitalize()}ForCausalLM"


def _hf_fields(values: dict[str, Any]) -> dict[str, Any]:
    kind, names = str(values.get("model_type")), values.get("architectures")
    listed = names if isinstance(names, list) else [names]
    if kind not in FAMILIES or (names and _architecture(kind) not in listed):
        known = ", ".join(f"{kind} ({_architecture(kind)})" for kind in FAMILIES)
        raise ValueError(f"expected model_type {known}, found {kind} ({names}); no other is known")
    defaults = {key.hf: key.default for key in FIELDS.values()} | FAMILIES[kind]
    fields = _named(defaults | values, {ours: key.hf for ours, key in FIELDS.items()})
    fields["family"] = kind
    if fields["kv_heads"] is None:
        fields["kv_heads"] = fields["heads"]
    if kind != "mistral":
        fields["window"] = None  # stock Llama has none; Qwen's is off (see UNSUPPORTED)
    layers = values.get("layer_types") or []
    if other := [x for x in layers if x != "full_attention"] if type(layers) is list else layers:
        raise ValueError(f"expected layer_types full_attention, found {other!r:.60}")
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"expected {key} to be an object or null, found {rope!r}")
        rotary = rope.get("rope_type", rope.get("type", "default"))
        partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
        if partial not in (None, 1):
            raise ValueError(f"partial_rotary_factor {partial}: unsupported; use a plain model")
        if rotary not in ("default", "llama3"):
            raise ValueError(
                f"expected no {key} or one of type llama3, found {rope}; no other rotary is known"
            )
        fields["rope_theta"] = rope.get("rope_theta", fields["rope_theta"])
        if rotary == "llama3":
            fields["rope_scaling"] = RopeScaling(**_named(rope, SCALING))
    if (act := values.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"expected hidden_act silu, found {act!r}")
    if other := [key for key, flag in QUIET_FLAGS.items() if values.get(key, flag) != flag]:
        raise ValueError(f"{', '.join(other)} not as in the released Quiet-STaR model")
    for name in ("bos_id", "eos_id", "pad_id"):
        tokens = fields[name] if isinstance(fields[name], list) else [fields[name]]
        there = [token for token in tokens if not (isinstance(token, int) and token < 0)]
        fields[name], *others = there or [None]
        fields |= {"other_ends": tuple(others)} if name == "eos_id" else {}
    return fields


def write_model_config(
    folder: Path, config: ModelConfig, dtype: str, quiet: bool, settings: dict[str, Any] | None
) -> None:
    """Write `config.json` as stock transformers or the official Quiet-STaR expects it.

    Args:
        folder: gets `added_tokens.json` too if there are thought marks.
        config: the shape.
        dtype: of the tensors, such as `bfloat16`.
        quiet: whether the official Quiet-STaR is to read it.
        settings: what `read_settings` is to give back. `thoughts` (n) and `ahead` (m) among them
            also make `max_thoughts`, which is otherwise that of the released checkpoint.

    Raises:
        OSError: if the disk refuses.
    """
    values = {key.hf: getattr(config, ours) for ours, key in FIELDS.items()}
    values |= HF_CONSTANTS | {"torch_dtype": dtype}
    values |= {"eos_token_id": list(config.ends)} if config.other_ends else {}
    values |= {"model_type": config.family, "architectures": [_architecture(config.family)]}
    if scaling := config.rope_scaling:
        rope = {theirs: getattr(scaling, ours) for ours, theirs in SCALING.items()}
        values["rope_scaling"] = rope | {"rope_type": "llama3"}
    settings = settings or {}
    if quiet:
        n, m = settings.get("thoughts", 5), settings.get("ahead", 1)
        values |= QUIET_FLAGS | {"max_thoughts": (n + 3) + m + 1}  # n_ahead + n_ahead_talk + 1
    values |= {"quiet_star": settings} if settings else {}
    files = {"config.json": values}
    if config.thought_ids:
        marks = dict(zip(THOUGHT_MARKS.values(), config.thought_ids, strict=True))
        files = {ADDED_TOKENS: marks} | files
    for name, content in files.items():  # formatted as transformers does
        write_text(folder / name, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_settings(folder: str | Path) -> dict[str, Any] | None:
    """The settings given to `weights.save`; None where it was not us who wrote the checkpoint.

    Raises:
        ValueError: if the folder or its config file cannot be read.
    """
    folder = Path(folder)
    if layout_of(folder) == "mistral":
        return None
    path = folder / "config.json"
    settings = read_object(path).get("quiet_star")
    if not isinstance(settings, dict | None):
        raise ValueError(f"{path}: expected quiet_star to be an object, found {settings!r:.60}")
    return settings
