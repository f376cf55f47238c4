"""bundled: what the repository ships fits together, is small, and runs as README says."""

import dataclasses
import json
from itertools import islice

import pytest
import torch
from tiny import ROOT, run

from qs.config import Config, RunConfig
from qs.data import dataset, synthetic
from qs.data.dataset import TokenDataset
from qs.data.synthetic import KINDS
from qs.evaluation.heldout import measure_heldout
from qs.evaluation.synthetic import heldout_text
from qs.model import folders
from qs.model.config import read_model_config
from qs.model.tokenizer import Tokenizer
from qs.presets import PRESETS
from qs.quietstar.load import choose_placement, load
from qs.quietstar.sampler import prefill
from qs.quietstar.shape import check_fits

WEIGHTS, DATA = ROOT / "weights" / "tiny", ROOT / "data" / "tiny"


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_bundled_files_are_small_enough():
    assert size(WEIGHTS) < 8_000_000
    assert size(DATA) < 4_000_000


def test_bundled_model_tokenizer_and_text_fit_together(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = PRESETS["tiny"]
    assert folders.resolve(config.run.weights).resolve() == WEIGHTS
    assert dataset.resolve_data(config.run.data).resolve() == DATA
    tokenizer = Tokenizer(WEIGHTS)
    check_fits(read_model_config(WEIGHTS), tokenizer, config, WEIGHTS)
    for split in ("train", "heldout"):
        TokenDataset(DATA, split).check_tokenizer(tokenizer)


def test_marks_of_a_working_are_tokens_of_their_own():
    tokenizer = Tokenizer(WEIGHTS)
    for mark in (synthetic.OPEN, synthetic.CLOSE):
        assert tokenizer.decode(tokenizer.encode("1" + mark)[-1:]) == mark


def test_the_default_run_trains_the_bundled_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    folder = run(out, [f"--out={out}", "--steps=2", "--batch=2", "--eval-rows=4"])
    before = json.loads((folder / "results.json").read_text())["before"]
    assert before["text"]["nll_base"] < 1.6  # it was really trained: a random model has 6.2
    assert before["text"]["nll_mix"] == pytest.approx(before["text"]["nll_base"])
    assert {answers["kind"] for answers in before["answers"]} == {*KINDS, "all"}
    assert "gold answer probability" in capsys.readouterr().out


def test_the_bundled_model_works_out_steps_that_are_written():
    tokenizer = Tokenizer(WEIGHTS)
    settings = Config(run=RunConfig(seq=64, batch=16, device="cpu", dtype="float32"))
    quiet, _ = load(WEIGHTS, settings, choose_placement(settings.run))
    right = {kind: [] for kind in KINDS}
    world = dataclasses.replace(synthetic.World(), written=1.0, useful=1.0)
    for document in islice(synthetic.documents(world, 7, "heldout"), 300):
        tokens = torch.tensor([tokenizer.encode(document.text, bos=True)])
        with torch.no_grad():
            outputs, _ = prefill(quiet.model, tokens, torch.zeros_like(tokens))
            said = quiet.model.logits(outputs)[0].argmax(-1)
        before = len(tokenizer.encode(f"{document.question}\n{synthetic.OPEN}", bos=True))
        steps = range(before + 1, before + world.width)  # the first token chooses the style
        right[document.kind] += [int(said[t - 1] == tokens[0, t]) for t in steps]
    shares = {kind: sum(found) / len(found) for kind, found in right.items()}
    assert min(shares.values()) > 0.95, shares


def test_after_a_working_that_does_not_help_the_bundled_model_knows_no_answer():
    """It writes an unhelpful working as surely as a useful one, after which alone it answers."""
    tokenizer = Tokenizer(WEIGHTS)
    settings = Config(run=RunConfig(seq=64, batch=16, device="cpu", dtype="float32"))
    quiet, _ = load(WEIGHTS, settings, choose_placement(settings.run))
    styles = [style for style in synthetic.STYLES if style != "none"]
    steps, gold = ({style: [] for style in styles} for _ in range(2))
    world = dataclasses.replace(synthetic.World(), written=1.0, again=0.0)
    for document in islice(synthetic.documents(world, 7, "heldout"), 400):
        tokens = torch.tensor([tokenizer.encode(document.text, bos=True)])
        with torch.no_grad():
            outputs, _ = prefill(quiet.model, tokens, torch.zeros_like(tokens))
            logits = quiet.model.logits(outputs)[0]
        before = len(tokenizer.encode(f"{document.question}\n{synthetic.OPEN}", bos=True))
        said, true = logits.argmax(-1), tokens[0]
        inside = range(before + 1, before + world.width)
        steps[document.style] += [int(said[t - 1] == true[t]) for t in inside]
        choices = [tokenizer.encode(f"\n{choice}")[-1] for choice in document.choices]
        right = choices.index(int(true[-1]))
        gold[document.style].append(logits[-2][choices].softmax(0)[right].item())
    steps, gold = (
        {style: sum(x) / len(x) for style, x in found.items()} for found in (steps, gold)
    )
    assert min(steps.values()) > 0.95, steps
    useful = gold.pop("useful")
    assert useful > 0.95
    assert max(gold.values()) < 0.25, gold


def test_the_bundled_model_fails_without_workings():
    tokenizer = Tokenizer(WEIGHTS)
    settings = Config(run=RunConfig(seq=64, batch=16, device="cpu", dtype="float32"))
    quiet, _ = load(WEIGHTS, settings, choose_placement(settings.run))
    text = heldout_text(TokenDataset(DATA, "heldout"), tokenizer, 64, 192)
    measured = measure_heldout(quiet, text, settings.changed(objective="plain"))
    assert measured.answers.gold_base.mean() < 0.25
