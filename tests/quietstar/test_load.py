"""build: what a checkpoint holds is what runs; only what it lacks is made new."""

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from checkpoints import filled_extras
from safetensors.torch import load_file, save_file
from tiny import DIM, POSITIONS, VOCAB, make, same_bits

from qs.config import Config, RunConfig, ThoughtConfig
from qs.inference.decoding import sayable_ids
from qs.model import __main__ as main
from qs.model import config as model_config
from qs.model import weights
from qs.model.config import ModelConfig
from qs.model.tokenizer import Tokenizer
from qs.quietstar.load import allocate, choose_placement, first_tokens, load, open_model
from qs.quietstar.shape import check_fits, read

CPU = choose_placement(RunConfig(device="cpu"))
SHORT = RunConfig(seq=16)  # rows that fit into the positions of the tiny models
SIGMOID = {"mix_weight": "sigmoid", "mix_space": "probability"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def extras():
    return filled_extras(DIM, seed=7)


def store(tiny, folder, extras, settings):
    """A checkpoint in the layout of Quiet-STaR."""
    shape = model_config.read_model_config(tiny.weights)
    parameters = main.random_parameters(shape, seed=3)
    weights.save(folder, shape, parameters, extras, settings)
    shutil.copy(tiny.weights / "tokenizer.model", folder)
    return folder


def extras_of(quiet):
    return {n: p.detach() for n, p in quiet.named_parameters() if not n.startswith("model.")}


# Start, end and mixing head


@pytest.mark.parametrize("settings", [{}, SIGMOID, {"embedding_scale": 7.0}])
def test_stored_vectors_and_mixing_head_come_back_bit_for_bit(tiny, tmp_path, extras, settings):
    config = ThoughtConfig(**settings)
    kept = {k: getattr(config, k) for k in ("embedding_scale", "mix_weight", "mix_space")}
    folder = store(tiny, tmp_path / "w", extras, kept)
    for seed in (0, 1):  # nothing is made new
        quiet, tokenizer = load(folder, Config(config, run=RunConfig(seq=16, seed=seed)), CPU)
        same_bits(extras_of(quiet), extras)
    assert tokenizer.hash == Tokenizer(tiny.tokenizer).hash
    parameters = main.random_parameters(model_config.read_model_config(folder), seed=3)
    same_bits({n: p.detach() for n, p in quiet.model.named_parameters()}, parameters)


def test_a_stored_temperature_is_measured_at_and_not_trained_at(tiny, tmp_path, extras):
    folder = store(tiny, tmp_path / "w", extras, {"sample_temperature": 0.3})
    for own, expected in (({}, 0.3), ({"sample_temperature": 2.0}, 2.0)):
        opened = open_model(str(folder), seq=16, device="cpu", **own)
        assert opened.quiet.config.sample_temperature == expected
    quiet, _ = load(folder, Config(run=RunConfig(seq=16)), CPU)
    assert quiet.config.sample_temperature == 1.0
    old = store(tiny, tmp_path / "old", extras, {"thoughts": 2})
    assert open_model(str(old), seq=16, device="cpu").config.thought.sample_temperature == 1.0


@pytest.mark.parametrize(("stored", "wanted"), [(100.0, 10.0), (4.0, 64.0)])
def test_another_embedding_scale_keeps_the_vectors_that_are_used(
    tiny, tmp_path, extras, stored, wanted
):
    settings = {"embedding_scale": stored, "mix_weight": "linear", "mix_space": "output"}
    folder = store(tiny, tmp_path / "w", extras, settings)
    quiet, _ = load(folder, Config(ThoughtConfig(embedding_scale=wanted), run=SHORT), CPU)
    for name in ("start", "end"):
        used = extras_of(quiet)[name] * wanted
        torch.testing.assert_close(used, extras[name] * stored, rtol=1e-6, atol=0)
        assert not torch.equal(extras_of(quiet)[name], extras[name])
    same_bits(dict(quiet.mixer.named_parameters()), {n[6:]: extras[n] for n in list(extras)[2:]})


DRAWN = ThoughtConfig(end="drawn", embedding_scale=10.0, end_text="plus")


def test_the_output_vector_of_a_drawn_end_comes_back_and_is_rescaled(tiny, tmp_path, extras):
    own = torch.arange(float(DIM))
    kept = {"embedding_scale": 10.0, "end": "drawn"}
    folder = store(tiny, tmp_path / "w", extras | {"end_output": own}, kept)
    quiet, _ = load(folder, Config(DRAWN, run=SHORT), CPU)
    same_bits(extras_of(quiet), extras | {"end_output": own})
    other = dataclasses.replace(DRAWN, embedding_scale=2.0)
    quiet, _ = load(folder, Config(other, run=SHORT), CPU)
    torch.testing.assert_close(quiet.end_row, own * 10)
    quiet, _ = load(folder, Config(dataclasses.replace(DRAWN, end="fixed"), run=SHORT), CPU)
    same_bits(extras_of(quiet), extras)  # it is left alone
    (folder / "config.json").unlink()
    shutil.copy(tiny.weights / "config.json", folder)
    quiet, _ = load(folder, Config(ThoughtConfig(), run=SHORT), CPU)
    same_bits(extras_of(quiet), extras)


def test_an_end_that_a_checkpoint_did_not_draw_begins_from_its_text(tiny, tmp_path, extras):
    folder = store(tiny, tmp_path / "w", extras, {"embedding_scale": 10.0, "end": "fixed"})
    for source, kept in ((folder, extras), (tiny.weights, {})):
        quiet, tokenizer = load(source, Config(DRAWN, run=SHORT), CPU)
        rows = quiet.model.head[first_tokens(tokenizer, "plus")]
        torch.testing.assert_close(quiet.end_row, rows.mean(0))
        same_bits({n: x for n, x in extras_of(quiet).items() if n in kept}, kept)


def test_a_checkpoint_that_lost_the_output_vector_of_its_end_is_refused(tiny, tmp_path, extras):
    folder = store(tiny, tmp_path / "w", extras, {"embedding_scale": 10.0, "end": "drawn"})
    with pytest.raises(ValueError, match=r"1 tensor missing \(end_output_embedding\)"):
        load(folder, Config(DRAWN, run=SHORT), CPU)


def test_the_released_layout_is_read_as_published(tiny, tmp_path, extras):
    folder = store(tiny, tmp_path / "w", extras, None)
    assert model_config.read_settings(folder) is None
    quiet, _ = load(folder, Config(ThoughtConfig(), run=SHORT), CPU)  # linear, output, scale 100
    same_bits(extras_of(quiet), extras)
    quiet, _ = load(folder, Config(ThoughtConfig(embedding_scale=50.0), run=SHORT), CPU)
    assert torch.equal(quiet.start, extras["start"] * 2)
    with pytest.raises(ValueError, match="trained with --mix-weight linear, got sigmoid"):
        load(folder, Config(ThoughtConfig(mix_weight="sigmoid"), run=SHORT), CPU)


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        ({}, {"mix_weight": "sigmoid"}, "trained with --mix-weight linear, got sigmoid"),
        (SIGMOID, {}, "trained with --mix-weight sigmoid, got linear"),
        (
            SIGMOID,
            {"mix_weight": "sigmoid"},
            "trained with --mix-space probability, got output",
        ),
    ],
)
def test_a_mixing_head_trained_for_another_mixing_is_refused(
    tiny, tmp_path, extras, stored, wanted, message
):
    config = dataclasses.asdict(ThoughtConfig(**stored))
    kept = {k: config[k] for k in ("embedding_scale", "mix_weight", "mix_space")}
    folder = store(tiny, tmp_path / "w", extras, kept)
    with pytest.raises(ValueError, match=message):
        load(folder, Config(ThoughtConfig(**wanted), run=SHORT), CPU)


