"""heldout: a score has every kind of answer and every token, and its table all of them."""

import contextlib
import dataclasses
import json
import math
import random
import re

import pytest
import torch
from faulty import mutated
from tiny import make_world

from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset
from qs.evaluation.heldout import (
    AnswerScore,
    HeldoutScore,
    closing_tables,
    heldout_score,
    measure_heldout,
    other_change,
    read_score,
    run_scores,
    score_tables,
    settings_told,
    summarise,
)
from qs.evaluation.statistics import ratio_estimate
from qs.evaluation.synthetic import heldout_text
from qs.evaluation.tokens import NllScore
from qs.model.tokenizer import Tokenizer
from qs.quietstar.load import choose_placement, load
from qs.tables import terminal

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


def cells_of(tables):
    """Tables as lists of words, without the lines between them."""
    return [line.split() for line in terminal(*tables).splitlines() if line]


def test_the_tables_have_before_after_and_thoughts_off_and_end_with_what_matters():
    before = HeldoutScore(NllScore(1234, 3.5, 3.5, 0.0, 0.0, 0.0))
    *details, title, one, two, off, note = cells_of(closing_tables(before, SCORE))
    assert details == [
        ["held-out", "text,", "1,234", "tokens"],
        ["before", "after", "thoughts", "off"],
        ["NLL,", "nats", "a", "token", "3.5000", "3.1250", "3.2500"],
        ["gain", "by", "thinking", "0.0000", "0.1250"],
        ["95", "%", "+-", "0.0000", "0.0100"],
        ["mixing", "weight", "0.0000", "0.2000"],
    ]
    assert " ".join(title) == "In short: NLL of held-out text, 1,234 tokens, nats a token"
    assert one == ["before", "training", "3.5000"]
    assert two == ["after,", "with", "thoughts", "3.1250"]
    assert off == ["thoughts", "off", "3.2500"]
    assert note[:3] == ["thoughts", "off:", "the"]
    plain = closing_tables(HeldoutScore(NllScore(9, 3.5)), HeldoutScore(NllScore(9, 3.0)))
    assert cells_of(plain) == [
        ["held-out", "text,", "9", "tokens"],
        ["before", "after"],
        ["NLL,", "nats", "a", "token", "3.5000", "3.0000"],
        ["In", "short:", "NLL", "of", "held-out", "text,", "9", "tokens,", "nats", "a", "token"],
        ["before", "training", "3.5000"],
        ["after", "training", "3.0000"],
    ]


def test_a_gain_on_a_text_that_the_model_does_not_know_is_called_none():
    score = dataclasses.replace(SCORE, even=math.log(20))
    assert "does not know" not in terminal(*closing_tables(score, score))
    lost = dataclasses.replace(SCORE, even=2.0)
    said = "the NLL is 3.2 nats a token, above the 2.0 of guessing evenly: the model does not know"
    for tables in (closing_tables(lost, lost), score_tables(lost)):
        last = tables[-1].notes[-1]
        assert last.startswith(said)
        assert last.endswith("less of it is no success")
    assert HeldoutScore.from_json(json.loads(json.dumps(dataclasses.asdict(lost)))) == lost


def test_the_tables_name_every_kind_of_answer_and_all_of_them():
    def score(gold, nll, useful):
        answers = tuple(
            AnswerScore(kind, 10, 0.1, 0.01, 2.5, gold, 0.02, nll, useful, [0.0, 1.0], 0.5)
            for kind in ("sum", "all")
        )
        return HeldoutScore(SCORE.text, NllScore(99, 1.0, 1.1, 0.1, 0.01, 0.3), answers)

    lines = cells_of(closing_tables(score(0.1, 2.5, 0.4), score(0.9, 0.75, 0.95)))
    for line in (
        ["sum", "(10)", "0.1000", "0.9000", "0.1000"],
        ["all", "(10)", "0.1000", "0.9000", "0.1000"],
        ["sum", "(10)", "2.5000", "0.7500", "2.5000"],
        ["thoughts", "that", "hold", "the", "steps", "0.4000", "0.9500"],
        ["all", "other", "tokens,", "99", "tokens"],
        ["NLL,", "nats", "a", "token", "1.1000", "1.1000", "1.0000"],
        ["held-out", "text,", "1,234", "tokens"],
        [
            "In",
            "short:",
            "probability",
            "of",
            "the",
            "right",
            "answer",
            "to",
            "10",
            "held-out",
            "questions",
        ],
        ["before", "training", "0.100", "±", "0.020"],
        ["after,", "with", "thoughts", "0.900", "±", "0.020"],
        ["thoughts", "off", "0.100", "±", "0.010"],
    ):
        assert line in lines


