"""exam_results: results are of what was measured, and differences are paired by question."""

import dataclasses
import json

import numpy as np
import pytest

from qs.evaluation.exam_results import (
    MEASURES,
    Exam,
    against,
    against_table,
    exam_table,
    read_answers,
    summary,
)
from qs.evaluation.statistics import Estimate, mean_estimate, paired, wilson
from qs.files import JsonLines
from qs.tables import between

VOTING = Exam("gsm8k", "m", "w", 0, votes=2)
FACTS = {"questions": 3, "too_long": [], "answered": 0}
GOLD = [0.2, 0.4, 0.9]
LINES = [
    {"id": str(i), "question": f"q{i}", "gold_chance": 0.1, "gold_base": p, "slots": 2}
    | {"gold_greedy": p + i / 32, "exact_base": p > 0.5, "exact_mix": True, "said_base": "4"}
    for i, p in enumerate(GOLD)
]


def test_each_measure_has_the_interval_of_its_kind_and_its_change():
    found = summary(LINES, {"questions": 4})
    assert found.facts == {"questions": 4, "scored": 3, "slots": 6}
    assert list(found.results) == [name for name in MEASURES if name in LINES[0]]
    plain, rate = found.results["gold_base"], found.results["exact_mix"]
    assert (plain.mean, plain.interval) == mean_estimate(np.array(GOLD))
    assert plain.ends == mean_estimate(np.array(GOLD)).ends
    assert (plain.wilson, plain.change) == (None, None)
    assert (rate.mean, rate.wilson, rate.ends) == (1.0, wilson(3, 3), wilson(3, 3))
    assert rate.change == paired([0.0, 0.0, 1.0], [1.0] * 3)
    after = [p + i / 32 for i, p in enumerate(GOLD)]
    assert found.results["gold_greedy"].change == paired(GOLD, after)
    chance = found.results["gold_chance"]
    assert (chance.interval, chance.wilson, chance.change) == (None, None, None)


def test_results_are_written_by_the_names_they_always_had():
    found = json.loads(json.dumps(summary(LINES, {"file": "x.jsonl"}).to_json()))
    assert found["file"] == "x.jsonl"
    assert found["scored"] == 3
    assert found["gold_chance"] == {"mean": pytest.approx(0.1)}
    assert found["gold_base"].keys() == {"mean", "interval"}
    assert found["exact_base"].keys() == {"mean", "wilson"}
    assert found["gold_greedy"].keys() == {"mean", "interval", "change"}
    assert found["exact_mix"]["change"].keys() == {"mean", "interval"}
    assert found["slots"] == 6
    assert summary([], {}).to_json() == {"scored": 0}


def test_a_table_of_differences_is_of_all_that_both_models_have(tmp_path):
    line = {"id": "n1", "question": "q1", "gold_chance": 0.2, "gold_base": 0.1, "said_base": "4"}
    JsonLines(tmp_path / "other").append([line])
    found = against([line | {"gold_base": 0.4}], tmp_path / "other")
    assert found.results["gold_base"].mean == pytest.approx(0.3)
    table = against_table(found)
    assert table.title == f"minus {tmp_path / 'other'}, 1 questions, paired"
    cells = ("gold answer probability", "without thoughts", "+0.3000", "-")
    assert table.rows == [cells]


def test_what_a_plain_model_lacks_is_compared_with_its_answers_without_thoughts(tmp_path):
    names = ("id", "question", "gold_base", "gold_chance", "exact_base")
    plain = [{name: line[name] for name in names} for line in LINES[1:]]
    JsonLines(tmp_path / "other").append(plain)
    found = against(LINES, tmp_path / "other")
    assert found.facts == {"file": str(tmp_path / "other"), "questions": 2, "left_out": 1}
    assert against_table(found).notes == [
        "left out, as that model did not answer the same: 1",
        "that model: unknown",
    ]
    greedy = found.results["gold_greedy"]
    expected = paired(GOLD[1:], [0.4 + 1 / 32, 0.9 + 2 / 32])
    assert Estimate(greedy.mean, greedy.interval) == expected


@pytest.mark.parametrize("question", [{"question": "another"}, {}])
def test_answers_are_not_compared_with_those_to_other_questions_of_the_same_id(tmp_path, question):
    old = [{k: v for k, v in x.items() if k != "question"} | question for x in LINES]
    JsonLines(tmp_path / "other").append(old)
    with pytest.raises(ValueError, match="other: expected answers to some of these questions, fo"):
        against(LINES, tmp_path / "other")
    JsonLines(tmp_path / "other").append(LINES[:1])
    found = against(LINES, tmp_path / "other").facts
    assert (found["questions"], found["left_out"]) == (1, 2)


@pytest.mark.parametrize(
    "wrong",
    [{"id": 7}, {"question": ["x"]}, {"gold_base": None}, {"slots": 1.5}, {"gold_base": 2}],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, wrong):
    path = tmp_path / "own"
    JsonLines(path).append([LINES[0], LINES[1] | wrong])
    with pytest.raises(ValueError, match=r"own, line 2: expected an answer, found .*; remove the"):
        read_answers(path)
    JsonLines(path).rewrite(LINES)
    assert read_answers(path) == LINES
    assert read_answers(tmp_path / "none") == []


def test_no_interval_of_a_probability_leaves_zero_to_one():
    lines = [{"id": str(i), "gold_base": p} for i, p in enumerate([0.0, 0.0, 0.0, 0.1])]
    facts = {"questions": 4, "too_long": [], "answered": 0}
    (row,) = exam_table(Exam("gsm8k", "m", "w", 0), summary(lines, facts)).rows
    assert row[3].startswith("0.0000 to ")


@pytest.mark.parametrize("singles", [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
def test_shares_of_chains_that_are_all_or_none_have_the_interval_of_a_rate(singles):
    lines = [{"id": str(i), "exact_base": x == 1, "single_base": x} for i, x in enumerate(singles)]
    exact, single = exam_table(VOTING, summary(lines, FACTS)).rows
    assert exact[2:] == single[2:]
    assert single[3] == between(wilson(int(sum(singles)), 3))


def test_shares_of_several_chains_have_the_interval_of_a_mean():
    singles = [0.5, 0.0, 1.0]
    lines = [{"id": str(i), "single_base": x} for i, x in enumerate(singles)]
    found = summary(lines, FACTS).results["single_base"]
    assert found.ends == mean_estimate(np.array(singles)).ends


def test_one_question_has_no_interval_but_that_of_a_rate():
    line = {name: value for name, value in LINES[0].items() if name != "slots"}
    rows = exam_table(Exam("gsm8k", "m", "w", 2), summary([line], FACTS)).rows
    cells = {row[:2]: row[3:] for row in rows}
    gold, exact = "gold answer probability", "exact match of the decoded answer"
    assert cells[gold, "by chance"] == ("", "", "")
    assert cells[gold, "without thoughts"] == ("-", "", "")
    assert cells[gold, "greedy thoughts"] == ("-", "+0.0000", "-")
    assert cells[exact, "greedy thoughts"] == ("0.2065 to 1.0000", "+1.0000", "-")


def test_chains_of_another_length_have_another_file():
    exam = Exam("gsm8k", "m", "w", 0, votes=2)
    shorter = dataclasses.replace(exam, max_tokens=8)
    assert shorter.file != exam.file
    direct = dataclasses.replace(exam, votes=0)
    assert dataclasses.replace(direct, max_tokens=8).file == direct.file