def test_a_plain_checkpoint_begins_from_the_text_given_and_from_a_mixing_weight_of_zero(tiny):
    config = ThoughtConfig(start_text="plus", end_text="\n", embedding_scale=10.0)
    quiet, tokenizer = load(tiny.weights, Config(config, run=SHORT), CPU)
    table = load_file(tiny.weights / "model.safetensors")["model.embed_tokens.weight"]
    for vector, text in ((quiet.start, "plus"), (quiet.end, "\n")):
        ids = [i for i in tokenizer.encode(text) if tokenizer.decode([i]).strip() or text == "\n"]
        torch.testing.assert_close(vector.detach() * 10, table[ids].mean(0), rtol=1e-6, atol=1e-8)
    assert (quiet.mixer[4].weight == 0).all()


def test_what_is_made_new_depends_on_the_seed_and_on_nothing_else(tiny):
    state = torch.random.get_rng_state()
    first, second = (
        extras_of(load(tiny.weights, Config(run=RunConfig(seq=16, seed=4)), CPU)[0]) for _ in "ab"
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    same_bits(first, second)
    other = extras_of(load(tiny.weights, Config(run=RunConfig(seq=16, seed=5)), CPU)[0])
    assert not torch.equal(first["mixer.0.weight"], other["mixer.0.weight"])


def test_the_start_text_loses_the_bare_space_that_sentencepiece_puts_before_it(tiny):
    tokenizer = Tokenizer(tiny.tokenizer)
    ids = tokenizer.encode("---")
    assert tokenizer.decode(first_tokens(tokenizer, "---")) == "---"
    assert len(ids) == 4  # the space and each dash
    assert first_tokens(tokenizer, "---") == ids[1:]
    assert first_tokens(tokenizer, " ") == tokenizer.encode(" ")  # nothing else is left
    with pytest.raises(ValueError, match="--start-text and --end-text must not be empty"):
        first_tokens(tokenizer, "")


# Weights


def test_only_matrices_of_the_layers_are_kept_in_the_arithmetic_dtype(tiny, tmp_path):
    folder = shutil.copytree(tiny.weights, tmp_path / "w")
    (folder / "digests.json").unlink()
    stored = load_file(folder / "model.safetensors")
    halved = {name: tensor.bfloat16() for name, tensor in stored.items()}
    save_file(halved, folder / "model.safetensors")
    placement = choose_placement(RunConfig(device="cpu", dtype="bfloat16"))
    quiet, _ = load(folder, Config(ThoughtConfig(), run=SHORT), placement)
    for name, parameter in quiet.named_parameters():
        matrix = ".layers." in name and parameter.ndim > 1
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32)
    assert quiet.model.embed(torch.tensor([1])).dtype == torch.bfloat16
    table = quiet.model.tok_embeddings.weight.detach()
    assert torch.equal(table, halved["model.embed_tokens.weight"].float())