def test_the_table_has_the_change_of_other_tokens_with_its_paired_interval():
    def score(*sums):
        return HeldoutScore(SCORE.text, NllScore(8, 1.0, 1.1, 0.1, 0.01, 0.3), (), sums)

    lines = cells_of(closing_tables(score((4, 2.0), (4, 2.0)), score((4, 2.4), (4, 2.8))))
    place = lines.index(["change", "by", "training", "-", "0.1500"])
    assert lines[place + 1] == ["95", "%", "+-", "-", "0.0980"]
    tables = closing_tables(score((4, 2.0)), score((5, 2.0)))
    assert "change" not in terminal(*tables)


def test_where_thoughts_end_themselves_the_table_says_how_long_they_are():
    text = NllScore(9, 3.25, 3.125, 0.125, 0.01, 0.2, 4.5)
    line = ["tokens", "of", "a", "thought", "4.5000"]
    assert line in cells_of(score_tables(HeldoutScore(text)))
    answers = (AnswerScore("all", 10, 0.1, 0.01, 2.5, 0.9, 0.02, 1.0, 0.9, [0.0, 1.0], 0.5, 3.5),)
    line = ["tokens", "of", "a", "thought", "3.5000"]
    assert line in cells_of(score_tables(HeldoutScore(text, text, answers)))


def test_of_one_score_there_is_no_change():
    assert "no held-out text was evaluated" in terminal(*closing_tables(SCORE, None))
    assert closing_tables(None, SCORE) == score_tables(SCORE)


@pytest.mark.filterwarnings("ignore:overflow")  # numbers may be absurd, too
def test_results_that_were_changed_make_tables_or_are_refused(tmp_path):
    kinds = [AnswerScore(kind, 2, 0.1, 0.01, 2.5, 0.9, 0.02, 1.0) for kind in ("sums", "all")]
    score = HeldoutScore(SCORE.text, SCORE.text, tuple(kinds), ((3.0, 4.5), (2.0, 1.0)))
    stored, numbers = json.dumps(dataclasses.asdict(score)), random.Random(0)
    results = {label: json.loads(stored) for label in ("before", "after")}
    for _ in range(300):
        (tmp_path / "results.json").write_text(json.dumps(mutated(results, numbers)))
        with contextlib.suppress(ValueError):
            assert terminal(*closing_tables(*run_scores(tmp_path)))
    results["before"]["answers"].pop()
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="expected the scores .* of the same questions"):
        closing_tables(*run_scores(tmp_path))


def test_a_score_alone_is_told_with_and_without_thoughts():
    lines = cells_of(score_tables(SCORE))
    assert lines[:3] == [
        ["held-out", "text,", "1,234", "tokens"],
        ["with", "thoughts", "thoughts", "off"],
        ["NLL,", "nats", "a", "token", "3.1250", "3.2500"],
    ]
    assert lines[-3:-1] == [["with", "thoughts", "3.1250"], ["thoughts", "off", "3.2500"]]
    assert cells_of(score_tables(HeldoutScore(NllScore(9, 3.5))))[-1] == [
        "without",
        "thoughts",
        "3.5000",
    ]


def test_names_of_files_tell_folders_of_data_apart(tmp_path):
    (tmp_path / "step_000001").mkdir()
    names = [
        settings_told(SETTINGS.changed(data=data), SETTINGS, tmp_path / "step_000001")
        for data in ("a/b", "a-b", "a--b", "a_b", "a-seq-9", "a")
    ]
    names.append(
        settings_told(SETTINGS.changed(data="a", seq=9), SETTINGS, tmp_path / "step_000001")
    )
    assert len({*names}) == len(names)
    assert names[-2:] == ["-data-a", "-data-a-seq-9"]
    assert all(re.fullmatch(r"-data-a[a-z0-9-]*", name) for name in names)
