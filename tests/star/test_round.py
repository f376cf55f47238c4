"""star: a rationale is kept if and only if it is right, and stored as if there were no hints."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import init_weights

import qs.inference.write
import qs.star.round as round_
from qs.config import Config, RunConfig, StarConfig
from qs.data import arithmetic
from qs.data.answers import stated_number
from qs.inference.decoding import Decoding, Generated, OutputToken
from qs.inference.write import Written
from qs.model.tokenizer import train_tokenizer
from qs.quietstar.load import choose_placement, load
from qs.settings import read_record
from qs.star.round import (
    Attempt,
    Example,
    accuracy,
    answer_examples,
    failures,
    generate_rationales,
    judge,
    kept_examples,
)
from qs.star.tasks import Problem, Task, task_of

LETTERS = "abcdefgh"
TASK = Task(training=lambda number: [], heldout=[], stops=("\n\n",), forbidden=("Hint:",))
DRAWN = Decoding(max_tokens=5, temperature=1.0, think_when="never")


def problem(i: int, hint: bool = True) -> Problem:
    """Its answer is its number, and so is what a completion says behind `is`."""
    question = f"Q: {LETTERS[i]}?\nA:"
    return Problem(
        id=f"p{i}",
        group=f"{1 + i % 2} digits",
        gold=str(i),
        question=question,
        hint=question.replace("\nA:", f"\nHint: {i}\nA:"),
        answer=f" {i}",
        read=lambda text: text.rpartition("is ")[2] or None,
        shown=("Q: z?\nA: is 9\n\n", "Q: z?\nHint: 9\nA: is 9\n\n"),
    )


PROBLEMS = [problem(i) for i in range(8)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([p.hinted + " is 12 Hint:" for p in PROBLEMS] * 20, folder, 290)
    init_weights(folder / "weights", folder, positions=80)
    settings = Config(run=RunConfig(objective="star", seq=16, device="cpu", dtype="float32"))
    quiet, _ = load(folder / "weights", settings, choose_placement(settings.run))
    return quiet, tokenizer


def scripted(monkeypatch, said: dict[str, str]):
    """What is written for each question, by its letter and, with a hint, `!`."""

    def write(quiet, tokenizer, prompts, decoding, seed, stops, numbers):
        found = []
        for prompt in prompts:
            last = prompt.rpartition("Q: ")[2]
            text = said.get(last[0] + "!" * ("Hint:" in last), " is x")
            three = (OutputToken(0, None, None, 0.0, 0.0),) * 3
            found.append(None if text is None else Written(text, three, True))
        return found

    monkeypatch.setattr(round_, "write", write)


class Letters:
    """Stands where a tokenizer does: prompts stay texts."""

    def prompt(self, text):
        return text


def made(problems, hint=False, size=3, **more) -> list[Attempt]:
    found = generate_rationales(None, Letters(), TASK, problems, DRAWN, 0, hint, size, **more)
    return [a for batch in found for a in batch]


# ---- a round -------------------------------------------------------------------------------------
def test_right_rationales_are_kept_and_failures_rationalised_and_stored_plainly(monkeypatch):
    said = {"a": " I think it is 0", "b": " is 2", "c": " is 2", "d": None, "e": " is"}
    said |= {"b!": " so it is 1", "e!": " The Hint: says it is 4", "f!": " is 4", "g!": " is 6"}
    scripted(monkeypatch, said)
    some = PROBLEMS[:7]
    first = made(some)
    assert [a.kept for a in first] == [True, False, True, False, False, False, False]
    assert [a.answer for a in first] == ["0", "2", "2", None, " is", "x", "x"]
    assert [a.tokens for a in first] == [3, 3, 3, 0, 3, 3, 3]
    failed = failures(some, first)
    assert [p.id for p in failed] == ["p1", "p4", "p5", "p6"]  # p3 did not fit
    second = made(failed, hint=True)
    assert [a.kept for a in second] == [True, False, False, True]
    assert second[1].answer == second[1].gold == "4"  # right, but it quotes the hint
    assert all(a.hint and a.prompt == p.hinted for a, p in zip(second, failed, strict=True))
    assert all(not a.hint and a.prompt == p.prompt for a, p in zip(first, some, strict=True))
    found = kept_examples(some, [*first, *second])
    assert found == [
        Example("p0", False, some[0].prompt, "Q: a?\nA:", " I think it is 0"),
        Example("p1", True, some[1].hinted, "Q: b?\nA:", " so it is 1"),
        Example("p2", False, some[2].prompt, "Q: c?\nA:", " is 2"),
        Example("p6", True, some[6].hinted, "Q: g?\nA:", " is 6"),
    ]
    for e in found:
        assert "Hint:" not in e.prompt + e.completion
        assert "z?" not in e.prompt  # of the worked examples


@pytest.mark.parametrize(
    ("text", "whole", "answer", "tail"),
    [
        (" The answer is 4", False, None, ""),  # of 45
        (" The answer is 4", True, "4", ""),
        (" The answer is 4.", False, None, ""),  # of 4.5
        (" The answer is 4. So", False, "4", " So"),
        (" The answer is 4. So", True, "4", ""),
        (" The answer is 5. So", False, "5", ""),  # not trained on: all that was written
        (" 2 + 2. The answer is 4.\nAnd she\nwe", False, "4", "we"),
        (" The answer is 4.\nThe answer is 4", False, None, ""),
    ],
)
def test_a_rationale_that_was_cut_off_is_right_only_if_no_other_answer_could_follow(
    text, whole, answer, tail
):
    asked = dataclasses.replace(problem(4), read=stated_number)
    attempt = judge(TASK, asked, False, "", Written(text, (), whole))
    assert (attempt.answer, attempt.kept) == (answer, answer == "4")
    assert attempt.rationale == text.removesuffix(tail)
    examples = kept_examples([asked], [attempt])
    assert [e.completion for e in examples] == [text.removesuffix(tail)] * (answer == "4")


def test_a_sum_that_was_cut_off_within_its_answer_is_not_read():
    (task,) = (task_of(StarConfig(test_problems=1), 0),)
    one = next(p for p in task.heldout if len(p.gold) > 1)
    a, b = map(int, one.id.split("+"))
    text = arithmetic.scratchpad(arithmetic.Sum(a, b))
    for length in range(len(text)):
        assert judge(task, one, False, "", Written(text[:length], (), False)).answer is None
    assert judge(task, one, False, "", Written(text[:-1], (), True)).kept
    assert judge(task, one, False, "", Written(text, (), False)).kept


def test_the_control_has_every_answer_and_no_rationale():
    expected = [Example(f"p{i}", False, None, f"Q: {LETTERS[i]}?\nA:", f" {i}") for i in range(8)]
    assert answer_examples(PROBLEMS) == expected


@given(marks=st.lists(st.tuples(st.sampled_from(["", "x", "y"]), st.booleans(), st.booleans())))
def test_accuracy_is_of_each_group_and_of_all(marks):
    some = [
        Attempt("i", group, "1", False, "", None if lost else "t", "1" if right else "2", False, 1)
        for group, right, lost in marks
    ]
    found = accuracy(some)
    groups = sorted({group for group, *_ in marks} - {""})
    assert list(found) == groups + ["all"] * bool(marks)
    for name in found:
        here = [right for group, right, _ in marks if name in (group, "all")]
        assert found[name] == sum(here) / len(here)


def test_an_attempt_is_read_back_and_other_lines_are_named():
    one = Attempt("i", "", "1", True, "p", None, None, False, 0)
    assert read_record("x.jsonl", Attempt, dataclasses.asdict(one)) == one
    line = dataclasses.asdict(one) | {"thought": "z"}
    del line["gold"]
    with pytest.raises(ValueError, match=r"x.jsonl: 1 missing \(gold\), 1 unexpected \(thought\)"):
        read_record("x.jsonl", Attempt, line)


# ---- generation ----------------------------------------------------------------------------------
@given(size=st.integers(1, 5), skip=st.integers(0, 5), hint=st.booleans(), seed=st.integers(0, 3))
def test_attempts_do_not_depend_on_where_they_were_resumed(opened, size, skip, hint, seed):
    whole = list(generate_rationales(*opened, TASK, PROBLEMS[:5], DRAWN, seed, hint, size))
    rest = list(
        generate_rationales(*opened, TASK, PROBLEMS[:5], DRAWN, seed, hint, size, skip * size)
    )
    assert [len(batch) for batch in whole] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    assert rest == whole[skip:]


def test_each_problem_draws_by_numbers_of_its_own(opened):
    same = [PROBLEMS[0]] * 4
    (one, two) = (
        list(generate_rationales(*opened, TASK, same, DRAWN, 0, size=size)) for size in (2, 4)
    )
    texts = [a.rationale for batch in one for a in batch]
    assert len(set(texts)) == 4
    assert texts == [a.rationale for batch in two for a in batch]
    other = [
        a.rationale for b in generate_rationales(*opened, TASK, same, DRAWN, 1, size=4) for a in b
    ]
    assert not set(other) & set(texts)


@pytest.mark.parametrize("long", [[1], [0, 1, 2]])
def test_what_does_not_fit_is_counted_and_changes_nothing_else(opened, long):
    some = [
        dataclasses.replace(p, question="long " * 40 + p.question) if i in long else p
        for i, p in enumerate(PROBLEMS[:3])
    ]
    ((*found,),) = generate_rationales(*opened, TASK, some, DRAWN, 0)
    ((*whole,),) = generate_rationales(*opened, TASK, PROBLEMS[:3], DRAWN, 0)
    for i, (a, b) in enumerate(zip(found, whole, strict=True)):
        if i in long:
            assert (a.rationale, a.answer, a.kept, a.tokens) == (None, None, False, 0)
            assert b.tokens > 0
        else:
            assert a.rationale == b.rationale
    assert not set(long) & {int(p.id[1:]) for p in failures(some, found)}
    assert accuracy(found)["all"] == sum(a.answer == a.gold for a in found) / 3


@dataclass
class Said:
    """Stands where `Stream` does and says a text, as long as it is not stopped."""

    tokenizer: object
    text: str

    def __call__(self, quiet, prompts, decoding, seed, stop=None, numbers=None, reading=None):
        found = []
        for row, prompt in enumerate(prompts):
            ids = self.tokenizer.encode(self.tokenizer.decode(prompt) + self.text)[
                len(prompt) - 1 :
            ]
            said, reason = [], "eos"
            for i in [*ids, self.tokenizer.eos_id]:
                said.append(i)
                if i != self.tokenizer.eos_id and stop is not None and stop(row, list(said)):
                    reason = "stop"
                    break
            tokens = tuple(OutputToken(i, None, None, 0.0, 0.0) for i in said)
            found.append(Generated(tokens, reason))
        return SimpleNamespace(finish=lambda: found)


@pytest.mark.parametrize(
    ("text", "kept", "whole"),
    [
        (" is 1", " is 1", True),
        ("is 1", "is 1", True),
        (" ab\n is 1\n\nQ: next is 2", " ab\n is 1", False),
        ("\n\nQ: a", "", False),
        (" is 12 é is 1", " is 12 é is 1", True),
        ("", "", True),
    ],
)
def test_a_rationale_is_the_text_up_to_a_stop_to_the_letter(opened, monkeypatch, text, kept, whole):
    quiet, tokenizer = opened
    monkeypatch.setattr(qs.inference.write, "Stream", Said(tokenizer, text))
    ((one, *_),) = generate_rationales(quiet, tokenizer, TASK, PROBLEMS[1:3], DRAWN, 0)
    assert one.rationale == kept
    assert one.kept == kept.endswith("is 1")
    length = len(tokenizer.encode(PROBLEMS[1].prompt + text)) - len(
        tokenizer.encode(PROBLEMS[1].prompt)
    )
    assert (one.tokens == length + 1) == whole


def test_a_right_sum_is_kept_to_its_last_newline(opened, monkeypatch):
    task = task_of(StarConfig(problems=5, test_problems=1, shots=1), 0)
    quiet, tokenizer = opened
    shape = dataclasses.replace(quiet.model.config, max_positions=9999)
    monkeypatch.setattr(quiet.model, "config", shape)
    for p in task.training(1):
        right = arithmetic.scratchpad(arithmetic.Sum(*map(int, p.id.split("+"))))
        monkeypatch.setattr(
            qs.inference.write, "Stream", Said(tokenizer, right + "Input:\n1 + 1\n")
        )
        ((one,),) = generate_rationales(quiet, tokenizer, task, [p], DRAWN, 0)
        assert one.kept
        assert one.rationale == right
