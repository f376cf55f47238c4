"""bundled: what the repository ships fits together, is small, and runs as README says."""

import json

import pytest
from tiny import ROOT, run

from qs import data, synthetic, weights
from qs.build import check_fits
from qs.config import PRESETS
from qs.model_config import read_config
from qs.shards import TokenDataset
from qs.tokenizer import Tokenizer

WEIGHTS, DATA = ROOT / "weights" / "tiny", ROOT / "data" / "tiny"


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_bundled_files_are_small_enough():
    assert size(WEIGHTS) < 8_000_000
    assert size(DATA) < 4_000_000


def test_bundled_model_tokenizer_and_text_fit_together(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = PRESETS["tiny"]
    assert weights.resolve(config.run.weights).resolve() == WEIGHTS
    assert data.resolve(config.run.data).resolve() == DATA
    tokenizer = Tokenizer.load(WEIGHTS)
    check_fits(read_config(WEIGHTS), tokenizer, config, WEIGHTS)
    for split in ("train", "heldout"):
        TokenDataset(DATA, split).check_tokenizer(tokenizer)


def test_marks_of_a_working_are_tokens_of_their_own():
    tokenizer = Tokenizer.load(WEIGHTS)
    for mark in (synthetic.OPEN, synthetic.CLOSE):
        assert tokenizer.decode(tokenizer.encode("1" + mark)[-1:]) == mark


def test_the_default_run_trains_the_bundled_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    folder = run(out, [f"--out={out}", "--steps=2", "--batch=2", "--eval-rows=4"])
    before = json.loads((folder / "results.json").read_text())["before"]
    assert before["nll_base"] < 1.6  # it was really trained: a random model has 6.2
    assert before["nll_mix"] == pytest.approx(before["nll_base"])
    assert "gain by thinking" in capsys.readouterr().out
