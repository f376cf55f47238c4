"""__main__: a command writes a whole checkpoint or none, and refuses in one line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from checkpoints import (
    SMALL,
    as_mistral,
    assert_same_bits,
    blank,
    filled,
    run_folder,
)
from safetensors.torch import load_file

from qs.model import __main__ as main
from qs.model import weights
from qs.model.config import ModelConfig, read_model_config, read_settings
from qs.model.tokenizer import train_tokenizer
from qs.model.weights import load_into, save


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint."""
    save(tmp_path / "small", SMALL, filled(SMALL, 0))
    return tmp_path / "small"


def test_init_writes_a_model_of_the_tokenizers_vocabulary(tmp_path, capsys):
    tokenizer = train_tokenizer(["one two three four five " * 20], tmp_path / "t", 300)
    out = tmp_path / "deep" / "new"
    command = ["init", "--out", str(out), "--tokenizer", str(tmp_path / "t"), "--seed", "5"]
    sizes = "--dim 64 --layers 8 --heads 4 --kv-heads 2 --hidden-dim 96 --max-positions 99"
    assert main.main([*command, *sizes.split(), "--window", "50", "--tied"]) == 0
    config = read_model_config(out)
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
    read = blank(filled(config, 0))
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
    run, step = run_folder(tmp_path), filled(SMALL, 1)
    out = tmp_path / "hf"
    command = ["export", str(run), "--layout", "hf", "--dtype", "bfloat16", "--out", str(out)]
    assert main.main(command) == 0
    read = blank(step, torch.bfloat16)
    assert load_into(out, read) is False
    assert_same_bits(read, {n: t.bfloat16() for n, t in step.items()})
    names = {f.name for f in out.iterdir()}
    assert names == {"config.json", "digests.json", "model.safetensors", "tokenizer.model"}
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
    read, straight = blank(filled(SMALL, 0)), blank(filled(SMALL, 0))
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
        (
            "init --tokenizer {t} --out {out} {sizes} --kv-heads 0",
            "--kv-heads: expected 1 to 1000000000",
        ),
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

    monkeypatch.setattr(weights, "save", half)
    command = ["export", str(folder), "--layout", "hf", "--out", str(tmp_path / "out")]
    if isinstance(stop, OSError):
        assert main.main(command) == 2
        assert capsys.readouterr().err == "error: disk full\n"
    else:
        assert main.main(command) == 130
        assert capsys.readouterr().err == "error: interrupted by SIGINT; nothing was kept\n"
    assert [f.name for f in tmp_path.iterdir()] == ["small"]
