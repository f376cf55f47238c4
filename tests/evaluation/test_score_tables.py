"""score_tables: what a person asks first stands apart, and every kind and token has its row."""

import contextlib
import dataclasses
import json
import math
import random

import pytest
from faulty import mutated

from qs.evaluation.heldout import AnswerScore, HeldoutScore, run_scores
from qs.evaluation.score_tables import closing_tables, score_tables
from qs.evaluation.tokens import NllScore
from qs.tables import terminal

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
    for even in (math.log(20), SCORE.text.nll_base - 0.9):  # by chance a little above
        score = dataclasses.replace(SCORE, even=even)
        assert "does not know" not in terminal(*closing_tables(score, score))
    lost = dataclasses.replace(SCORE, even=2.0)
    said = "the NLL is 3.2 nats a token, above the 2.0 of guessing evenly: the model does not know"
    for tables in (closing_tables(lost, lost), score_tables(lost)):
        last = tables[-1].notes[-1]
        assert last.startswith(said)
        assert last.endswith("so that a gain on it is no success")
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
    assert lines[place + 1] == ["95", "%", "+-", "-", "0.6353"]
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
