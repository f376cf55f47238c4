"""star_tasks: every answer reads back, no held-out problem is trained on, a hint is only a hint."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs.config import StarConfig
from qs.data import arithmetic, prompts, synthetic
from qs.data.prompts import cut
from qs.star.tasks import LONGEST, Problem, task_of

SEEDS = st.integers(0, 2**32)
SETS = ("gsm8k", "commonsense_qa")
WORKED = "17 figs and 3 nuts make <<17+3=20>>20"
FEW = {"problems": 20, "test_problems": 5}


def config(task: str, **changes) -> StarConfig:
    return StarConfig(task=task, rationalize=task != "world", **(FEW | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A folder of both question sets, ten to train on and three held out."""
    folder = tmp_path_factory.mktemp("data")
    for task, heldout in (("gsm8k", "test"), ("commonsense_qa", "validation")):
        for split, count in (("train", 10), (heldout, 3)):
            lines = []
            for i in range(count):
                text = f"{split} {i}: how many?"
                choices = {"label": list("ABCDE"), "text": [f"{x} and {i}" for x in "vwxyz"]}
                gsm8k = {"question": text, "answer": f"{WORKED}\n#### {1000 * i:,}"}
                choice = {"question": text, "choices": choices, "answerKey": "ABCDE"[i % 5]}
                choice["id"] = f"{split}{i}"
                lines.append(json.dumps(gsm8k if task == "gsm8k" else choice))
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines))
    return str(folder)


def texts(problems: list[Problem]) -> list[tuple]:
    return [(p.id, p.gold, p.prompt, p.question, p.hint, p.answer) for p in problems]


# ---- problems ------------------------------------------------------------------------------------
@given(seeds=st.tuples(SEEDS, SEEDS), number=st.integers(1, 20))
@pytest.mark.parametrize("task", ["arithmetic", "world"])
def test_no_generated_problem_is_trained_on_and_measured_on(task, seeds, number):
    one, other = (task_of(config(task), seed) for seed in seeds)
    train, heldout = one.training(number), other.heldout
    assert 10 <= len(train) <= 20
    for some in (train, heldout):
        assert len({p.id for p in some}) == len(some)
    if task == "arithmetic":
        train, heldout = ({tuple(sorted(p.id.split("+"))) for p in x} for x in (train, heldout))
        assert len({sum(map(len, x)) for x in train}) == LONGEST
    else:
        train, heldout = ({p.question for p in x} for x in (train, heldout))
    assert not train & heldout


def test_no_short_sum_of_the_world_is_in_both_splits_though_most_are_drawn():
    found = task_of(config("world", problems=3000, test_problems=300), 0)
    some, others = (
        {p.id for p in x if p.group == "sum" and p.id.endswith("00")}
        for x in (found.training(1), found.heldout)
    )
    assert len(some) > 200 > len(others) > 20
    assert not some & others


@pytest.mark.parametrize("task", ["arithmetic", "world", *SETS])
def test_seed_and_round_alone_decide_the_problems(task, data):
    tasks = [task_of(config(task, questions=data, problems=5), seed) for seed in (3, 3, 4)]
    one, same, other = tasks
    assert texts(one.training(2)) == texts(one.training(2)) == texts(same.training(2))
    for another in (one.training(1), other.training(2)):  # not only in another order
        assert sorted(p.id for p in one.training(2)) != sorted(p.id for p in another)
    assert len(one.training(2)) == 5
    assert [p.id for p in one.heldout] == [p.id for p in other.heldout]


@pytest.mark.parametrize("task", SETS)
def test_a_round_takes_different_questions_or_all_and_never_held_out_ones(task, data):
    some = task_of(config(task, questions=data, problems=0, test_problems=2), 0)
    everything = [p.id for p in some.training(1)]
    assert len(set(everything)) == len(everything) == 10
    assert everything != sorted(everything)
    assert sorted(p.id for p in some.training(2)) == sorted(everything)
    assert len(some.heldout) == 2
    assert all("train" in p.question for p in some.training(1))
    assert not any("train" in p.question for p in some.heldout)
    few = task_of(config(task, questions=data, problems=4, test_problems=0), 0)
    assert len({p.id for p in few.training(1)}) == 4
    assert len(few.heldout) == 3


def test_missing_question_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="train.jsonl: expected questions of gsm8k"):
        task_of(config("gsm8k", questions=str(tmp_path)), 0)


# ---- answers -------------------------------------------------------------------------------------
def right(problem: Problem, learn: str, task: str) -> str:
    """A completion that reaches the answer, written out here."""
    if task == "arithmetic" and learn == "rationales":
        return arithmetic.scratchpad(arithmetic.Sum(*map(int, problem.id.split("+"))))
    if task == "world" and learn == "rationales":
        return f"1234{problem.gold}{synthetic.CLOSE}{problem.answer}"
    return problem.answer


@pytest.mark.parametrize("learn", ["rationales", "answers"])
@pytest.mark.parametrize("task", ["arithmetic", "world", *SETS])
def test_a_right_completion_reads_as_the_gold_answer(task, learn, data):
    found = task_of(config(task, questions=data, learn=learn), 0)
    assert (task == "world") == (len({p.group for p in found.heldout}) == 3)
    for p in [*found.training(1), *found.heldout]:
        completion = right(p, learn, task)
        assert p.read(completion) == p.gold
        for stop in found.stops:  # what a model writes of a next question is cut off
            assert p.read(cut(f"{completion}{stop} something", found.stops)) == p.gold
        assert p.read("") is None
        assert p.read("figs") != p.gold
    groups = {p.group for p in found.heldout}
    if task == "arithmetic":
        assert groups == {f"{d} digits" for d in range(1, 6)}


