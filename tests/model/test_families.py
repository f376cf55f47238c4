"""families: Llama, Mistral, Qwen2 and Qwen3 compute what stock transformers computes, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same_bits
from golden.record_families import CASES, FOLDER, stock_model, tokens
from safetensors.torch import load_file
from torch import Tensor

from qs.model import __main__ as main
from qs.model.config import read_model_config
from qs.model.mistral import Mistral
from qs.model.weights import load_into
from qs.quietstar.attention import Dense
from qs.quietstar.masks import Layout, dense_mask

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def our_logits(folder: Path, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of a plain causal pass in float32."""
    model = Mistral(read_model_config(folder))
    load_into(folder, dict(model.named_parameters()))
    text = Layout(torch.zeros_like(ids), ids[:, :0], 1, 1).text
    with torch.no_grad():
        attend = Dense(dense_mask(text, text, model.config.window))
        return model.logits(model(model.embed(ids), text.position, attend))


def exported(folder: Path, out: Path) -> Path:
    """The folder that our command writes of one."""
    assert main.main(["export", str(folder), "--layout", "hf", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_recorded_ones_of_stock_transformers(case):
    golden = load_file(FOLDER / case / "golden_outputs.safetensors")
    logits = our_logits(FOLDER / case, golden["input_ids"])
    torch.testing.assert_close(logits, golden["logits"], **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_export_writes_the_same_family_tensors_and_settings(case, tmp_path):
    out = exported(FOLDER / case, tmp_path / "out")
    stock = load_file(FOLDER / case / "model.safetensors")
    assert_same_bits(load_file(out / "model.safetensors"), stock)
    theirs, written = (json.loads((f / "config.json").read_text()) for f in (FOLDER / case, out))
    # as transformers 4 calls them; 5 reads both
    rope = theirs.pop("rope_parameters")
    theirs |= {"torch_dtype": theirs.pop("dtype"), "rope_theta": rope.pop("rope_theta")}
    theirs |= {} if rope["rope_type"] == "default" else {"rope_scaling": rope}
    silent = ("transformers_version", "pretraining_tp", "layer_types", "max_window_layers")
    silent += ("attention_bias", "mlp_bias", "use_sliding_window")  # what is left out is off
    theirs = {key: value for key, value in theirs.items() if key not in silent}
    assert {key: written.get(key) for key in theirs} == theirs
    assert read_model_config(out) == read_model_config(FOLDER / case)


@pytest.mark.filterwarnings("default")  # those of another package are its own
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [10, 11])
def test_stock_transformers_computes_the_same_before_and_after_export(case, seed, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install 'qs[families]'")
    stock, ids = stock_model(case, seed), tokens(seed)
    stock.save_pretrained(tmp_path / "stock")
    out = exported(tmp_path / "stock", tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(again) is type(stock)
    with torch.no_grad():
        expected = stock(ids).logits
        torch.testing.assert_close(again(ids).logits, expected, **CLOSE)
    torch.testing.assert_close(our_logits(tmp_path / "stock", ids), expected, **CLOSE)
