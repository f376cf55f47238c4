"""question_sets: every question is answered once, whatever interrupts; rates are of all of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import init_weights

import qs.evaluation.question_sets
from qs import files
from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.prompts import cot_final_prompt, cot_prompt, direct_answer, direct_prompt
from qs.data.question_sets import BenchmarkQuestion
from qs.evaluation.exam_results import (
    Exam,
    against,
    against_table,
    answers_of,
    exam_table,
    how_asked,
    summary,
)
from qs.evaluation.gold_probability import item
from qs.evaluation.question_sets import NUMBER_TOKENS, run
from qs.evaluation.statistics import wilson
from qs.files import JsonLines
from qs.inference.write import Written
from qs.model.tokenizer import train_tokenizer
from qs.quietstar.load import choose_placement, load

NUMBERS = [BenchmarkQuestion(f"n{i}", f"How many are {i}?", (), str(i), str(i)) for i in range(5)]
CHOICES = [
    BenchmarkQuestion(
        f"c{i}", f"Which of {i}?", (("A", "figs"), ("B", "nuts")), "AB"[i % 2], "AB"[i % 2]
    )
    for i in range(5)
]
EXAM = Exam("gsm8k", "m", "digest", thoughts=2, samples=2, batch=2)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    texts = [direct_prompt(q) + direct_answer(q) for q in NUMBERS + CHOICES] * 20
    texts += ["A: 0 1 2 3 4 5 6 7 8 9\n"] * 50
    tokenizer = train_tokenizer(texts, folder, 300)
    init_weights(folder / "weights", folder, positions=128)
    thought = ThoughtConfig(thoughts=2, ahead=1, samples=2, start_text="0", end_text="1")
    settings = Config(thought, run=RunConfig(seq=2, device="cpu", dtype="float32"))
    quiet, _ = load(folder / "weights", settings, choose_placement(settings.run))
    torch.nn.init.normal_(quiet.mixer[4].weight, 0, 1.0, torch.Generator().manual_seed(0))
    return quiet, tokenizer


@pytest.mark.parametrize(("task", "questions"), [("gsm8k", NUMBERS), ("commonsense_qa", CHOICES)])
def test_every_question_has_a_line_and_the_summary_is_of_all(opened, tmp_path, task, questions):
    exam = dataclasses.replace(EXAM, task=task)
    found = run(exam, *opened, questions, tmp_path).to_json()
    lines = [json.loads(line) for line in (tmp_path / exam.file).read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(q.id for q in questions)
    assert found["questions"] == found["scored"] == 5
    assert found["too_long"] == []
    for name in ("gold_base", "gold_greedy", "gold_sampled"):
        assert found[name]["mean"] == pytest.approx(np.mean([line[name] for line in lines]))
    assert found["gold_greedy"]["mean"] != found["gold_base"]["mean"]
    hits = sum(line["exact_mix"] for line in lines)
    assert found["exact_mix"]["wilson"] == pytest.approx(wilson(hits, 5))
    assert ("option_greedy" in found) == (task == "commonsense_qa")
    assert found["slots_everywhere"] > 3 * found["slots"]
    for line in lines:  # a thought of 2 has 6 slots: 2 that are sampled and 4 that are scored
        assert line["slots_everywhere"] == 6 * line["tokens"]
        assert line["slots"] == 12  # the answer's one token, and the newline


def test_an_interrupted_exam_goes_on_and_comes_to_the_same(opened, tmp_path, monkeypatch):
    def same_run(out):
        found = run(EXAM, *opened, NUMBERS, out).to_json()
        return {k: v for k, v in found.items() if k not in ("answered", "seconds")}

    straight = same_run(tmp_path / "straight")
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return direct(*arguments)

    direct = qs.evaluation.question_sets._direct
    with monkeypatch.context() as patch:
        patch.setattr(qs.evaluation.question_sets, "_direct", interrupted)
        with pytest.raises(KeyboardInterrupt):
            same_run(tmp_path / "again")
        path = tmp_path / "again" / EXAM.file
        path.write_bytes(path.read_bytes() + b'{"id": "n')  # killed while it wrote
        calls[:] = [()] * 5
        assert same_run(tmp_path / "again") == straight
        assert len(calls) == 5 + 2  # of three batches one was done
    one, other = ((tmp_path / n / EXAM.file).read_text() for n in ("straight", "again"))
    assert one == other


@pytest.mark.parametrize("votes", [0, 2])
def test_a_question_that_was_changed_is_asked_again_and_the_others_are_not(
    opened, tmp_path, capsys, votes
):
    exam = dataclasses.replace(EXAM, votes=votes, max_tokens=4)
    changed = [*NUMBERS[:4], dataclasses.replace(NUMBERS[4], gold="7", written="7")]
    first = run(exam, *opened, NUMBERS, tmp_path / "out").to_json()
    assert "asking again" not in capsys.readouterr().err
    again = run(exam, *opened, changed, tmp_path / "out").to_json()
    assert again["answered"] == 1
    assert "found 1 to others with the same id" in capsys.readouterr().err
    straight = run(exam, *opened, changed, tmp_path / "straight").to_json()
    for found in (first, again, straight):
        del found["seconds"], found["answered"]
    assert again == straight
    assert votes or again != first
    back = run(exam, *opened, NUMBERS, tmp_path / "out").to_json()
    assert back["answered"] == 0  # answers to the questions as they were are kept
    assert first.items() <= back.items()


def test_answers_of_an_earlier_version_are_asked_again_and_that_is_told(opened, tmp_path, capsys):
    straight = run(EXAM, *opened, NUMBERS, tmp_path).to_json()
    lines = JsonLines(tmp_path / EXAM.file)
    lines.rewrite([{k: v for k, v in x.items() if k != "question"} for x in lines.records()])
    capsys.readouterr()
    again = run(EXAM, *opened, NUMBERS, tmp_path).to_json()
    assert again["answered"] == 5
    assert again["gold_greedy"] == straight["gold_greedy"]
    told = "found 5 to others with the same id, or of an earlier version, which did not write what"
    assert told in capsys.readouterr().err
    assert run(EXAM, *opened, NUMBERS, tmp_path).facts["answered"] == 0


def test_what_tells_a_question_from_any_other_is_all_that_its_answer_depends_on():
    one = CHOICES[0]
    changes = ({"id": "x"}, {"text": "Who?"}, {"choices": one.choices[::-1]}, {"written": "B"})
    others = [dataclasses.replace(one, **x) for x in (*changes, {"gold": "B"})]
    assert len({one.digest, *(x.digest for x in others)}) == 6
    assert dataclasses.replace(one, rationale="because").digest == one.digest


def test_what_changes_answers_has_another_file_and_what_does_not_has_the_same():
    changes = ({"weights": "x"}, {"thoughts": 3}, {"seed": 1}, {"votes": 8}, {"samples": 3})
    assert len({EXAM.file, *(dataclasses.replace(EXAM, **x).file for x in changes)}) == 6
    for change in ({"model": "elsewhere"}, {"batch": 3}, {"temperature": 0.5}):
        assert dataclasses.replace(EXAM, **change).file == EXAM.file
    voting = dataclasses.replace(EXAM, votes=8)
    assert dataclasses.replace(voting, samples=9).file == voting.file
    assert dataclasses.replace(voting, temperature=0.5).file != voting.file


def test_choices_are_not_voted_on_by_number():
    with pytest.raises(ValueError, match="answers are numbers, found commonsense_qa"):
        dataclasses.replace(EXAM, task="commonsense_qa", votes=8)
    assert dataclasses.replace(EXAM, task="gsm8k", votes=8).kind == "gsm8k-maj8"


@pytest.mark.parametrize("votes", [0, 2])
def test_a_question_is_answered_the_same_whatever_is_asked_beside_it(opened, tmp_path, votes):
    found = []
    for name, batch, asked in (("all", 5, NUMBERS), ("one", 1, NUMBERS[2:3])):
        exam = dataclasses.replace(EXAM, votes=votes, batch=batch)
        run(exam, *opened, asked, tmp_path / name)
        lines = {line["id"]: line for line in JsonLines(tmp_path / name / exam.file).records()}
        found.append(lines["n2"])
    one, other = found
    assert one.keys() == other.keys()
    for name, value in one.items():
        expected = pytest.approx(other[name], rel=1e-4) if type(value) is float else other[name]
        assert value == expected, name


@pytest.mark.parametrize("votes", [0, 2])
def test_a_question_that_does_not_fit_is_named_and_the_longest_come_first(opened, tmp_path, votes):
    quiet, tokenizer = opened
    exam = dataclasses.replace(EXAM, votes=votes)
    final = len(tokenizer.encode(cot_final_prompt(""))) + NUMBER_TOKENS
    positions = quiet.model.config.max_positions - exam.thoughts - 2

    def of_length(name: str, tokens: int) -> BenchmarkQuestion:
        empty = BenchmarkQuestion(name, "", (), "1", "1")
        used = len(item(empty, tokenizer).text.ids)
        if votes:  # a chain has one token at least
            used = len(tokenizer.prompt(cot_prompt(empty))) + 1 + final
        return dataclasses.replace(empty, text="#" * (tokens - used))

    longest, long = of_length("longest", positions), of_length("long", positions + 1)
    found = run(exam, quiet, tokenizer, [*NUMBERS, longest, long], tmp_path)
    assert found.facts["too_long"] == ["long"]
    assert (found.facts["questions"], found.facts["scored"]) == (7, 6)
    lines = JsonLines(tmp_path / exam.file).records()
    assert [line["id"] for line in lines] == ["longest", *(q.id for q in NUMBERS)]


def test_chains_are_counted_by_their_majority(opened, tmp_path, monkeypatch):
    exam = dataclasses.replace(EXAM, votes=3)
    answers = iter([" First 3."] * 6 + [" 3", " 4", " 4", " 1", " 0", " x"])

    def said(exam, quiet, tokenizer, prompts, when, tokens, numbers, room=0):
        assert all(p.startswith("Q: ") for p in prompts)
        if room == 0 and when == "never":  # asked for the number: the chain keeps its space
            assert all("step by step. First 3.\nTherefore" in p for p in prompts)
        return [next(answers) for _ in prompts] if when == "never" else ["5"] * len(prompts)

    monkeypatch.setattr(qs.evaluation.question_sets, "_continue", said)
    found = run(exam, *opened, [NUMBERS[4], NUMBERS[1]], tmp_path).results
    lines = {x["id"]: x for x in JsonLines(tmp_path / exam.file).records()}
    assert lines["n4"]["votes_base"] == ["3", "4", "4"]
    assert lines["n1"]["votes_base"] == ["1", "0", None]
    assert [lines[i]["exact_base"] for i in ("n4", "n1")] == [True, True]
    assert not lines["n1"]["exact_mix"]
    assert found["single_base"].mean == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["exact_mix"].change.mean == -1


def test_a_chain_keeps_the_space_that_it_begins_with(opened, monkeypatch):
    said = [Written(" First 3.", (), True), None]
    monkeypatch.setattr(qs.evaluation.question_sets, "write", lambda *arguments: said)
    texts = qs.evaluation.question_sets._continue(EXAM, *opened, ["a", "b"], "never", 4, [0, 1])
    assert texts == [" First 3.", ""]


def test_chains_are_really_generated_and_do_not_depend_on_the_batch_before(opened, tmp_path):
    exam = dataclasses.replace(EXAM, votes=2)
    quiet, tokenizer = opened
    found = run(exam, quiet, tokenizer, NUMBERS[:3], tmp_path / "a")
    assert found.facts["scored"] == 3
    lines = list(JsonLines(tmp_path / "a" / exam.file).records())
    path = tmp_path / "b" / exam.file
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    run(exam, quiet, tokenizer, NUMBERS[:3], tmp_path / "b")
    assert path.read_text() == (tmp_path / "a" / exam.file).read_text()


def test_a_damaged_file_of_answers_is_named(opened, tmp_path):
    path = tmp_path / EXAM.file
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"line 1: expected a JSON object, .* remove the file"):
        run(EXAM, *opened, NUMBERS, tmp_path)


def test_two_models_are_compared_on_the_questions_that_both_answered(opened, tmp_path):
    own = dataclasses.replace(EXAM, model="own")
    run(EXAM, *opened, NUMBERS[:4], tmp_path / "other")
    run(own, *opened, NUMBERS[1:], tmp_path / "own")
    path = tmp_path / "own" / own.file
    lines = list(JsonLines(path).records())
    lines[0]["gold_greedy"] += 0.3
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    theirs = {x["id"]: x for x in JsonLines(tmp_path / "other" / EXAM.file).records()}
    shared = [x for x in lines if x["id"] in theirs]
    answered = run(own, *opened, NUMBERS[1:], tmp_path / "own").lines
    found = against(answered, answers_of(own, tmp_path / "other", NUMBERS[1:]))
    assert (found.facts["questions"], found.facts["left_out"]) == (len(shared), 1) == (3, 1)
    expected = np.mean([x["gold_greedy"] - theirs[x["id"]]["gold_greedy"] for x in shared])
    assert found.results["gold_greedy"].mean == pytest.approx(expected)
    assert found.results["exact_mix"].mean == 0
    with pytest.raises(ValueError, match="expected answers of gsm8k-direct to compare with"):
        answers_of(own, tmp_path, NUMBERS)
    run(EXAM, *opened, NUMBERS[:1], tmp_path / "none")
    with pytest.raises(ValueError, match="expected answers to some of these questions, found none"):
        answers_of(own, tmp_path / "none", NUMBERS[1:])
    # of what is asked now alone, though the file holds more
    answered = run(own, *opened, NUMBERS[3:], tmp_path / "own").lines
    found = against(answered, answers_of(own, tmp_path / "other", NUMBERS[3:]))
    assert (found.facts["questions"], found.facts["left_out"]) == (1, 1)


def test_nothing_is_told_of_draws_where_nothing_was_drawn():
    plain = dataclasses.asdict(dataclasses.replace(EXAM, thoughts=0))
    assert how_asked(plain) == "m, n 0"
    assert how_asked(plain | {"votes": 2}) == "m, n 0, temperature 0.9, max tokens 384, seed 0"
    assert how_asked(dataclasses.asdict(EXAM)) == "m, n 2, samples 2, seed 0"


def test_of_several_files_the_one_that_was_asked_alike_is_compared_with(tmp_path):
    line = {"id": "x", "question": NUMBERS[0].digest, "gold_base": 0.5}
    asked = {"a": {}, "b": {"seed": 9}, "c": {"samples": 3}}
    exams = {name: dataclasses.replace(EXAM, model=name, **how) for name, how in asked.items()}
    for exam in exams.values():
        JsonLines(tmp_path / exam.file).append([line])
        files.add_results(tmp_path, {exam.file: {"exam": dataclasses.asdict(exam)}}, "exams")
    for exam in exams.values():
        own = dataclasses.replace(exam, model="own", weights="w", thoughts=7)
        assert answers_of(own, tmp_path, NUMBERS).name == exam.file
        JsonLines(tmp_path / own.file).append([line])  # its own answers are no other's
        files.add_results(tmp_path, {own.file: {"exam": dataclasses.asdict(own)}}, "exams")
        assert answers_of(own, tmp_path, NUMBERS).name == exam.file
        (tmp_path / own.file).unlink()
        told = against([line], tmp_path / exam.file)
        assert f"that model: {exam.model}, n {exam.thoughts}, samples" in str(against_table(told))
    other = dataclasses.replace(EXAM, model="own", weights="w", seed=5)
    message = r"that was asked as this is, found 0: .*\(b, n .*seed 9\)"
    with pytest.raises(ValueError, match=message):
        answers_of(other, tmp_path, NUMBERS)
    chosen = tmp_path / exams["b"].file
    assert answers_of(other, chosen, NUMBERS) == chosen
    JsonLines(tmp_path / dataclasses.replace(EXAM, weights="z").file).append([line])
    twin = dataclasses.replace(EXAM, weights="z", model="twin")
    files.add_results(tmp_path, {twin.file: {"exam": dataclasses.asdict(twin)}}, "exams")
    with pytest.raises(ValueError, match="that was asked as this is, found 2: give one of .*twin"):
        answers_of(dataclasses.replace(EXAM, weights="w"), tmp_path, NUMBERS)


def test_a_model_that_does_not_think_is_asked_once_and_compared_with_by_its_only_answers(
    opened, tmp_path
):
    plain = dataclasses.replace(EXAM, thoughts=0, task="commonsense_qa")
    thinks = dataclasses.replace(EXAM, task="commonsense_qa")
    quiet, tokenizer = opened
    with quiet.with_settings(thoughts=0, beta=0.0):
        summary = run(plain, quiet, tokenizer, CHOICES, tmp_path / "plain").to_json()
    assert not any(name.endswith(("greedy", "sampled", "mix", "slots")) for name in summary)
    answered = run(thinks, quiet, tokenizer, CHOICES, tmp_path).lines
    files = [x.file for x in (thinks, plain)]
    found = against(answered, tmp_path / "plain" / files[1]).results
    mine, theirs = (
        [x[name] for x in JsonLines(folder / file).records()]
        for name, folder, file in zip(
            ("gold_greedy", "gold_base"), (tmp_path, tmp_path / "plain"), files, strict=True
        )
    )
    assert found["gold_base"].mean == pytest.approx(0, abs=1e-6)
    assert found["gold_greedy"].mean == pytest.approx(np.mean(mine) - np.mean(theirs))
    assert "gold_chance" not in found


def test_chance_is_that_of_a_model_that_prefers_nothing(opened, tmp_path):
    exam = dataclasses.replace(EXAM, task="commonsense_qa")
    found = run(exam, *opened, CHOICES, tmp_path).results
    assert found["option_chance"].mean == 1 / 2
    assert found["gold_chance"].mean == pytest.approx((1 / 3) ** 2)  # A, B, newline; twice


def test_a_table_names_every_measure_with_its_interval_and_its_change():
    lines = [{"gold_base": 0.1, "gold_chance": 0.5, "gold_greedy": 0.3, "exact_base": True}] * 4
    facts = {"questions": 5, "too_long": ["n9"], "answered": 2, "seconds": 3.0}
    table = exam_table(EXAM, summary([{"id": str(i), **x} for i, x in enumerate(lines)], facts))
    gold, exact = "gold answer probability", "exact match of the decoded answer"
    assert table.title == "gsm8k: 4 of 5 questions"
    assert table.rows == [
        (gold, "by chance", "0.5000", "", "", ""),
        (gold, "without thoughts", "0.1000", "0.1000 to 0.1000", "", ""),
        (gold, "greedy thoughts", "0.3000", "0.3000 to 0.3000", "+0.2000", "-"),
        (exact, "without thoughts", "1.0000", "0.5101 to 1.0000", "", ""),
    ]
    assert table.notes == [
        "thoughts of n 2: greedy and 2 sampled; seed 0; 2 at a time",
        "too long for the model and left out: 1 (n9)",
        "3 s for 2, 1500 s for 1,000",
    ]
    assert exam_table(EXAM, summary([], facts)).heads == ()
    voting = dataclasses.replace(EXAM, votes=3)
    expected = "thoughts of n 2: majority of 3 chains, temperature 0.9, thoughts greedy"
    assert exam_table(voting, summary([], facts)).notes[0].startswith(expected)
