"""arithmetic: every line of a scratchpad follows, and no held-out sum is ever trained on."""

import json
import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs.data.__main__ import main
from qs.data.arithmetic import (
    HELDOUT_SHARE,
    KNOWN,
    LONGEST,
    OPERATIONS,
    SYMBOLS,
    Sum,
    direct,
    hinted_prompt,
    operation_texts,
    parse_answer,
    prompt,
    scratchpad,
    split_of,
    sums,
    worked,
)
from qs.model.tokenizer import train_tokenizer

DIGITS = st.integers(1, 6)
SPLITS = st.sampled_from(["train", "heldout"])
SEEDS = st.integers(0, 2**32)
EXAMPLE = """Input:
6 2 4 + 2 5 9
Target:
<scratch>
6 2 4 + 2 5 9 , C: 0
6 2 + 2 5 , 3 C: 1
6 + 2 , 8 3 C: 0
, 8 8 3 C: 0
0 8 8 3
</scratch>
8 8 3
"""


@st.composite
def problems(draw: st.DrawFn) -> Sum:
    digits = draw(DIGITS)
    number = st.integers(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)
    return Sum(draw(number), draw(number))


def first(seed: int, split: str, digits: int, count: int) -> list[Sum]:
    return list(islice(sums(seed, split, digits), count))


# ---- text ----------------------------------------------------------------------------------------
def test_text_is_literally_this():
    problem = Sum(624, 259)
    assert prompt(problem) + scratchpad(problem) == EXAMPLE
    assert hinted_prompt(problem) == "Input:\n6 2 4 + 2 5 9\nTarget: 8 8 3\n"
    assert direct(problem) == "8 8 3\n"
    zero = "<scratch>\n0 + 0 , C: 0\n, 0 C: 0\n0 0\n</scratch>\n0\n"
    assert scratchpad(Sum(0, 0)) == zero
    carried = "<scratch>\n9 5 + 1 7 , C: 0\n9 + 1 , 2 C: 1\n, 1 2 C: 1\n1 1 2\n</scratch>\n1 1 2\n"
    assert scratchpad(Sum(95, 17)) == carried


@given(problem=problems())
def test_every_line_follows_from_the_one_above_it(problem):
    lines = scratchpad(problem).split("\n")
    assert lines[0] == "<scratch>"
    assert lines[-3:] == ["</scratch>", " ".join(str(problem.a + problem.b)), ""]
    assert lines[1] == f"{' '.join(str(problem.a))} + {' '.join(str(problem.b))} , C: 0"
    steps, last = lines[1:-4], lines[-4]
    form = re.compile(r"(?:((?:\d )+)\+ ((?:\d )+))?, ((?:\d )*)C: ([01])")
    for above, line in zip(steps, steps[1:], strict=False):
        a, b, result, carry = form.fullmatch(above).groups()
        left, right, longer, carried = form.fullmatch(line).groups()
        assert (left or "", right or "") == (a[:-2], b[:-2])
        assert longer[2:] == result
        assert 10 * int(carried) + int(longer[0]) == int(a[-2]) + int(b[-2]) + int(carry)
    _, _, result, carry = form.fullmatch(steps[-1]).groups()
    assert f"{last} " == f"{carry} {result}"
    assert len(steps) == len(str(problem.a)) + 1


@given(problem=problems())
def test_what_is_stored_never_holds_the_hint(problem):
    plain, hinted = prompt(problem), hinted_prompt(problem)
    assert hinted == plain[:-1] + " " + direct(problem)
    assert not re.search(r"Target:.", plain)
    assert "Target" not in scratchpad(problem)


# ---- answers -------------------------------------------------------------------------------------
@given(problem=problems())
def test_answers_are_read_back(problem):
    text = scratchpad(problem)
    for end in (text, text.removesuffix("\n")):
        assert parse_answer(end) == problem.answer == str(problem.a + problem.b)
    assert parse_answer(direct(problem), steps=False) == problem.answer
    assert parse_answer(direct(problem)) is None
    assert parse_answer(text, steps=False) is None


@given(problem=problems(), data=st.data())
def test_only_the_last_line_is_the_answer(problem, data):
    text = scratchpad(problem)
    at = data.draw(st.sampled_from([i for i, c in enumerate(text) if c.isdigit()]))
    wrong = text[:at] + str((int(text[at]) + data.draw(st.integers(1, 9))) % 10) + text[at + 1 :]
    answer_starts = text.index("</scratch>")
    assert (parse_answer(wrong) == problem.answer) == (at < answer_starts)


@pytest.mark.parametrize(
    "answer",
    ["", "\n", "8 8 3\n\n", "8 8 3\n8 8 3", "883", "8  8", " 8", "8 ", "0 8 8 3", "8 x", "٣"]
    + ["8 8 3 </s>", "8 8 3\n</scratch>\n8 8 3", "-8", "8.", "8 8 3\r"],
)
def test_an_answer_of_another_form_is_none(answer):
    assert parse_answer(f"<scratch>\n0 8 8 3\n</scratch>\n{answer}") is None
    assert parse_answer(answer, steps=False) is None


