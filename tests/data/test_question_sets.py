"""questions: what is published is read whole, prompts are the official ones, answers are strict."""

import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qs.data.answers import final_number, majority, parse_choice, parse_number, stated_number
from qs.data.prompts import (
    COT_FINAL,
    COT_STOPS,
    cot_final_prompt,
    cot_prompt,
    cut,
    direct_answer,
    direct_prompt,
)
from qs.data.question_sets import (
    Question,
    parse_direct,
    parse_stated,
    question_file,
    read_questions,
    same_answer,
)

APPLES = Question("x-1", "How many apples?", (), "1080", "1,080", "8 * 135 = 1080")
FRUIT = Question("x-2", "Which fruit?", (("A", "pear"), ("B", "plum "), ("C", "fig")), "B", "B")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def gsm8k(answer: str = "2 + 2 = <<2+2=4>>4\n#### 4", question: str = "How many?") -> dict:
    return {"question": question, "answer": answer}


def choices(labels: str = "AB", key: object = "B", text: str = "some") -> dict:
    listed = [{"label": label, "text": text} for label in labels]
    return {"id": "q", "answerKey": key, "question": {"stem": "Which?", "choices": listed}}


# ---- files ---------------------------------------------------------------------------------------
def test_a_gsm8k_line_gives_question_worked_solution_and_number(tmp_path):
    record = gsm8k("He has 2+2=<<2+2=4>>4.\nSo $<<4*270=1080>>1,080\n#### 1,080", " How many?")
    (found,) = read_questions("gsm8k", write(tmp_path / "test.jsonl", record))
    worked = "He has 2+2=4.\nSo $1,080"
    assert found == Question("test-1", " How many?", (), "1080", "1,080", worked)


@given(data=st.data())
def test_both_published_forms_of_a_choice_are_read_alike(tmp_path, data):
    labels = data.draw(st.lists(st.sampled_from("ABCDEFG"), min_size=2, unique=True))
    texts = [data.draw(TEXT) for _ in labels]
    gold, stem, name = data.draw(st.sampled_from(labels)), data.draw(TEXT), data.draw(TEXT)
    listed = [{"label": x, "text": y} for x, y in zip(labels, texts, strict=True)]
    nested = {"stem": stem, "choices": listed, "question_concept": "x"}
    flat = {"question": stem, "choices": {"label": labels, "text": texts}}
    path = write(
        tmp_path / "x.jsonl",
        {"id": name, "answerKey": gold, "question": nested},
        {"id": name, "answerKey": gold} | flat,
    )
    first, second = read_questions("commonsense_qa", path)
    assert first == second
    assert first == Question(name, stem, tuple(zip(labels, texts, strict=True)), gold, gold)


