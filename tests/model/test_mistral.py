"""model: our Mistral computes what the stock one computes, whatever layout its weights come in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from qs.model.config import FAMILIES, ModelConfig, read_model_config
from qs.model.mistral import Mistral
from qs.model.rope_scaling import RopeScaling
from qs.model.weights import load_into
from qs.quietstar.attention import Dense
from qs.quietstar.masks import Layout, dense_mask

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {  # folder of the weights -> folder of what stock Mistral computes from them
    "mistral_gqa": "mistral_gqa",
    "mistral_gqa_sharded": "mistral_gqa",
    "mistral_window": "mistral_window",
}
CLOSE = {"rtol": 1e-5, "atol": 2e-5}  # float32 rounds some outputs by that much


def loaded(folder: Path, **settings) -> Mistral:
    """A model with the weights of a folder."""
    model = Mistral(read_model_config(folder), **settings)
    load_into(folder, dict(model.named_parameters()))
    return model


def outputs_of(model: Mistral, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Outputs (B, T, D) of a plain causal pass; mask (B, T) is 0 at padding."""
    documents = torch.zeros_like(tokens) if mask is None else mask - 1
    text = Layout(documents, tokens[:, :0], 1, 1).text
    seen = dense_mask(text, text, model.config.window)
    return model(model.embed(tokens), text.position, Dense(seen))


