"""weights: what is written is read back bit for bit, and no command leaves half a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, as_mistral, assert_same_bits, blank, filled
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qs.model import __main__ as main
from qs.model import weights
from qs.model.config import ModelConfig, read_config, read_settings
from qs.model.tensors import DTYPES, extra_shapes, load_into, shapes, stored_tensors
from qs.model.tokenizer import train_tokenizer
from qs.model.weights import resolve, save

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint in one file, to be damaged."""
    save(tmp_path / "small", SMALL, filled(shapes(SMALL), 0))
    return tmp_path / "small"


@given(
    groups=st.integers(1, 2),
    shared=st.integers(1, 3),
    half=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    layers=st.sampled_from([1, 2, 11]),
    tied=st.booleans(),
    window=st.none() | st.integers(1, 9),
    marked=st.booleans(),
    quiet=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    limit=st.sampled_from([200, 1000, 5_000_000_000]),
    seed=st.integers(0, 2**32),
)
def test_a_model_written_and_read_again_is_bit_identical(
    groups, shared, half, sizes, layers, tied, window, marked, quiet, dtype, limit, seed
):
    config = ModelConfig(
        vocab_size=sizes[0] + 4,
        dim=sizes[1],
        hidden_dim=sizes[2],
        layers=layers,
        heads=groups * shared,
        kv_heads=groups,
        head_dim=2 * half,
        tied=tied,
        window=window,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=77,
        bos_id=None,
        eos_id=3,
        pad_id=0,
        thought_ids=(4, 3) if marked else (),
    )
    written = filled(shapes(config), seed, dtype)
    extras = filled(extra_shapes(config.dim), seed + 1, dtype) if quiet else None
    settings = {"embedding_scale": 100.0, "thoughts": 9, "ahead": 4} if quiet else None
    with tempfile.TemporaryDirectory() as name:
        layout = "quietstar" if quiet else "hf"
        save(name, config, written, extras, settings, layout, max_shard_bytes=limit)
        assert read_config(name) == config
        assert read_settings(name) == settings
        read, more = blank(written), blank(extras) if quiet else None
        assert load_into(name, read, more) is quiet
        stored = list(stored_tensors(name).values())
    assert_same_bits(read, written)
    if quiet:
        assert_same_bits(more, extras)
    assert {DTYPES[s.dtype] for s in stored} == {dtype}
    for file in {s.file for s in stored}:
        sizes = [math.prod(s.shape) * dtype.itemsize for s in stored if s.file == file]
        assert sum(sizes) <= limit or len(sizes) == 1
    assert limit < 1e9 or {s.file.name for s in stored} == {"model.safetensors"}


