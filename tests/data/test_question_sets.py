"""question_sets: what is published is read whole, and every published answer is read back."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs.data.answers import parse_number
from qs.data.prompts import direct_answer, direct_prompt
from qs.data.question_sets import (
    BenchmarkQuestion,
    parse_direct,
    parse_stated,
    read_questions,
)

APPLES = BenchmarkQuestion("x-1", "How many apples?", (), "1080", "1,080", "8 * 135 = 1080")
FRUIT = BenchmarkQuestion(
    "x-2", "Which fruit?", (("A", "pear"), ("B", "plum "), ("C", "fig")), "B", "B"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


FILE = {"gsm8k": "test.jsonl", "commonsense_qa": "validation.jsonl"}


def write(data: Path, task: str, content: bytes) -> Path:
    """A file of held-out questions in a folder of data."""
    path = data / task / FILE[task]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def gsm8k(answer: str = "2 + 2 = <<2+2=4>>4\n#### 4", question: str = "How many?") -> dict:
    return {"question": question, "answer": answer}


def choices(labels: str = "AB", key: object = "B", text: str = "some") -> dict:
    listed = [{"label": label, "text": text} for label in labels]
    return {"id": "q", "answerKey": key, "question": {"stem": "Which?", "choices": listed}}


# ---- files ---------------------------------------------------------------------------------------
def test_a_gsm8k_line_gives_question_worked_solution_and_number(tmp_path):
    record = gsm8k("He has 2+2=<<2+2=4>>4.\nSo $<<4*270=1080>>1,080\n#### 1,080", " How many?")
    write(tmp_path, "gsm8k", lines(record))
    (found,) = read_questions("gsm8k", "heldout", tmp_path)
    worked = "He has 2+2=4.\nSo $1,080"
    assert found == BenchmarkQuestion("test-1", " How many?", (), "1080", "1,080", worked)


@given(data=st.data())
def test_both_published_forms_of_a_choice_are_read_alike(tmp_path, data):
    labels = data.draw(st.lists(st.sampled_from("ABCDEFG"), min_size=2, unique=True))
    texts = [data.draw(TEXT) for _ in labels]
    gold, stem, name = data.draw(st.sampled_from(labels)), data.draw(TEXT), data.draw(TEXT)
    listed = [{"label": x, "text": y} for x, y in zip(labels, texts, strict=True)]
    nested = {"stem": stem, "choices": listed, "question_concept": "x"}
    flat = {"question": stem, "choices": {"label": labels, "text": texts}}
    found = []
    for form in ({"question": nested}, flat):
        write(tmp_path, "commonsense_qa", lines({"id": name, "answerKey": gold} | form))
        found += read_questions("commonsense_qa", "heldout", tmp_path)
    first, second = found
    assert first == second
    assert first == BenchmarkQuestion(
        name, stem, tuple(zip(labels, texts, strict=True)), gold, gold
    )


def test_empty_lines_count_and_hold_nothing_and_the_limit_is_kept(tmp_path):
    one = json.dumps(gsm8k()).encode()
    write(tmp_path, "gsm8k", b"\n%b\r\n\n%b\nno JSON" % (one, one))
    for limit, names in ((2, ["test-2", "test-4"]), (1, ["test-2"])):
        assert [q.id for q in read_questions("gsm8k", "heldout", tmp_path, limit)] == names


def test_a_byte_order_mark_is_no_part_of_a_question_and_a_pipe_is_refused(tmp_path):
    write(tmp_path, "gsm8k", json.dumps(gsm8k()).encode())
    plain = read_questions("gsm8k", "heldout", tmp_path)
    write(tmp_path, "gsm8k", b"\xef\xbb\xbf" + json.dumps(gsm8k()).encode())
    assert read_questions("gsm8k", "heldout", tmp_path) == plain
    (tmp_path / "gsm8k/test.jsonl").unlink()
    os.mkfifo(tmp_path / "gsm8k/test.jsonl")
    with pytest.raises(ValueError, match="expected questions of gsm8k, found: no plain file"):
        read_questions("gsm8k", "heldout", tmp_path)


UNEQUAL = {"question": "x", "choices": {"label": ["A", "B"], "text": ["x"]}}
DAMAGED = {
    "cut short": ("gsm8k", '{"question": "How', "Unterminated string"),
    "no UTF-8": ("gsm8k", b"\xff", "can't decode byte 0xff"),
    "a list": ("gsm8k", "[1]", "no str 'question'"),
    "deep": ("gsm8k", "[" * 100_000, "nested too deeply"),
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
    write(tmp_path, task, good + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    expected = rf"{FILE[task]}, line 2: expected .*{message}"
    with pytest.raises(ValueError, match=expected) as error:
        read_questions(task, "heldout", tmp_path)
    assert "\n" not in str(error.value)


def test_an_id_that_comes_again_is_refused_with_both_lines(tmp_path):
    one, other = choices(), choices("ABC", "C")
    write(tmp_path, "commonsense_qa", lines(one, other | {"id": "r"}) + b"\n" + lines(other))
    expected = r"validation.jsonl, line 4: .*found: the id 'q' again, as in line 1; get the file"
    with pytest.raises(ValueError, match=expected) as error:
        read_questions("commonsense_qa", "heldout", tmp_path)
    assert "\n" not in str(error.value)
    assert len(read_questions("commonsense_qa", "heldout", tmp_path, limit=2)) == 2
    # a name of ours: that of the second line, which has none
    write(tmp_path, "commonsense_qa", lines(one | {"id": "validation-2"}, one | {"id": None}))
    with pytest.raises(ValueError, match="the id 'validation-2' again"):
        read_questions("commonsense_qa", "heldout", tmp_path)


@pytest.mark.parametrize(
    ("task", "name", "origin"),
    [
        ("gsm8k", "test.jsonl", "test.jsonl of openai/gsm8k"),
        ("commonsense_qa", "validation.jsonl", "dev_rand_split.jsonl of the data set"),
    ],
)
def test_a_missing_file_says_what_to_get_and_where_to_put_it(tmp_path, task, name, origin):
    with pytest.raises(ValueError, match="No such file") as error:
        read_questions(task, "heldout", tmp_path)
    message, folder = str(error.value), tmp_path / task
    assert message.startswith(f"{folder / name}: expected questions of {task}")
    assert f"get {origin}" in message
    assert message.endswith(", and put it there")
    assert "train" not in message.removeprefix(str(folder))  # tasks need no training questions
    assert "\n" not in message


def test_other_tasks_splits_limits_and_empty_files_are_refused(tmp_path):
    write(tmp_path, "gsm8k", b"\n")
    with pytest.raises(ValueError, match="expected a task gsm8k or commonsense_qa, found 'sums'"):
        read_questions("sums", "train", tmp_path)
    with pytest.raises(ValueError, match="expected a split train or heldout, found 'test'"):
        read_questions("gsm8k", "test", tmp_path)
    with pytest.raises(ValueError, match="limit of at least 1 question, found 0"):
        read_questions("gsm8k", "heldout", tmp_path, limit=0)
    with pytest.raises(ValueError, match=r"test\.jsonl: expected .* found an empty file"):
        read_questions("gsm8k", "heldout", tmp_path)


def test_sums_need_no_file_and_are_of_one_split(tmp_path):
    heldout, train = (
        {tuple(sorted(q.id.split("+"))) for q in read_questions("arithmetic", split, tmp_path, 20)}
        for split in ("heldout", "train")
    )
    assert 50 < len(heldout) < len(train) <= 100
    assert not heldout & train
    for question in read_questions("arithmetic", "heldout", tmp_path, 20):
        assert question.text == f"What is {question.id.replace('+', ' + ')}?"
        assert int(question.gold) == sum(map(int, question.id.split("+")))


# ---- answers -------------------------------------------------------------------------------------
def test_a_direct_answer_is_its_first_line_alone():
    assert parse_direct(APPLES, " 1,080\nQ: 5") == "1080"
    assert parse_direct(APPLES, "\n1080") is None
    assert parse_direct(FRUIT, " B\nQ: which (C)") == "B"
    assert parse_direct(FRUIT, " (b) plum\n(C) fig") == "B"
    assert parse_direct(FRUIT, " D\n") is None
    assert all(parse_direct(q, direct_answer(q)) == q.gold for q in (APPLES, FRUIT))


def test_a_stated_answer_is_a_number_or_a_label():
    assert parse_stated(APPLES, "8 * 135 = 1,080. The answer is 1,080.") == "1080"
    assert parse_stated(FRUIT, "It has a stone. The answer is (b).") == "B"
    assert parse_stated(APPLES, "The answer is (b).") is parse_stated(FRUIT, "#### 1080") is None


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
    found = read_questions(task, split, os.environ["QS_DATA"])
    path = Path(os.environ["QS_DATA"], task, "train.jsonl" if split == "train" else FILE[task])
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(found) == len(records) == len({question.id for question in found}) == count
    for question, record in zip(found, records, strict=True):
        text = direct_prompt(question) + direct_answer(question)
        assert parse_direct(question, direct_answer(question)) == question.gold
        own = parse_number(question.written) if task == "gsm8k" else question.written
        assert own == question.gold
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
