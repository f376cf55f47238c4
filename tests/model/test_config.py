"""config: a checkpoint's own file gives the model's shape, or says why it cannot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from checkpoints import SMALL, as_mistral, edit_json, filled
from safetensors.torch import save_file

from qs.model.config import read_model_config
from qs.model.rope_scaling import RopeScaling
from qs.model.weights import save

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint in one file, to be damaged."""
    save(tmp_path / "small", SMALL, filled(SMALL, 0))
    return tmp_path / "small"


def test_mistrals_own_config_is_read_with_its_defaults(folder):
    as_mistral(folder)
    assert read_model_config(folder) == SMALL
    edit_json(folder / "params.json", rope_theta=1e6, sliding_window=None, head_dim=...)
    with pytest.raises(ValueError, match="expected head_dim .* to be even, got 3"):
        read_model_config(folder)
    edit_json(folder / "params.json", dim=16)
    expected = dataclasses.replace(SMALL, rope_theta=1e6, window=None, dim=16, head_dim=4)
    assert read_model_config(folder) == expected


def test_newer_config_files_are_understood(folder):
    path = folder / "config.json"
    edit_json(path, rope_theta=..., rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    edit_json(path, eos_token_id=[2, 5, -1], pad_token_id=-1, rope_scaling=None)
    edit_json(path, architectures=...)
    expected = dataclasses.replace(SMALL, rope_theta=5e5, other_ends=(5,))
    assert read_model_config(folder) == expected
    edit_json(path, hidden_size=24, head_dim=None, num_key_value_heads=None, sliding_window=None)
    expected = dataclasses.replace(expected, dim=24, kv_heads=4, window=None)
    assert read_model_config(folder) == expected
    edit_json(path, head_dim=..., sliding_window=...)
    assert read_model_config(folder) == dataclasses.replace(expected, window=4096)  # as stock does


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mistral", {"kv_heads": 8, "window": 4096, "max_positions": 131072}),
        ("llama", {"kv_heads": 32, "max_positions": 2048}),
        ("qwen2", {"kv_heads": 32, "max_positions": 32768, "bos_id": None, "eos_id": None}),
        ("qwen3", {"kv_heads": 32, "max_positions": 32768, "bos_id": None, "head_dim": 128}),
    ],
)
def test_a_silent_config_means_what_stock_takes_for_its_family(tmp_path, family, expected):
    sizes = {"vocab_size": 9, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 8}
    values = sizes | {"num_attention_heads": 32, "model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_model_config(tmp_path)
    found = {name: getattr(config, name) for name in expected}
    assert found == expected
    assert config.head_dim == expected.get("head_dim", 2)
    assert (config.window, config.norm_eps, config.rope_theta, config.tied) == (
        *(expected.get("window"), 1e-6, 10000.0, False),
    )
    assert (config.qkv_bias, config.qk_norm) == (family == "qwen2", family == "qwen3")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llamas_rotary_scaling_is_read_and_written(folder, tmp_path, key):
    edit_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    edit_json(folder / "config.json", **{key: LLAMA3 | {"rope_theta": 5e5}})
    config = read_model_config(folder)
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert (config.family, config.rope_theta) == ("llama", 5e5)
    save(tmp_path / "again", config, filled(config, 0))
    assert read_model_config(tmp_path / "again") == config
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["rope_scaling"] == LLAMA3


def test_all_ids_that_end_a_text_are_read_and_written(folder, tmp_path):
    edit_json(folder / "config.json", eos_token_id=[5, 2, 7])
    config = read_model_config(folder)
    assert (config.eos_id, config.ends) == (5, (5, 2, 7))
    assert SMALL.ends == (2,)
    save(tmp_path / "again", config, filled(config, 0))
    assert read_model_config(tmp_path / "again") == config
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [5, 2, 7]


def test_ids_that_no_tokenizer_has_are_forbidden():
    config = dataclasses.replace(SMALL, pad_id=2, thought_ids=(4, 3), text_ids=9)
    assert config.forbidden == (1, 2, 3, 4, 9, 10)
    assert SMALL.forbidden == (1,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gemma"}, r"expected model_type mistral \(Mistral.*, found gemma"),
        ({"model_type": ...}, "expected model_type mistral .* found None"),
        ({"architectures": ["MistralModel"]}, "found mistral .*MistralModel"),
        ({"model_type": "llama"}, r"llama \(LlamaForCausalLM\).*, found llama .*MistralFor"),
        ({"hidden_act": "gelu"}, "expected hidden_act silu, found 'gelu'"),
        ({"hidden_size": ...}, "hidden_size missing"),
        ({"hidden_size": "64"}, r"expected dim \(hidden_size\) to be a whole number.* '64'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers.* at most 1024 and above 0, got 10"),
        ({"intermediate_size": 10**8}, "intermediate_size.* at most 1048576 and above 0, got 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers.* above 0, got 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads.* to divide 4 heads, got 3"),
        ({"head_dim": None, "hidden_size": 13}, "expected heads that divide 13, found 4"),
        ({"head_dim": 5}, "expected head_dim .* to be even, got 5"),
        ({"sliding_window": 0}, "sliding_window.* got 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps.* got None"),
        ({"rms_norm_eps": 10**299}, "rms_norm_eps.* at most 1e\\+30, got 1000"),
        ({"rms_norm_eps": 1e300}, "rms_norm_eps.* at most 1e\\+30, got 1e\\+300"),
        ({"rope_theta": 10**299}, "rope_theta.* at most 1e\\+30, got 1000"),
        ({"rope_theta": 0}, "rope_theta.* got 0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings.* true or false, got 1"),
        ({"bos_token_id": 11}, "bos_token_id.* below vocab_size 11, got 11"),
        ({"eos_token_id": [2, 11]}, r"ends \(eos_token_id\) .* 11, got \(2, 11\)"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            "expected no rope_scaling or one of type",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
            "low_freq_factor, high_.* missing",
        ),
        ({"rope_scaling": LLAMA3 | {"factor": 0}}, "expected numbers above 0, .*factor=0"),
        ({"rope_scaling": LLAMA3 | {"factor": 10**299}}, "expected numbers above 0, .*factor=1000"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor below high_freq_f"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "found .*sliding_attention"),
        ({"layer_types": 5}, "expected layer_types full_attention, found 5"),
        ({"layer_types": [["x"]]}, "expected layer_types full_attention, found"),
        ({"architectures": 5}, r"found mistral \(5\)"),
        ({"use_sliding_window": True}, "use_sliding_window set: unsupported"),
        ({"attention_bias": True}, "attention_bias set: unsupported"),
        ({"mlp_bias": True}, "mlp_bias set: unsupported"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping set"),
        ({"rope_scaling": "linear"}, "expected rope_scaling to be an object"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected no rope_parameters or"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: unsupported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config set: unsupported"),
        ({"use_weighted_talk_head": False}, "use_weighted_talk_head not as in the released"),
    ],
)
def test_a_config_of_another_model_is_refused_by_name(folder, values, message):
    edit_json(folder / "config.json", **values)
    with pytest.raises(ValueError, match=message) as error:
        read_model_config(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "expected JSON"), (b"[]", "expected a JSON object"), (b"\xff", "expected JSON")],
)
def test_a_damaged_config_is_refused(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_model_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json: expected a file with JSON"):
        read_model_config(folder)
    with pytest.raises(ValueError, match="expected a folder with a checkpoint"):
        read_model_config(folder / "none")


@pytest.mark.parametrize("ids", [{"<|startthought|>": 4}, {"startthought": 4, "endthought": 11}])
def test_thought_ids_that_cannot_be_are_refused(folder, ids):
    (folder / "added_tokens.json").write_text(json.dumps({"</s>": 2} | ids))
    with pytest.raises(ValueError, match="expected no thought ids, or a start and an end below"):
        read_model_config(folder)


def test_a_mixture_of_experts_is_refused(folder):
    as_mistral(folder)
    edit_json(folder / "params.json", moe={"num_experts": 8})
    with pytest.raises(ValueError, match="moe set: unsupported"):
        read_model_config(folder)
    edit_json(folder / "params.json", moe=..., n_heads=...)
    with pytest.raises(ValueError, match="n_heads missing"):
        read_model_config(folder)


def test_a_window_is_read_by_the_name_that_newer_params_give_it(folder):
    as_mistral(folder)
    edit_json(folder / "params.json", sliding_window=..., _sliding_window=6)
    assert read_model_config(folder).window == 6
    edit_json(folder / "params.json", _sliding_window=[None, 6])
    with pytest.raises(ValueError, match="expected window .*a whole number"):
        read_model_config(folder)


@pytest.mark.parametrize(("window", "theta"), [(None, 1e6), (4096, 1e4)])
def test_params_without_a_rotary_base_mean_what_mistrals_own_code_takes(tmp_path, window, theta):
    params = {"dim": 8, "n_layers": 1, "head_dim": 4, "hidden_dim": 8, "n_heads": 2}
    params |= {"n_kv_heads": 1, "norm_eps": 1e-5, "vocab_size": 9}
    params |= {} if window is None else {"sliding_window": window}
    (tmp_path / "params.json").write_text(json.dumps(params))
    save_file({}, tmp_path / "consolidated.safetensors")
    assert read_model_config(tmp_path).rope_theta == theta