def exact(quiet):
    return {n: quiet.masters.get(n, p) for n, p in quiet.named_parameters()}


@pytest.mark.parametrize("where", ["device", "host", "halves"])
def test_a_loaded_model_has_its_float32_values_in_masters(tiny, where):
    config = Config(ThoughtConfig(), run=RunConfig(device="cpu", dtype="bfloat16", seq=16))
    placement = choose_placement(config.run)
    expected, _ = load(tiny.weights, config, dataclasses.replace(placement, narrow=False))
    offload, halves = where == "host", where == "halves"
    quiet, _ = load(tiny.weights, config, placement.for_training(offload, True, halves))
    values = {n: x.detach() for n, x in exact(quiet).items()}
    same_bits(values, dict(expected.named_parameters()))
    narrow = {n for n, p in quiet.named_parameters() if p.dtype == torch.bfloat16}
    assert narrow
    assert quiet.masters.keys() == (dict(quiet.named_parameters()).keys() if offload else narrow)
    for name, parameter in quiet.named_parameters():
        assert torch.equal(parameter, exact(expected)[name].to(parameter.dtype))
        assert parameter.grad_dtype == (parameter.dtype if halves else torch.float32)


def test_a_damaged_checkpoint_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.weights, tmp_path / "w")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model.safetensors: expected what digests.json says"):
        load(folder, Config(ThoughtConfig(), run=SHORT), CPU)
    (folder / "digests.json").unlink()  # as a download
    with pytest.raises(ValueError, match="model.safetensors: expected a safetensors file"):
        load(folder, Config(ThoughtConfig(), run=SHORT), CPU)


# What fits


SHAPE = ModelConfig(
    vocab_size=VOCAB, dim=DIM, layers=1, heads=2, kv_heads=1, head_dim=8, hidden_dim=8
)


@pytest.mark.parametrize("rows", [VOCAB, VOCAB + 2, VOCAB + 64])
def test_a_model_may_have_more_ids_than_its_tokenizer_and_never_fewer(tiny, rows):
    tokenizer = Tokenizer(tiny.tokenizer)
    check_fits(dataclasses.replace(SHAPE, vocab_size=rows), tokenizer, Config(), tiny.weights)
    fewer = dataclasses.replace(SHAPE, vocab_size=VOCAB - 1)
    message = f"the model has {VOCAB - 1} tokens, its tokenizer {VOCAB}; take both"
    with pytest.raises(ValueError, match=message):
        check_fits(fewer, tokenizer, Config(), tiny.weights)


def test_a_tokenizer_json_with_a_token_too_many_is_told_beside_the_model_that_fits(tiny, tmp_path):
    for file in tiny.weights.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    fewer = dataclasses.replace(SHAPE, vocab_size=VOCAB - 1)
    with pytest.raises(ValueError, match="or remove tokenizer.json if tokenizer.model beside it"):
        check_fits(fewer, Tokenizer(tiny.tokenizer), Config(), tmp_path)


def test_special_tokens_are_those_of_the_tokenizer(tiny, tmp_path):
    shutil.copytree(tiny.weights, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config | ids))
    shape, tokenizer = read(tmp_path, Config(run=SHORT))
    assert (tokenizer.bos_id, tokenizer.ends) == (1, (2, 1))
    assert (shape.bos_id, shape.eos_id, shape.other_ends, shape.pad_id) == (1, 2, (1,), 0)
    said = sayable_ids(shape, CPU.device).tolist()
    assert 0 not in said
    assert {1, 2} < set(said)