def test_an_answer_without_the_working_asked_for_is_none():
    (p, *_) = task_of(config("world"), 0).heldout
    assert p.question.endswith(f"\n{synthetic.OPEN}")
    assert p.read(p.answer) is None
    (p, *_) = task_of(config("arithmetic"), 0).heldout
    assert p.read(p.answer) is None


@pytest.mark.parametrize("shots", [0, 2, 7])
def test_a_model_that_goes_on_after_worked_sums_is_cut_where_the_next_one_begins(shots):
    found = task_of(config("arithmetic", shots=shots), 0)
    (p, *_) = found.training(1)
    whole = p.prompt + right(p, "rationales", "arithmetic")
    assert whole.count("Input:") == shots + 1
    for block in whole.split("Input:")[1:-1]:  # each example is what its own sum would be
        asked, _, answer = f"Input:{block}".partition("Target:\n")
        a, b = asked.split("\n")[1].split(" + ")
        one = arithmetic.Sum(int(a.replace(" ", "")), int(b.replace(" ", "")))
        assert answer == arithmetic.scratchpad(one)
        followed = cut(f"{answer}Input:\n1 + 1", found.stops)
        assert followed == arithmetic.scratchpad(one)


@pytest.mark.parametrize("task", ["arithmetic", *SETS])
@pytest.mark.parametrize("learn", ["rationales", "answers"])
def test_shots_are_counted_and_answers_alone_show_answers_alone(task, learn, data):
    mark = {"arithmetic": "Target:"}.get(task, "\nA:")
    for shots, expected in ((0, 1), (3, 4), (99, 100 if task == "arithmetic" else 11)):
        found = task_of(config(task, questions=data, learn=learn, shots=shots), 0)
        for p in found.heldout:
            assert p.prompt.count(mark) == p.hinted.count(mark) == expected
            assert p.prompt.endswith(p.question)
            assert p.hinted.endswith(p.hint)
    assert (arithmetic.BEGIN in p.prompt) == (task == "arithmetic" and learn == "rationales")
    if task != "arithmetic":
        block = p.prompt.split("\n\n")[0]
        sentences = block.rpartition("\nA: ")[2].split(". ")
        assert (len(sentences) == 1) == (learn == "answers")


# ---- hints ---------------------------------------------------------------------------------------
def test_a_hint_is_the_answer_and_nothing_else(data):
    for p in task_of(config("arithmetic"), 0).heldout:
        assert p.hint == f"{p.question[:-1]} {' '.join(p.gold)}\n"
    for p in task_of(config("gsm8k", questions=data), 0).heldout:
        assert p.hint == p.question.replace("\nA:", f"\nHint: {p.gold}\nA:")
        assert "figs" not in p.hinted + p.prompt + p.answer  # of the worked solution
    for p in task_of(config("commonsense_qa", questions=data), 0).heldout:
        before, mark, after = p.hint.partition(" (CORRECT)")
        assert mark
        assert before + after == p.question
        assert before.split("\n")[-1].startswith(f"({p.gold.lower()}) ")


@pytest.mark.parametrize("task", ["arithmetic", *SETS])
def test_what_is_stored_holds_no_hint_and_no_example(task, data):
    found = task_of(config(task, questions=data, shots=3), 0)
    for p in [*found.training(1), *found.heldout]:
        assert not any(mark in p.question + p.answer for mark in found.forbidden)
        assert p.question.count("Q:" if task in SETS else "Input:") == 1
        assert len(p.question) < len(p.prompt) / 2
        assert p.question != p.hint
    if task in SETS:
        hints = sum(p.hinted.count(mark) for mark in found.forbidden)
        assert hints == 3 + 1
        assert not any(mark in p.prompt for mark in found.forbidden)


def test_the_world_has_no_hints():
    (p, *_) = task_of(config("world"), 0).heldout
    with pytest.raises(ValueError, match="no hints: pass --no-rationalize"):
        assert p.hinted


def test_worked_examples_are_held_once_for_all_problems(data):
    for task in ("arithmetic", *SETS):
        some = task_of(config(task, questions=data), 0).training(1)
        assert all(p.shown[i] is some[0].shown[i] for p in some for i in (0, 1))


# ---- the real files ------------------------------------------------------------------------------
@pytest.mark.skipif("QS_DATA" not in os.environ, reason="QS_DATA names no folder of real data")
@pytest.mark.parametrize(("task", "count"), [("gsm8k", 7473), ("commonsense_qa", 9741)])
def test_every_published_training_problem_is_asked_and_its_answer_read_back(task, count):
    settings = config(task, questions=os.environ["QS_DATA"], problems=0, test_problems=0)
    found = task_of(settings, 0)
    problems = found.training(1)
    assert len(problems) == len({p.id for p in problems}) == count
    assert not {p.question for p in problems} & {p.question for p in found.heldout}
    examples = prompts.few_shot(task)
    for p in problems:
        assert p.prompt.startswith(prompts.question_prompt(examples[0]))
        assert p.prompt.count("\nA:") >= 11
        assert p.prompt.endswith(f"\n\n{p.question}")
        assert p.hinted.endswith(f"\n\n{p.hint}")
        assert not any(mark in p.prompt + p.answer for mark in found.forbidden)
        assert p.read(p.answer) == p.read(f" So it is.{p.answer}\n\nQ: The next") == p.gold
        assert p.read(" I do not know.") is None