def loss_of(model: Mistral, tokens: Tensor) -> Tensor:
    """Mean NLL in nats of the next token."""
    logits = model.logits(outputs_of(model, tokens))[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def small_config(**changes) -> ModelConfig:
    """A model of two layers with grouped heads whose size is not D / H."""
    sizes = {"vocab_size": 23, "dim": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
    return ModelConfig(**(sizes | {"hidden_dim": 20, "window": 3} | changes))


def random_model(config: ModelConfig, seed: int = 0, **settings) -> Mistral:
    """A model with N(0, 0.3) parameters, large enough that every part of it matters."""
    model = Mistral(config, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def naive_logits(model: Mistral, tokens: list[int]) -> Tensor:
    """Logits (T, V) of one row, one position and one head at a time, from the definition."""
    c, w = model.config, dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        return w[name] * x / (x.pow(2).mean() + c.norm_eps).sqrt()

    def slowed(frequency: float) -> float:
        if (s := c.rope_scaling) is None:
            return frequency
        wavelength = 2 * math.pi / frequency
        if wavelength < s.original_positions / s.high:
            return frequency
        if wavelength > s.original_positions / s.low:
            return frequency / s.factor
        smooth = (s.original_positions / wavelength - s.low) / (s.high - s.low)
        return (1 - smooth) * frequency / s.factor + smooth * frequency

    def projected(x: Tensor, prefix: str, which: str) -> Tensor:
        out = w[f"{prefix}w{which}.weight"] @ x
        if c.family == "qwen2":
            out = out + w[f"{prefix}w{which}.bias"]
        heads = out.view(-1, c.head_dim)
        if c.family == "qwen3" and which != "v":
            heads = torch.stack([norm(head, f"{prefix}{which}_norm.weight") for head in heads])
        return heads

    def turned(x: Tensor, position: int) -> Tensor:
        out, half = x.clone(), c.head_dim // 2
        for i in range(half):
            angle = position * slowed(c.rope_theta ** (-2 * i / c.head_dim))
            cos, sin = math.cos(angle), math.sin(angle)
            out[i] = x[i] * cos - x[i + half] * sin
            out[i + half] = x[i + half] * cos + x[i] * sin
        return out

    stream = [w["tok_embeddings.weight"][token] for token in tokens]
    for layer in range(c.layers):
        p = f"layers.{layer}."
        normed = [norm(x, p + "attention_norm.weight") for x in stream]
        q, k, v = ([projected(x, p + "attention.", which) for x in normed] for which in "qkv")
        for t in range(len(tokens)):
            first = 0 if c.window is None else max(0, t - c.window + 1)
            heads = []
            for head in range(c.heads):
                group = head * c.kv_heads // c.heads
                query = turned(q[t][head], t)
                scores = [query @ turned(k[j][group], j) for j in range(first, t + 1)]
                weights = (torch.stack(scores) / math.sqrt(c.head_dim)).softmax(0)
                heads.append(sum(a * v[first + j][group] for j, a in enumerate(weights)))
            stream[t] = stream[t] + w[p + "attention.wo.weight"] @ torch.cat(heads)
        for t, x in enumerate(stream):
            x = norm(x, p + "ffn_norm.weight")
            gate, up = (w[f"{p}feed_forward.{m}.weight"] @ x for m in ("w1", "w3"))
            mixed = gate * torch.sigmoid(gate) * up
            stream[t] = stream[t] + w[p + "feed_forward.w2.weight"] @ mixed
    head = w["tok_embeddings.weight"] if c.tied else w["output.weight"]
    return torch.stack([head @ norm(x, "norm.weight") for x in stream])


def consolidated(source: Path, folder: Path, files: int) -> None:
    """Write a Hugging Face folder again in Mistral's own layout, in some number of files."""
    theirs = json.loads((source / "config.json").read_text())
    heads, dim = theirs["num_attention_heads"], theirs["hidden_size"]
    params = {
        "dim": dim,
        "n_layers": theirs["num_hidden_layers"],
        "head_dim": dim // heads,
        "hidden_dim": theirs["intermediate_size"],
        "n_heads": heads,
        "n_kv_heads": theirs["num_key_value_heads"],
        "norm_eps": theirs["rms_norm_eps"],
        "vocab_size": theirs["vocab_size"],
        "rope_theta": theirs["rope_theta"],
        "sliding_window": theirs["sliding_window"],
    }
    renamed = {
        "model.embed_tokens": "tok_embeddings",
        "model.": "",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "lm_head": "output",
    }
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name.endswith(("wq.weight", "wk.weight")):
            # Neighbours rotate together there: rows 0, d/2, 1, d/2 + 1, ... of every head.
            half = params["head_dim"] // 2
            order = [row for i in range(half) for row in (i, i + half)]
            tensor = tensor.view(-1, 2 * half, dim)[:, order].reshape(-1, dim)
        tensors[name] = tensor.contiguous()
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    names = sorted(tensors)
    for i in range(files):
        part = {name: tensors[name] for name in names[i::files]}
        end = "" if files == 1 else f"-{i + 1:05}-of-{files:05}"
        save_file(part, folder / f"consolidated{end}.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_logits_and_loss_equal_those_of_stock_mistral(case):
    golden = load_file(GOLDEN / CASES[case] / "golden_outputs.safetensors")
    model, tokens = loaded(GOLDEN / case), golden["input_ids"]
    entering = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        outputs = outputs_of(model, tokens)
        logits = model.logits(outputs)
    for index, hidden in enumerate([*entering, outputs]):
        torch.testing.assert_close(hidden, golden[f"hidden_{index}"], **CLOSE)
    torch.testing.assert_close(outputs, golden["last_hidden"], **CLOSE)
    torch.testing.assert_close(logits, golden["logits"], **CLOSE)
    torch.testing.assert_close(loss_of(model, tokens), golden["loss"], **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_padding_on_the_right_changes_no_logit_of_the_text(case):
    golden = load_file(GOLDEN / CASES[case] / "golden_outputs.safetensors")
    model, mask = loaded(GOLDEN / case), golden["attention_mask_rightpad"]
    text = mask.bool()
    assert not text.all()
    with torch.no_grad():
        logits = model.logits(outputs_of(model, golden["input_ids"], mask))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[text], golden["logits_rightpad"][text], **CLOSE)


@pytest.mark.parametrize("case", ["mistral_gqa", "mistral_window"])
@pytest.mark.parametrize("files", [1, 3])
def test_both_layouts_of_one_model_give_equal_logits(case, files, tmp_path):
    consolidated(GOLDEN / case, tmp_path / "own", files)
    tokens = load_file(GOLDEN / case / "golden_outputs.safetensors")["input_ids"]
    one, other = loaded(GOLDEN / case), loaded(tmp_path / "own")
    assert replace(other.config, max_positions=512) == one.config
    with torch.no_grad():
        logits = [model.logits(outputs_of(model, tokens)) for model in (one, other)]
    assert torch.equal(*logits)


def test_a_window_hides_what_is_as_far_back_as_it_is_long():
    golden = load_file(GOLDEN / "mistral_window" / "golden_outputs.safetensors")
    model, tokens = loaded(GOLDEN / "mistral_window"), golden["input_ids"]
    window, layers = model.config.window, model.config.layers
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % model.config.vocab_size
    reach = layers * (window - 1)  # each layer carries the first token this much further
    with torch.no_grad():
        same = (outputs_of(model, tokens) == outputs_of(model, changed)).all(2)
    assert not same[:, : reach + 1].any()
    assert same[:, reach + 1 :].all()


@given(
    groups=st.integers(1, 2),
    shared=st.integers(1, 2),
    half=st.integers(1, 3),
    window=st.none() | st.integers(1, 6),
    tied=st.booleans(),
    family=st.sampled_from(sorted(FAMILIES)),
    scaling=st.none() | st.builds(RopeScaling, *map(st.just, (8.0, 0.1, 0.5)), st.integers(1, 9)),
    layers=st.integers(1, 2),
    length=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_logits_equal_those_of_the_definition(
    groups, shared, half, window, tied, family, scaling, layers, length, seed
):
    config = small_config(
        kv_heads=groups,
        heads=groups * shared,
        head_dim=2 * half,
        window=window if family == "mistral" else None,
        tied=tied,
        family=family,
        rope_scaling=scaling,
        layers=layers,
        norm_eps=1e-3,
        rope_theta=100.0,
    )
    model = random_model(config, seed, compute_dtype=torch.float64).double()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        logits = model.logits(outputs_of(model, tokens))
        expected = naive_logits(model, tokens[0].tolist())
    torch.testing.assert_close(logits[0], expected, rtol=1e-10, atol=1e-10)


def test_bfloat16_arithmetic_on_float32_weights_gives_float32_logits_close_to_exact():
    golden = load_file(GOLDEN / "mistral_gqa" / "golden_outputs.safetensors")
    model = loaded(GOLDEN / "mistral_gqa", compute_dtype=torch.bfloat16)
    outputs = outputs_of(model, golden["input_ids"])
    logits = model.logits(outputs)
    assert outputs.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    error = (logits - golden["logits"]).pow(2).mean().sqrt()
    assert 0 < error < 0.05 * golden["logits"].pow(2).mean().sqrt()
    loss_of(model, golden["input_ids"]).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reaches_every_parameter(tied, family):
    model = random_model(small_config(tied=tied, family=family, window=None))
    loss_of(model, torch.arange(23).repeat(1, 2)).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_layers_changes_no_gradient(dtype):
    tokens = torch.arange(20).view(2, 10)
    gradients = []
    for recompute in (False, True):
        model = random_model(small_config(), compute_dtype=dtype, recompute=recompute)
        runs = []
        model.layers[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        loss_of(model, tokens).backward()
        assert len(runs) == 1 + recompute
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_tied_head_is_the_embedding_and_equals_an_untied_copy_of_it():
    tied = random_model(small_config(tied=True))
    untied = Mistral(small_config())
    values = tied.state_dict()
    assert "output.weight" not in values
    untied.load_state_dict(values | {"output.weight": values["tok_embeddings.weight"]})
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(*(m.logits(outputs_of(m, tokens)) for m in (tied, untied)))
    for model in (tied, untied):
        loss_of(model, tokens).backward()
    both = untied.tok_embeddings.weight.grad + untied.output.weight.grad
    torch.testing.assert_close(tied.tok_embeddings.weight.grad, both)