@pytest.mark.parametrize(
    "text", ["", "8 8 3", "<scratch>\n8 8 3\n", "x </scratch>\n8 8 3\n", "</scratch> 8 8 3\n"]
)
def test_an_answer_without_its_mark_is_none(text):
    assert parse_answer(text) is None


# ---- problems ------------------------------------------------------------------------------------
@given(digits=DIGITS, seeds=st.tuples(SEEDS, SEEDS))
def test_no_sum_is_in_both_splits_in_either_order_whatever_the_seeds(digits, seeds):
    train, heldout = (
        {frozenset((p.a, p.b)) for p in first(seed, split, digits, 100)}
        for seed, split in zip(seeds, ("train", "heldout"), strict=True)
    )
    assert train
    assert heldout
    assert not train & heldout


@given(digits=DIGITS, seed=SEEDS, split=SPLITS)
def test_sums_have_the_digits_asked_for_and_the_same_seed_gives_the_same(digits, seed, split):
    drawn = first(seed, split, digits, 20)
    assert drawn == first(seed, split, digits, 20)
    assert drawn != first(seed + 1, split, digits, 20)
    for problem in drawn:
        assert len(str(problem.a)) == len(str(problem.b)) == problem.digits == digits
        assert split_of(problem) == split


def test_of_the_hundred_sums_of_one_digit_ten_are_held_out_and_all_are_drawn():
    every = [Sum(a, b) for a in range(10) for b in range(10)]
    for split, count in (("heldout", 10), ("train", 90)):
        some = {p for p in every if split_of(p) == split}
        assert len(some) == count
        assert set(first(0, split, 1, 2000)) == some


def test_the_held_out_share_of_longer_sums_is_as_declared():
    every = [Sum(a, b) for a in range(10, 100) for b in range(10, 100)]
    share = sum(split_of(p) == "heldout" for p in every) / len(every)
    assert abs(share - HELDOUT_SHARE) < 0.01


def test_numbers_of_different_lengths_and_unknown_splits_are_refused():
    for a, b in ((1, 10), (100, 99), (-1, 10)):
        with pytest.raises(ValueError, match=f"numbers of as many digits, found {a} and {b}"):
            Sum(a, b)
    with pytest.raises(ValueError, match="expected a split train or heldout, found 'test'"):
        next(sums(0, "test", 1))
    with pytest.raises(ValueError, match="sums of at least 1 digit, found 0"):
        next(sums(0, "train", 0))


# ---- tokens --------------------------------------------------------------------------------------
def test_with_its_symbols_every_word_is_one_token(tmp_path):
    texts = list(islice(operation_texts(0, "train"), 500))
    tokenizer = train_tokenizer(texts, tmp_path, 294, symbols=SYMBOLS)
    for text in [*texts, prompt(Sum(624, 259)) + scratchpad(Sum(624, 259))]:
        pieces = [tokenizer.piece(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) == f" {text}"
        assert [piece.strip(" ") for piece in pieces if piece != " "] == re.findall(r"\n|\S+", text)


@given(
    sign=st.sampled_from(sorted(OPERATIONS)),
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
)
def test_operations_work_column_by_column(sign, pairs):
    a, b = ("".join(map(str, column)) for column in zip(*pairs, strict=True))
    steps, answer = worked(a, b, sign)
    carry, digits = 0, []
    for x, y in reversed(pairs):
        carry, digit = OPERATIONS[sign](x, y, carry)
        digits.insert(0, digit)
    assert steps.splitlines()[-2] == " ".join(map(str, [carry, *digits]))
    assert int(answer.replace(" ", "")) == int("".join(map(str, [carry, *digits])))
    if sign == "+":
        assert int(answer.replace(" ", "")) == int(a) + int(b)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_documents_hold_only_short_sums_of_their_split_and_long_other_operations(split):
    lengths = {sign: set() for sign in OPERATIONS}
    hints = 0
    for text in islice(operation_texts(3, split), 2000):
        a, sign, b = re.match(r"Input:\n([\d ]+) (\S) ([\d ]+)\n", text).groups()
        a, b = a.replace(" ", ""), b.replace(" ", "")
        lengths[sign].add(len(a))
        steps, answer = worked(a, b, sign)
        hint = f"Target: {answer}" in text
        hints += hint
        assert text.endswith(("\nTarget: " + answer if hint else "\nTarget:\n") + steps + answer)
        if sign == "+":
            assert split_of(Sum(int(a), int(b))) == split
    assert lengths.pop("+") == set(range(1, KNOWN + 1))
    assert all(found == set(range(1, LONGEST + 1)) for found in lengths.values())
    assert 0.25 < hints / 2000 < 0.4


def test_the_command_writes_both_splits_and_prints_the_symbols(tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["arithmetic", f"--out={out}", "--documents=20", "--tests=5"]) == 0
    lines = (out / "train.jsonl").read_text().splitlines()
    texts = list(islice(operation_texts(0, "train"), 20))
    assert [json.loads(line)["text"] for line in lines] == texts
    assert len((out / "heldout.jsonl").read_text().splitlines()) == 5
    assert main(["arithmetic", "--symbols"]) == 0
    assert capsys.readouterr().out.split() == [f"--symbol={symbol}" for symbol in SYMBOLS]
