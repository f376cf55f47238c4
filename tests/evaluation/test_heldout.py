"""heldout: a score has every kind of answer and every token, and its table all of them."""

import dataclasses
import json
import os
import re

import pytest
import torch
from tiny import ROOT, make_world

from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset
from qs.evaluation.heldout import (
    HeldoutScore,
    heldout_data,
    heldout_score,
    measure_heldout,
    other_change,
    read_score,
    settings_told,
    summarise,
)
from qs.evaluation.statistics import ratio_estimate
from qs.evaluation.synthetic import heldout_text
from qs.evaluation.tokens import NllScore
from qs.files import new_run
from qs.model.tokenizer import Tokenizer
from qs.quietstar.load import choose_placement, load

SETTINGS = Config(
    ThoughtConfig(thoughts=5, ahead=2, samples=3, beta=0.0, start_text=":", end_text=";"),
    run=RunConfig(seq=48, batch=4, device="cpu", dtype="float32"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def quiet(world):
    module, _ = load(world.weights, SETTINGS, choose_placement(SETTINGS.run))
    with torch.no_grad():  # a head that is open
        module.mixer[4].weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return module


@pytest.fixture(scope="module")
def text(world):
    data = TokenDataset(world.data, "heldout")
    return heldout_text(data, Tokenizer(world.tokenizer), 48, 1000)


def test_no_text_is_named_that_the_tokenizer_of_star_did_not_prepare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="on: name some that was prepared for its tokenizer with"):
        heldout_data(RunConfig(objective="star"), Tokenizer(ROOT / "weights" / "sums"))


def test_the_change_of_other_tokens_is_paired_by_row(quiet, text):
    one = measure_heldout(quiet, text, SETTINGS)
    two = measure_heldout(quiet, text, SETTINGS, fixed_weight=0.5)
    before, after = (summarise(text, measured, SETTINGS) for measured in (one, two))
    mean, half = other_change(before, after)
    assert mean == pytest.approx(after.other.nll_mix - before.other.nll_mix)
    difference = two.other.nll_mix - one.other.nll_mix
    assert half == ratio_estimate(difference, one.other.tokens).interval
    plain = summarise(text, one, SETTINGS.changed(objective="plain"))
    assert other_change(plain, plain) == (0, 0)
    assert other_change(before, plain)[0] == pytest.approx(
        plain.other.nll_base - before.other.nll_mix
    )
    fewer = dataclasses.replace(after, other_rows=after.other_rows[1:])
    assert other_change(before, fewer) is None
    none = dataclasses.replace(after, other_rows=())
    assert other_change(none, none) is None


def test_no_share_of_useful_thoughts_where_none_are_sampled(quiet, text, world):
    data, tokenizer = TokenDataset(world.data, "heldout"), Tokenizer(world.tokenizer)

    def score(**changes):
        thought = dataclasses.replace(SETTINGS.thought, **changes.pop("thought", {}))
        run = dataclasses.replace(SETTINGS.run, eval_rows=2, **changes)
        with quiet.with_settings(thoughts=thought.thoughts):
            return heldout_score(quiet, data, tokenizer, Config(thought, run=run)).answers[-1]

    assert 0 <= score().useful <= 1
    for nothing in (score(objective="pause"), score(thought={"thoughts": 0})):
        assert nothing.useful is nothing.useful_interval is None
        assert nothing.gold_mix is not None


def test_a_score_has_every_kind_and_all_of_them_and_survives_json(quiet, world, text, tmp_path):
    data, tokenizer = TokenDataset(world.data, "heldout"), Tokenizer(world.tokenizer)
    score = heldout_score(quiet, data, tokenizer, SETTINGS.changed(eval_rows=1000))
    kinds = {q.kind for q in text.questions}
    assert {a.kind for a in score.answers} == kinds | {"all"}
    everything = score.answers[-1]
    assert everything.questions == sum(a.questions for a in score.answers[:-1])
    mean = sum(a.gold_mix * a.questions for a in score.answers[:-1]) / everything.questions
    assert everything.gold_mix == pytest.approx(mean)
    assert score.text.tokens == score.other.tokens + everything.questions
    written = json.dumps(dataclasses.asdict(score))
    (tmp_path / "before.json").write_text(written)
    again = read_score(tmp_path / "before.json")
    assert json.dumps(dataclasses.asdict(again)) == written


def test_a_score_of_a_run_without_evaluation_is_none_and_anything_else_is_refused(tmp_path):
    path = tmp_path / "before.json"
    path.write_text("null")
    assert read_score(path) is None
    for text in ("{}", "[]", "0", '{"text": {"tokens": 1}, "other": null, "answers": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"before.json: expected a score, found"):
            read_score(path)


def test_scores_of_old_runs_have_no_rows_of_other_tokens(tmp_path):
    path = tmp_path / "before.json"
    old = dataclasses.asdict(SCORE)
    del old["other_rows"]
    path.write_text(json.dumps(old))
    assert read_score(path) == SCORE


def test_text_of_which_nothing_is_known_has_a_score_of_all_tokens_alone(quiet, world, monkeypatch):
    data, tokenizer = TokenDataset(world.data, "heldout"), Tokenizer(world.tokenizer)
    monkeypatch.setattr("qs.evaluation.synthetic.read_recipe", lambda *given: None)
    score = heldout_score(quiet, data, tokenizer, SETTINGS.changed(eval_rows=5))
    assert score.other is None
    assert score.answers == score.other_rows == ()
    tokens, numbers = data.read(0, 5 * 48)
    rows = numbers.reshape(5, 48)
    assert score.text.tokens == (rows[:, 1:] == rows[:, :-1]).sum()
    assert score.text.gain == pytest.approx(score.text.nll_base - score.text.nll_mix)


SCORE = HeldoutScore(NllScore(1234, 3.25, 3.125, 0.125, 0.01, 0.2))


def test_names_of_files_tell_folders_of_data_apart(tmp_path):
    run = new_run(tmp_path, "run", SETTINGS)
    (run / "step_000001").mkdir()
    names = [
        settings_told(SETTINGS.changed(data=data), run, run / "step_000001")
        for data in ("a/b", "a-b", "a--b", "a_b", "a-seq-9", "a")
    ]
    names.append(settings_told(SETTINGS.changed(data="a", seq=9), run, run / "step_000001"))
    assert settings_told(SETTINGS.changed(data="a"), None, run / "step_000001") == ""
    long = [f"{'deep/' * 100}{name}" for name in ("a", "b", os.fsdecode(b"caf\xe9"))]
    told = [settings_told(SETTINGS.changed(data=data), run, run / "step_000001") for data in long]
    assert len(set(told)) == len(long)
    assert all(each.isascii() and len(each) < 120 for each in told)
    assert len({*names}) == len(names)
    assert names[-2:] == ["-data-a", "-data-a-seq-9"]
    assert all(re.fullmatch(r"-data-a[a-z0-9-]*", name) for name in names)