def test_ids_beyond_the_tokenizer_load_and_are_never_thought_or_said(tiny, tmp_path):
    shape = dataclasses.replace(
        model_config.read_model_config(tiny.weights), vocab_size=VOCAB + 5, tied=True
    )
    parameters = main.random_parameters(shape, seed=3)
    parameters["norm.weight"].zero_()  # all ids are equally likely
    weights.save(tmp_path, shape, parameters)
    shutil.copy(tiny.weights / "tokenizer.model", tmp_path)
    quiet, tokenizer = load(tmp_path, Config(ThoughtConfig(thoughts=4), run=SHORT), CPU)
    filling = set(range(VOCAB, VOCAB + 5))
    assert filling < set(quiet.model.config.forbidden)
    assert filling.isdisjoint(sayable_ids(quiet.model.config, CPU.device).tolist())
    documents = torch.zeros(1, 16, dtype=torch.long)
    tokens = torch.arange(260, 276)[None]
    anchors = torch.arange(16)[None]
    _, cache = quiet.base(tokens, documents)
    numbers = torch.linspace(0, 0.999, 16 * 8 * 4, dtype=torch.float64).view(1, 16, 8, 4)
    thoughts = quiet.sample(documents, anchors, cache, numbers, 1.0)
    drawn = set(thoughts.unique().tolist())
    assert drawn.isdisjoint(filling)
    assert len(drawn) > 250  # of 299: BOS is not drawn either


@pytest.mark.parametrize("objective", ["quiet", "plain"])
def test_a_row_and_its_longest_branch_fit_into_the_positions_of_the_model(tiny, objective):
    tokenizer = Tokenizer(tiny.tokenizer)
    shape = dataclasses.replace(SHAPE, max_positions=POSITIONS)
    # start, n thought tokens, end and m - 1 true tokens follow the last of T positions
    branch = 2 + 3 + 1 if objective == "quiet" else 0
    thought = ThoughtConfig(thoughts=2, ahead=3)
    for seq in (POSITIONS - branch, POSITIONS - branch + 1):
        config = Config(thought, run=RunConfig(objective=objective, seq=seq))
        if seq == POSITIONS - branch:
            check_fits(shape, tokenizer, config, tiny.weights)
        else:
            with pytest.raises(
                ValueError, match=f"--seq {seq} .*exceeds the {POSITIONS} positions"
            ):
                check_fits(shape, tokenizer, config, tiny.weights)


# Where it runs


def test_the_cpu_computes_eagerly_in_float32_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = choose_placement(RunConfig())
    assert (found.device.type, found.dtype, found.compile) == ("cpu", torch.float32, False)
    assert found.attention == "structured"
    assert str(found) == ("CPU, float32 arithmetic, float32 weights, structured attention, eager")
    told = choose_placement(RunConfig(dtype="bfloat16", compile=True))
    assert str(told) == (
        "CPU, bfloat16 arithmetic, bfloat16 weights, structured attention, compiled"
    )


def test_cuda_computes_in_compiled_bfloat16_with_flex_attention_unless_told_otherwise(monkeypatch):
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        found = choose_placement(RunConfig())
        eager = choose_placement(RunConfig(device="cuda", compile=False, dtype="float32"))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert (found.device.type, found.dtype, found.compile) == ("cuda", torch.bfloat16, True)
    assert found.attention == "flex"
    assert (eager.dtype, eager.compile, eager.attention) == (torch.float32, False, "structured")
    assert choose_placement(RunConfig(device="cpu")).device.type == "cpu"


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: this machine shows no CUDA device"):
        choose_placement(RunConfig(device="cuda"))


@pytest.mark.parametrize("size", [14, 258])
def test_heads_that_flex_attention_has_no_kernel_for_are_refused_before_compiling(size):
    shape = ModelConfig(9, dim=8, layers=1, heads=2, kv_heads=1, head_dim=size, hidden_dim=8)
    flex = dataclasses.replace(CPU, attention="flex")
    with pytest.raises(ValueError, match=f"heads of 16 to 256 .* found {size}: .*--no-compile"):
        allocate(shape, Config(), flex)
    for fits in (dataclasses.replace(shape, head_dim=16), dataclasses.replace(shape, head_dim=256)):
        allocate(fits, Config(), flex)
    allocate(shape, Config(), CPU)


def test_settings_of_a_checkpoint_are_plain_json(tiny, tmp_path, extras):
    kept = {"embedding_scale": 100.0, "mix_weight": "linear", "mix_space": "output"}
    folder = store(tiny, tmp_path / "w", extras, kept)
    assert json.loads((folder / "config.json").read_text())["quiet_star"] == kept


def test_shapes_are_compared_before_memory_is_taken(tiny, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny.weights, tmp_path / "w")
    (folder / "digests.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"intermediate_size": 10**6}))
    monkeypatch.setattr(sys.modules[load.__module__], "allocate", None)
    with pytest.raises(ValueError, match=r"6 tensors of another shape .*expected \[1000000, 16\]"):
        load(folder, Config(run=RunConfig(seq=16)), CPU)
