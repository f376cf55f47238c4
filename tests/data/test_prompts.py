"""prompts: a hint gives the answer and nothing more, and what is stored never holds it."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs.data.prompts import (
    COT_STOPS,
    PROMPTS,
    STOPS,
    closing,
    cot_final_prompt,
    cot_prompt,
    cut,
    direct_answer,
    direct_prompt,
    example_text,
    few_shot,
    few_shot_prefix,
    prompts_of,
    question_prompt,
)
from qs.data.question_sets import QUESTION_SETS, BenchmarkQuestion, parse_stated

BIRDS = BenchmarkQuestion("x", "How many birds?", (), "1080", "1,080", "540 + 540 = 1080")
FRUIT = BenchmarkQuestion(
    "y", "Which fruit?", (("A", "pear"), ("B", "plum"), ("C", "fig")), "B", "B"
)
WORDS = st.text("ab ()", min_size=1).map(lambda text: f"x{text}x")


def question(draw: st.DrawFn) -> BenchmarkQuestion:
    labels = "ABCDE"[: draw(st.sampled_from([0, 2, 5]))]
    choices = tuple((label, draw(WORDS)) for label in labels)
    gold = draw(st.sampled_from(labels) if labels else st.integers(-9, 9999).map(str))
    return BenchmarkQuestion("q", draw(WORDS), choices, gold, gold, "the worked solution")


QUESTIONS = st.composite(question)()


def test_few_shot_prompts_are_literally_these():
    assert question_prompt(BIRDS) == "Q: How many birds?\nA:"
    assert question_prompt(BIRDS, hint=True) == "Q: How many birds?\nHint: 1080\nA:"
    plain = "Q: Which fruit?\nAnswer Choices:\n(a) pear\n(b) plum\n(c) fig\nA:"
    assert question_prompt(FRUIT) == plain
    assert question_prompt(FRUIT, hint=True) == plain.replace("plum", "plum (CORRECT)")


def test_prompts_are_literally_those_of_the_official_evaluation():
    assert direct_prompt(BIRDS) == "Q: How many birds?\nA:"
    assert direct_answer(BIRDS) == " 1,080\n"
    assert direct_prompt(FRUIT) == "Q: Which fruit?\n(A) pear\n(B) plum\n(C) fig\nA:"
    assert direct_answer(FRUIT) == " B\n"
    chain = "Q: How many birds?\nA: Let's think step by step."
    assert cot_prompt(BIRDS) == chain
    assert cot_final_prompt(f"{chain} Many.\n \n") == (
        f"{chain} Many.\nTherefore, the answer (arabic numerals) is"
    )
    assert cot_prompt(FRUIT) == (
        "Q: Which fruit?\n(A) pear\n(B) plum\n(C) fig\nA: Let's think step by step."
    )


@given(parts=st.lists(st.sampled_from(["a", "\n", "Q:", " "])).map("".join))
def test_a_cut_text_is_the_longest_beginning_without_a_stop(parts):
    kept = cut(parts, COT_STOPS)
    ends = [n for n in range(len(parts) + 1) if any(s in parts[:n] for s in COT_STOPS)]
    stops = [n for n in range(len(parts)) if parts[n:].startswith(COT_STOPS)]
    assert parts.startswith(kept)
    assert not any(stop in kept for stop in COT_STOPS)
    assert len(kept) == (min(stops) if ends else len(parts))


@pytest.mark.parametrize("task", QUESTION_SETS)
@pytest.mark.parametrize("hint", [False, True])
def test_all_examples_of_a_prompt_are_hinted_or_none(task, hint):
    examples = few_shot(task)
    asked = {"gsm8k": BIRDS, "commonsense_qa": FRUIT}[task]
    prompt = few_shot_prefix(examples, hint) + question_prompt(asked, hint)
    *blocks, last = prompt.split("\n\n")
    assert last == question_prompt(asked, hint)
    assert blocks == [f"{question_prompt(e, hint)} {e.rationale}" for e in examples]
    hints = len(re.findall(r" \(CORRECT\)\n|\nHint: \d+\nA:", prompt))
    assert hints == hint * (len(examples) + 1)
    assert asked.rationale not in prompt or not asked.rationale


@given(asked=QUESTIONS)
def test_a_hint_adds_the_answer_only(asked):
    plain, hinted = question_prompt(asked).split("\n"), question_prompt(asked, True).split("\n")
    if asked.choices:
        (at,) = [i for i, line in enumerate(hinted) if line != plain[i]]
        assert hinted[at] == f"{plain[at]} (CORRECT)"
        assert plain[at].startswith(f"({asked.gold.lower()})")
    else:
        assert hinted == [*plain[:-1], f"Hint: {asked.gold}", plain[-1]]


@given(asked=QUESTIONS, rationale=WORDS)
def test_what_is_stored_is_the_plain_question_and_the_rationale(asked, rationale):
    for generated in (rationale, f" {rationale}\n"):
        prompt, completion = example_text(asked, generated)
        assert prompt == question_prompt(asked)
        assert completion == f" {rationale}"


@given(asked=QUESTIONS)
def test_the_closing_statement_is_the_answer_alone_and_reads_back(asked):
    assert parse_stated(asked, closing(asked)) == asked.gold
    words = f"Therefore, the answer is ({asked.gold.lower()})." if asked.choices else None
    assert closing(asked) == (words or f"The answer is {asked.gold}.")


def test_without_examples_nothing_is_put_before_a_question():
    assert few_shot_prefix([]) == few_shot_prefix([], hint=True) == ""


@pytest.mark.parametrize("task", QUESTION_SETS)
def test_examples_state_their_answers_and_a_continued_prompt_is_cut_behind_one(task):
    examples = few_shot(task)
    assert len(examples) == 10
    assert len({e.text for e in examples}) == 10
    whole = few_shot_prefix(examples) + question_prompt(examples[0])
    for e in examples:
        _, completion = example_text(e, e.rationale)
        assert parse_stated(e, completion) == e.gold
        _, start, after = whole.partition(question_prompt(e))
        assert start
        assert cut(after, STOPS) == completion


def test_correct_choices_are_spread_evenly_over_the_labels():
    examples = few_shot("commonsense_qa")
    assert sorted(e.gold for e in examples) == sorted("ABCDE" * 2)
    assert {e.labels for e in examples} == {tuple("ABCDE")}
    for e in examples:
        assert e.rationale.endswith(f" Therefore, the answer is ({e.gold.lower()}).")


def test_every_calculation_of_the_number_examples_is_right():
    def value(text: str) -> int:  # from left to right; no example has * behind + or -
        first, *rest = re.split(r" ([-+*/]) ", text)
        result = int(first)
        for sign, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
            assert sign != "/" or result % number == 0
            steps = {"+": result + number, "-": result - number, "*": result * number}
            result = steps[sign] if sign in steps else result // number
        return result

    for e in few_shot("gsm8k"):
        found = re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", e.rationale)
        assert len(found) == e.rationale.count("=") >= 2
        assert all(value(left) == int(right) for left, right in found), e.rationale
        assert found[-1][1] == e.gold
        assert e.rationale.endswith(f" The answer is {e.gold}.")


def test_an_edited_file_is_read(tmp_path):
    path = tmp_path / "commonsense_qa.txt"
    path.write_text(
        "# mine\r\n\n\nQ: Which?\n(a) this\n# not this\n(b) that \nA: That.\nThe answer is (b).\n"
    )
    (found,) = few_shot("commonsense_qa", tmp_path)
    choices = (("A", "this"), ("B", "that"))
    assert found == BenchmarkQuestion(
        "commonsense_qa-1", "Which?", choices, "B", "B", "That.\nThe answer is (b)."
    )


REFUSED = {
    "empty": ("gsm8k", "# nothing\n", "found none"),
    "no answer line": ("gsm8k", "Q: How many?\n", "no lines 'Q: ' and 'A: '"),
    "two questions": ("gsm8k", "Q: x\nQ: y\nA: The answer is 1.", "the lines .* for choices"),
    "no statement": ("gsm8k", "Q: x\nA: It is 1.", "no answer stated"),
    "no choices": ("commonsense_qa", "Q: x\nA: The answer is (a).", r"the lines \[\] for choices"),
    "choices": ("gsm8k", "Q: x\n(a) y\nA: The answer is 1.", "the lines .* for choices"),
    "capitals": ("commonsense_qa", "Q: x\n(A) y\nA: The answer is (a).", "the lines .* for"),
    "same": ("commonsense_qa", "Q: x\n(a) y\n(a) z\nA: The answer is (a).", "choices labelled"),
    "other": ("commonsense_qa", "Q: x\n(a) y\n(b) z\nA: The answer is (c).", "no answer stated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, name):
    task, text, message = REFUSED[name]
    (tmp_path / f"{task}.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"{task}\.txt: expected .*{message}") as error:
        few_shot(task, tmp_path)
    assert "\n" not in str(error.value)


def test_unreadable_files_and_unknown_tasks_are_refused(tmp_path):
    (tmp_path / "gsm8k.txt").write_bytes(b"Q: \xff")
    with pytest.raises(ValueError, match="gsm8k.txt, line 1: expected text in UTF-8, found"):
        few_shot("gsm8k", tmp_path)
    with pytest.raises(
        ValueError, match="none/gsm8k.txt: expected worked examples, found: No such file"
    ):
        few_shot("gsm8k", tmp_path / "none")
    with pytest.raises(ValueError, match="expected a task gsm8k or commonsense_qa, found 'sums'"):
        few_shot("sums")


def test_there_is_a_file_for_every_task_and_no_other():
    assert {path.name for path in PROMPTS.iterdir()} == {f"{task}.txt" for task in QUESTION_SETS}


def test_a_file_holds_the_prompts_that_standard_input_does(tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffone\u2028prompt\x0cwith\x85separators\r\ntwo", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    expected = ["one\u2028prompt\x0cwith\x85separators", "two"]
    assert list(prompts_of(str(path))) == list(prompts_of("-")) == expected
    path.write_bytes("fine\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: expected text in UTF-8, found"):
        prompts_of(str(path))
    monkeypatch.setattr("sys.stdin", None)  # as under <&-
    with pytest.raises(ValueError, match="expected prompts on standard input, found it closed"):
        prompts_of("-")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("prompts.txt", "there is no file prompts.txt: it is taken as the prompt"),
        ("no/such.jsonl", "there is no file no/such.jsonl"),
        (r"71600\n", r"a line break is $'..\n' in the shell"),
        (r"with \nabla and \nu", ""),
        ("Read the file notes.txt", ""),
        ("71600\n", ""),
    ],
)
def test_a_prompt_that_is_likely_a_mistake_is_told(prompt, said, capsys):
    assert list(prompts_of(prompt)) == [prompt]
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) == bool(said)