@pytest.mark.parametrize("case", ["mistral_gqa", "mistral_gqa_sharded", "mistral_window"])
def test_a_stock_checkpoint_is_written_again_as_it_was(case, tmp_path):
    config = read_config(GOLDEN / case)
    parameters = {n: torch.empty(shape) for n, shape in shapes(config).items()}
    load_into(GOLDEN / case, parameters)
    save(tmp_path, config, parameters, max_shard_bytes=110_000)
    shards = {
        f.name: load_file(f) for f in (GOLDEN / case).glob("model*.safetensors") if f.is_file()
    }
    stock = {n: t for shard in shards.values() for n, t in shard.items()}
    ours = {n: t for f in tmp_path.glob("model*.safetensors") for n, t in load_file(f).items()}
    assert_same_bits(ours, stock)
    theirs = json.loads((GOLDEN / case / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    assert {k: written.get(k) for k in theirs} | {"transformers_version": "4.37.2"} == theirs
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stock.values())
    assert index["weight_map"].keys() == stock.keys()
    assert {f.stat().st_mode & 0o777 for f in tmp_path.glob("*.safetensors")} == {0o644}


def test_the_released_quietstar_layout_is_read_and_written(tmp_path):
    official = load_file(GOLDEN / "qs1_min.safetensors")
    official = {n[2:]: t for n, t in official.items() if n.startswith("w/")}
    for name in ("start_embedding", "end_embedding"):
        official[name][1] = 0  # never used; we write zeros there
    facts = json.loads((GOLDEN / "qs1_min.json").read_text())
    config = ModelConfig(
        vocab_size=facts["V"],
        dim=facts["h"],
        layers=facts["layers"],
        heads=facts["heads"],
        kv_heads=facts["kv"],
        head_dim=facts["h"] // facts["heads"],
        hidden_dim=facts["inter"],
        norm_eps=facts["rms_norm_eps"],
        thought_ids=(facts["start_id"], facts["end_id"]),
    )
    given = tmp_path / "given"
    save(given, config, filled(shapes(config), 0))
    save_file(official, given / "model.safetensors")
    parameters, extras = blank(filled(shapes(config), 0)), blank(filled(extra_shapes(32), 0))
    assert load_into(given, parameters) is True  # the plain language model of it
    assert load_into(given, parameters, extras) is True
    assert read_settings(given) is None
    assert read_config(given).thought_ids == (95, 96)
    assert torch.equal(extras["start"], official["start_embedding"][0])
    save(tmp_path / "again", config, parameters, extras, layout="quietstar")
    assert_same_bits(load_file(tmp_path / "again" / "model.safetensors"), official)
    flags = json.loads((tmp_path / "again" / "config.json").read_text())
    assert flags["max_thoughts"] == 10
    released = ("merged_talk_heads", "merged_lm_and_think_heads", "use_concat_talk_head")
    released += ("use_shallow_think", "use_complex_talk_head", "use_weighted_talk_head")
    assert all(flags[name] is True for name in released)
    added = json.loads((tmp_path / "again" / "added_tokens.json").read_text())
    assert added == {"<|startthought|>": 95, "<|endthought|>": 96}


def test_save_refuses_what_could_not_be_read_back(folder, tmp_path):
    parameters, extras = filled(shapes(SMALL), 0), filled(extra_shapes(12), 0)
    with pytest.raises(ValueError, match="holds weights already"):
        save(folder, SMALL, parameters)
    for layout, more in (("hf", extras), ("quietstar", None), ("other", None)):
        with pytest.raises(ValueError, match="expected layout hf without extras or quietstar with"):
            save(tmp_path / "x", SMALL, parameters, more, layout=layout)
    wrong = {n: t for n, t in parameters.items() if n != "norm.weight"}
    with pytest.raises(ValueError, match=r"1 tensor missing \(norm.weight\)"):
        save(tmp_path / "x", SMALL, wrong)
    with pytest.raises(ValueError, match=r"another shape or type \(norm.weight: \[3\]"):
        save(tmp_path / "x", SMALL, parameters | {"norm.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="expected no thought ids"):
        save(tmp_path / "x", dataclasses.replace(SMALL, thought_ids=(1,)), parameters)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise weights.SafetensorError("No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="model.safetensors: cannot be written: No space left"):
        save(tmp_path, SMALL, filled(shapes(SMALL), 0))
    assert not (tmp_path / "config.json").exists()


def run_folder(root: Path) -> Path:
    """A run with two complete steps, one without a config, one without weights, one aside."""
    run = root / "run"
    (run / "step_000100").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for seed, step in enumerate(("step_000090", "step_000100", "step_000110.partial-1")):
        extras = filled(extra_shapes(12), seed + 10)
        settings = {"embedding_scale": 100.0}
        save(run / step, SMALL, filled(shapes(SMALL), seed), extras, settings, "quietstar")
        save_file({"x": torch.ones(1)}, run / step / "optimizer.safetensors")
        (run / step / "tokenizer.model").write_bytes(b"model")
    (run / "step_000120").mkdir()
    (run / "step_000120" / "model.safetensors").touch()
    (run / "step_000130").mkdir()
    (run / "step_000130" / "config.json").touch()
    (run / "step_000130" / "optimizer.safetensors").touch()
    return run


def test_names_resolve_to_folders_and_runs_to_their_newest_complete_step(tmp_path):
    run = run_folder(tmp_path)
    step = run / "step_000100"
    assert resolve(run) == resolve(str(run)) == resolve("run", root=tmp_path) == step
    assert resolve(step) == step
    (tmp_path / "unfinished" / "step_000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected a run with a complete step"):
        resolve("unfinished", root=tmp_path)


def test_a_missing_checkpoint_is_refused_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(ValueError, match="nothing: expected a checkpoint, found no such folder"):
        resolve("nothing", root=tmp_path)
    for name, command in {
        "mistral-7b": "hf download mistralai/Mistral-7B-v0.1 --local-dir weights/mistral-7b "
        "--include '*.json' --include tokenizer.model --include 'model-*.safetensors'",
        "quietstar-8-ahead": "hf download ezelikman/quietstar-8-ahead "
        "--local-dir weights/quietstar-8-ahead",
    }.items():
        with pytest.raises(ValueError, match=re.escape(command) + "$"):
            resolve(name, root=tmp_path)


def test_init_writes_a_model_of_the_tokenizers_vocabulary(tmp_path, capsys):
    tokenizer = train_tokenizer(["one two three four five " * 20], tmp_path / "t", 300)
    out = tmp_path / "deep" / "new"
    command = ["init", "--out", str(out), "--tokenizer", str(tmp_path / "t"), "--seed", "5"]
    sizes = "--dim 64 --layers 8 --heads 4 --kv-heads 2 --hidden-dim 96 --max-positions 99"
    assert main.main([*command, *sizes.split(), "--window", "50", "--tied"]) == 0
    config = read_config(out)
    assert config == ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=64,
        layers=8,
        heads=4,
        kv_heads=2,
        head_dim=16,
        hidden_dim=96,
        window=50,
        max_positions=99,
        tied=True,
    )
    read = {n: torch.empty(shape) for n, shape in shapes(config).items()}
    assert load_into(out, read) is False
    assert_same_bits(read, main.random_parameters(config, 5))
    assert (out / "tokenizer.model").read_bytes() == (tmp_path / "t/tokenizer.model").read_bytes()
    assert "parameters" in capsys.readouterr().out


def test_random_parameters_have_the_stated_spread_and_follow_the_seed():
    config = dataclasses.replace(SMALL, vocab_size=300, dim=64, hidden_dim=96, layers=8)
    one, same, other = (main.random_parameters(config, seed) for seed in (1, 1, 2))
    assert_same_bits(one, same)
    assert not torch.equal(one["tok_embeddings.weight"], other["tok_embeddings.weight"])
    for name, tensor in one.items():
        if tensor.dim() == 1:
            assert (tensor == 1).all()
        else:
            spread = 0.02 / 4 if re.search(r"\b(wo|w2)\b", name) else 0.02
            assert tensor.std() == pytest.approx(spread, rel=0.1), name


def test_export_writes_the_newest_step_of_a_run_in_either_layout(tmp_path):
    run, step = run_folder(tmp_path), filled(shapes(SMALL), 1)
    out = tmp_path / "hf"
    command = ["export", str(run), "--layout", "hf", "--dtype", "bfloat16", "--out", str(out)]
    assert main.main(command) == 0
    read = blank(step, torch.bfloat16)
    assert load_into(out, read) is False
    assert_same_bits(read, {n: t.bfloat16() for n, t in step.items()})
    names = {f.name for f in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.model"}
    out = tmp_path / "quiet"
    assert main.main(["export", str(run), "--layout", "quietstar", "--out", str(out)]) == 0
    written = load_file(out / "model.safetensors")
    assert_same_bits(written, load_file(run / "step_000100" / "model.safetensors"))
    assert read_settings(out) == {"embedding_scale": 100.0}
    assert not list(tmp_path.glob("*partial*"))


def test_export_turns_mistrals_own_layout_into_that_of_hugging_face(folder, tmp_path):
    as_mistral(folder)
    out = tmp_path / "out"
    assert main.main(["export", str(folder), "--layout", "hf", "--out", str(out)]) == 0
    read, straight = blank(filled(shapes(SMALL), 0)), blank(filled(shapes(SMALL), 0))
    load_into(out, read)
    load_into(folder, straight)
    assert_same_bits(read, straight)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export nothing --layout hf --out {out}", "found no such folder"),
        ("export {folder} --layout quietstar --out {out}", "holds no Quiet-STaR tensors"),
        ("export {folder} --layout hf --out {folder}", "expected a new folder"),
        ("init --tokenizer {folder} --out {out} {sizes}", "tokenizer.model"),
        ("init --tokenizer {t} --out {folder} {sizes}", "expected a new folder"),
        ("init --tokenizer {t} --out {out} {sizes} --heads 5", "--heads 5 does not divide"),
        ("init --tokenizer {t} --out {out} {sizes} --kv-heads 3", "to divide 4 heads, got 3"),
        ("init --tokenizer {t} --out {out} {sizes} --kv-heads 0", "above 0, got 0"),
    ],
)
def test_the_command_line_refuses_in_one_line(folder, tmp_path, capsys, command, message):
    train_tokenizer(["one two three four five " * 20], tmp_path / "t", 300)
    before = sorted(tmp_path.iterdir())
    sizes = "--dim 8 --layers 1 --heads 4 --hidden-dim 8 --max-positions 9"
    command = command.format(folder=folder, out=tmp_path / "out", t=tmp_path / "t", sizes=sizes)
    assert main.main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()])
def test_a_command_that_is_stopped_leaves_nothing(folder, tmp_path, monkeypatch, capsys, stop):
    def half(out: Path, *_) -> None:
        (out / "model.safetensors").touch()
        raise stop

    monkeypatch.setattr(main, "save", half)
    command = ["export", str(folder), "--layout", "hf", "--out", str(tmp_path / "out")]
    if isinstance(stop, OSError):
        assert main.main(command) == 2
        assert capsys.readouterr().err == "python -m qs.model: disk full\n"
    else:
        with pytest.raises(KeyboardInterrupt):
            main.main(command)
    assert [f.name for f in tmp_path.iterdir()] == ["small"]