def test_empty_lines_count_and_hold_nothing_and_the_limit_is_kept(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(f"\n{json.dumps(gsm8k())}\r\n\n{json.dumps(gsm8k())}\nno JSON")
    assert [q.id for q in read_questions("gsm8k", path, limit=2)] == ["test-2", "test-4"]
    assert [q.id for q in read_questions("gsm8k", path, limit=1)] == ["test-2"]


UNEQUAL = {"question": "x", "choices": {"label": ["A", "B"], "text": ["x"]}}
DAMAGED = {
    "cut short": ("gsm8k", '{"question": "How', "Unterminated string"),
    "no UTF-8": ("gsm8k", b"\xff", "can't decode byte 0xff"),
    "a list": ("gsm8k", "[1]", "no str 'question'"),
    "deep": ("gsm8k", "[" * 100_000, "recursion"),
    "no question": ("gsm8k", json.dumps(gsm8k(question="")), "no str 'question'"),
    "no mark": ("gsm8k", json.dumps(gsm8k("4")), "no '#### number'"),
    "no number": ("gsm8k", json.dumps(gsm8k("#### four")), "no '#### number'"),
    "more behind": ("gsm8k", json.dumps(gsm8k("#### 4 or 5")), "no '#### number'"),
    "no key": ("commonsense_qa", json.dumps(choices(key="")), "answerKey '', none of .*no key"),
    "key a list": ("commonsense_qa", json.dumps(choices(key=["B"])), "answerKey"),
    "other key": ("commonsense_qa", json.dumps(choices(key="C")), r"answerKey 'C', none of \['A'"),
    "one choice": ("commonsense_qa", json.dumps(choices("B")), r"choices labelled \['B'\]"),
    "same label": ("commonsense_qa", json.dumps(choices("ABB")), "not by different capital"),
    "digits": ("commonsense_qa", json.dumps(choices("12", "1")), "not by different capital"),
    "empty text": ("commonsense_qa", json.dumps(choices(text="")), "no str 'text'"),
    "GSM8K": ("commonsense_qa", json.dumps(gsm8k()), "no dict 'choices'"),
    "unequal": ("commonsense_qa", json.dumps(UNEQUAL), "2 labels for 1 choices"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_refused_in_one_line_that_names_it(tmp_path, name):
    task, line, message = DAMAGED[name]
    good = json.dumps(gsm8k() if task == "gsm8k" else choices()).encode()
    path = tmp_path / "train.jsonl"
    path.write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(ValueError, match=rf"train\.jsonl, line 2: expected .*{message}") as error:
        read_questions(task, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "name", "origin"),
    [
        ("gsm8k", "test.jsonl", "openai/grade-school-math"),
        ("commonsense_qa", "validation.jsonl", "dev_rand_split.jsonl as validation.jsonl"),
    ],
)
def test_a_missing_file_says_what_to_get_and_where_to_put_it(tmp_path, task, name, origin):
    path = question_file(task, "heldout", tmp_path)
    with pytest.raises(ValueError, match="No such file") as error:
        read_questions(task, path)
    message = str(error.value)
    assert message.startswith(f"{path}: expected questions of {task}")
    assert f"put them at data/{task}/train.jsonl and data/{task}/{name}" in message
    assert origin in message
    assert "\n" not in message


def test_other_tasks_splits_limits_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="expected a task gsm8k or commonsense_qa, found 'sums'"):
        read_questions("sums", path)
    with pytest.raises(ValueError, match="expected a task"):
        question_file("sums", "train")
    with pytest.raises(ValueError, match="expected a task"):
        same_answer("sums", "1", "1")
    with pytest.raises(ValueError, match="expected a split train or heldout, found 'test'"):
        question_file("gsm8k", "test")
    with pytest.raises(ValueError, match="limit of at least 1 question, found 0"):
        read_questions("gsm8k", path, limit=0)
    with pytest.raises(ValueError, match=r"x\.jsonl: expected questions .* found an empty file"):
        read_questions("gsm8k", path)


# ---- prompts -------------------------------------------------------------------------------------
def test_prompts_are_literally_those_of_the_official_evaluation():
    assert direct_prompt(APPLES) == "Q: How many apples?\nA:"
    assert direct_answer(APPLES) == " 1,080\n"
    assert direct_prompt(FRUIT) == "Q: Which fruit?\n(A) pear\n(B) plum \n(C) fig\nA:"
    assert direct_answer(FRUIT) == " B\n"
    chain = "Q: How many apples?\nA: Let's think step by step."
    assert cot_prompt(APPLES) == chain
    assert cot_final_prompt(f"{chain} Many.\n \n") == (
        f"{chain} Many.\nTherefore, the answer (arabic numerals) is"
    )
    assert cot_prompt(FRUIT) == (
        "Q: Which fruit?\n(A) pear\n(B) plum \n(C) fig\nA: Let's think step by step."
    )


@given(parts=st.lists(st.sampled_from(["a", "\n", "Q:", " "])).map("".join))
def test_a_cut_text_is_the_longest_beginning_without_a_stop(parts):
    kept = cut(parts, COT_STOPS)
    ends = [n for n in range(len(parts) + 1) if any(s in parts[:n] for s in COT_STOPS)]
    stops = [n for n in range(len(parts)) if parts[n:].startswith(COT_STOPS)]
    assert parts.startswith(kept)
    assert not any(stop in kept for stop in COT_STOPS)
    assert len(kept) == (min(stops) if ends else len(parts))


# ---- numbers -------------------------------------------------------------------------------------
def naive(value: Decimal) -> str:
    """Canonical form, by way of decimal arithmetic."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


@given(data=st.data(), places=st.integers(0, 4), size=st.integers(0, 10**9))
def test_a_number_comes_back_however_it_is_written(data, places, size):
    def pick(*options: str) -> str:
        return data.draw(st.sampled_from(options))

    value = Decimal(size).scaleb(-places)
    digits = f"{value:,.{places}f}" if pick("plain", "grouped") == "grouped" else f"{value:f}"
    sign, inside = pick("", "+", "-", "−"), pick("", "$", "€")
    front = pick(f"{sign}{inside}", f"{inside}{sign}")
    back = pick("", "%", " %", "kg", " dollars", " eggs per day", " km/h", " m²", "€", "°C")
    text = pick("", " ", "\n") + front + digits + back + pick("", ".") + pick("", " ", "\n")
    assert parse_number(text) == naive(-value if sign in ("-", "−") else value)


@given(size=st.integers(0, 10**6), zeros=st.integers(0, 5).map("0".__mul__))
@example(size=1, zeros="0" * 10_000)  # longer than what int() reads
def test_zeros_that_mean_nothing_are_left_out(size, zeros):
    assert parse_number(f"{zeros}{size}") == parse_number(f"{size}.0{zeros}") == str(size)
    assert parse_number(f"{zeros}{size}.5{zeros}") == f"{size}.5"


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "-", "$", "ten", "about 5", "x = 5", "5 or 6", "5 6", "3 000", "1/2", "1e5"]
    + ["1,23", "1,234,5", "0,123", "1.234,5", "1234,567", "1.2.3", "18..", "--5", "-$-5", "- 5"]
    + ["5x", "5k", "5 m", "5 million", "2 dozen", "3rd", "5 and a half", "5 point two", "٣", "½"]
    + ["5!", "(5)", "5,", "5\n6", "nan", "inf", "0x10", "5 eggs per day each", "__import__('os')"],
)
def test_text_that_is_no_single_number_gives_none(text):
    assert parse_number(text) is None


@given(text=st.text(st.sampled_from(list("0123456789,.-+$%/ \n#ambo")), max_size=12))
def test_a_number_that_is_read_is_canonical_and_has_the_digits_of_the_text(text):
    found = parse_number(text)
    if found is not None:
        assert parse_number(found) == found == naive(Decimal(found))
        digits = "".join(c for c in text if c in "0123456789.")
        assert Decimal(digits.rstrip(".")) == abs(Decimal(found))


def test_the_final_number_is_the_first_integer_after_the_last_call_for_it():
    for text in (" 1,080 apples", " $1080.", " 1080.5", " -1080", " 01080 and 5", "= 1080"):
        for chain in ("", "12 eggs", f"12{COT_FINAL} 13"):
            assert final_number(f"{chain}{COT_FINAL}{text}") == "1080"
        assert final_number(text) == "1080"
    assert final_number(" many") is final_number(f"12 eggs{COT_FINAL} unknown") is None


@pytest.mark.parametrize(
    "text",
    ["2 + 2 = 5.\n#### 4.5", "#### 4.50\n", "  #### $4.5", "2 + 2 = 5. The answer is 4.5."]
    + ["So the ANSWER is $4.50. That is all.", "Therefore, the answer is: 4.5 eggs", "Answer: 4.5"]
    + ["The answer is 4.50.\n#### 4.5", "The answer is clear. The answer is 4.5."],
)
def test_a_worked_solution_states_its_number(text):
    assert stated_number(text) == parse_stated(APPLES, text) == "4.5"


@pytest.mark.parametrize(
    "text",
    ["", "2 + 2 = 4", "2 #### 4", "####", "#### 4\n#### 5", "The answer is\n4.", "The answer is."]
    + ["The answer is 4. No, the answer is 5.", "The answer is 4. No, the answer is hard."]
    + ["The answer is 4 or 5.", "The answer is not 4.", "The answer isn't 4.", "The answers: 4"],
)
def test_a_worked_solution_that_states_no_number_or_two_gives_none(text):
    assert stated_number(text) is None


# ---- choices -------------------------------------------------------------------------------------
@given(data=st.data(), labels=st.sampled_from(["ABCDE", "AB", "XYZ"]))
def test_a_label_comes_back_however_it_is_written(data, labels):
    gold = data.draw(st.sampled_from(labels))
    letter = data.draw(st.sampled_from([gold, gold.lower()]))
    alone = data.draw(st.sampled_from(["{}", "({})", "{})", "{}.", "({}).", "{}:"])).format(letter)
    words = data.draw(st.sampled_from(["({}) some thing", "{}) some thing"])).format(letter)
    closed = data.draw(st.sampled_from(["", ".", "\n", ". Good."]))
    before = data.draw(st.sampled_from(["", "It holds (A) and b.\n", "A: Paper\n", "Not (B)!\n"]))
    said = data.draw(st.sampled_from(["The answer is", "So the Answer is:", "answer:", "####"]))
    stated = data.draw(
        st.sampled_from([f"({letter})", f"{letter}", words, f"the thing ({letter})"])
    )
    for text in (alone, words, f" {alone}\n", f"{before}{said} {stated}{closed}"):
        assert parse_choice(text, labels) == gold, text


@pytest.mark.parametrize(
    "text",
    ["", "F", "(F)", "AB", "a dog", "A dog", "E. coli", "(A", "(A) or (B)", "(A), (B)", "(A) or B"]
    + ["(A) is it", "(A) library\n(B) zoo", "(A) zoo (B)", "library (A)", "The answer is a dog."]
    + ["The answer is (A) or (B).", "The answer is either (A)", "The answer is not (A)."]
    + ["The answer is neither a nor (b).", "The answer isn't (A).", "The answer is (F)."]
    + ["The answer is (A). The answer is (B).", "The answer is (A). So the answer is unclear."]
    + ["The answer is A because it is.", "So #### A", "The answer is\n(A)"]
    + ["\u212a", "(\u212a)", "\u0131", "\u0410"],  # Kelvin sign, dotless i, Cyrillic A
)
def test_text_that_chooses_no_label_or_two_gives_none(text):
    assert parse_choice(text, "ABCDEIK") is None


def test_a_direct_answer_is_its_first_line_alone():
    assert parse_direct(APPLES, " 1,080\nQ: 5") == "1080"
    assert parse_direct(APPLES, "\n1080") is None
    assert parse_direct(FRUIT, " B\nQ: which (C)") == "B"
    assert parse_direct(FRUIT, " (b) plum\n(C) fig") == "B"
    assert parse_direct(FRUIT, " D\n") is None
    assert all(parse_direct(q, direct_answer(q)) == q.gold for q in (APPLES, FRUIT))


def test_answers_are_the_same_by_value_not_by_writing():
    assert same_answer("gsm8k", "1,080.0", "1080")
    assert not same_answer("gsm8k", "108", "1080")
    assert same_answer("commonsense_qa", "b", "B")
    assert not same_answer("commonsense_qa", "A", "B")
    for task in ("gsm8k", "commonsense_qa"):
        assert not same_answer(task, None, "B")
    assert not same_answer("gsm8k", "many", "many")


# ---- votes ---------------------------------------------------------------------------------------
@given(votes=st.lists(st.sampled_from(["a", "b", "c", None])))
@example(votes=["a", "b", "b", "a"])
@example(votes=[None, None, "a"])
def test_the_majority_is_the_most_frequent_answer_first_to_its_count(votes):
    counts = {vote: votes.count(vote) for vote in "abc" if vote in votes}
    reached = {  # at which vote each got its last one
        vote: max(i for i, other in enumerate(votes) if other == vote) for vote in counts
    }
    expected = min(counts, key=lambda vote: (-counts[vote], reached[vote]), default=None)
    assert majority(votes) == expected


# ---- the real files ------------------------------------------------------------------------------
@pytest.mark.skipif("QS_DATA" not in os.environ, reason="QS_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("task", "split", "count"),
    [
        ("gsm8k", "train", 7473),
        ("gsm8k", "heldout", 1319),
        ("commonsense_qa", "train", 9741),
        ("commonsense_qa", "heldout", 1221),
    ],
)
def test_every_published_question_is_read_and_its_answer_read_back(task, split, count):
    path = question_file(task, split, os.environ["QS_DATA"])
    found = read_questions(task, path)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(found) == len(records) == len({question.id for question in found}) == count
    for question, record in zip(found, records, strict=True):
        text = direct_prompt(question) + direct_answer(question)
        assert parse_direct(question, direct_answer(question)) == question.gold
        assert same_answer(task, question.written, question.gold)
        if task == "gsm8k":  # as the official code puts it together
            number = record["answer"].split("####")[-1]
            assert text == "Q: " + record["question"] + "\nA:" + number + "\n"
            assert parse_stated(question, record["answer"]) == question.gold
            assert parse_stated(question, f"The answer is ${question.written}.") == question.gold
            assert "<<" not in question.rationale
        else:
            listed = record["question"]["choices"]
            options = "\n".join(f"({choice['label']}) {choice['text']}" for choice in listed)
            stem, key = record["question"]["stem"], record["answerKey"]
            assert text == f"Q: {stem}\n{options}\nA: {key}\n"
            assert parse_stated(question, f"So the answer is ({key.lower()}).") == question.gold
