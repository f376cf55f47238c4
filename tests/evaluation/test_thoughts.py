"""thoughts: every token is told once with what came before it, and nothing controls a terminal."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from passages import example_passage, passages, unseen
from tiny import make, make_world

from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset
from qs.evaluation.synthetic import heldout_text
from qs.evaluation.thoughts import (
    NARROWEST,
    Passage,
    Passages,
    PassageToken,
    Thought,
    display_width,
    passage_text,
    read_thoughts,
    two_decimals,
)
from qs.model.tokenizer import Tokenizer
from qs.output import JOINERS, visible
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import choose_placement, load

SETTINGS = Config(
    ThoughtConfig(thoughts=3, ahead=2, samples=2, start_text="1", end_text="2"),
    run=RunConfig(seq=48, batch=4, device="cpu", dtype="float32"),
)


def opened(tiny, settings=SETTINGS):
    quiet, tokenizer = load(tiny.weights, settings, choose_placement(settings.run))
    torch.nn.init.normal_(quiet.mixer[4].weight, 0, 0.5)
    return quiet, TokenDataset(tiny.data, "heldout"), tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_passages_are_the_documents_of_the_first_rows_in_order(world):
    quiet, data, tokenizer = opened(world)
    found = read_thoughts(quiet, data, tokenizer, SETTINGS, rows=3)
    tokens, numbers = data.read(0, data.tokens)
    for number, passage in enumerate(found.passages):
        text = "".join(token.text for token in passage.tokens)
        ids = [i for i in tokens[numbers == number] if i not in (1, 2)]
        assert text == "".join(tokenizer.piece(int(i)) for i in ids)
    parts = [re.match(r"row (\d+), part (\d+)", passage.title) for passage in found.passages]
    places = [(int(part[1]), int(part[2])) for part in parts]
    assert places == sorted(set(places))
    assert {row for row, _ in places} == {1, 2, 3}
    for row in (1, 2, 3):
        assert [part for at, part in places if at == row][0] == 1
    assert 3 <= len(found.passages) < 40


def test_examples_are_the_first_question_of_each_kind(world):
    quiet, data, tokenizer = opened(world)
    found = read_thoughts(quiet, data, tokenizer, SETTINGS, rows=12)
    kinds: dict[str, list[int]] = {}
    for i, passage in enumerate(found.passages):
        if "working left out" in passage.title:
            kinds.setdefault(passage.title.split(", ")[2].split()[0], []).append(i)
    assert set(kinds) == {"sum", "chain", "story"}
    assert set(found.examples[:3]) == {numbers[0] for numbers in kinds.values()}
    assert found.examples[:3] == sorted(found.examples[:3])
    assert sorted(found.examples) == sorted(sum(kinds.values(), []))
    assert found.examples[3] in {numbers[1] for numbers in kinds.values()}


def test_the_answer_and_the_thoughts_that_reach_it_are_marked(world):
    quiet, data, tokenizer = opened(world)
    text = heldout_text(data, tokenizer, SETTINGS.run.seq, 12)
    working = min((list(question.working) for question in text.questions), key=len)[:3]

    def think(*arguments, **keywords):  # every thought is the shortest working
        anchors, thoughts = QuietStar.think(quiet, *arguments, **keywords)
        thoughts[..., : len(working)] = torch.tensor(working)[: thoughts.shape[-1]]
        return anchors, thoughts

    quiet.think = think
    found = read_thoughts(quiet, data, tokenizer, SETTINGS, rows=12).passages
    assert sum(token.answer for passage in found for token in passage.tokens) == len(text.questions)
    works = 0
    for passage in found:
        for token in passage.tokens:
            assert token.answer or not any(thought.works for thought in token.thoughts)
            works += token.answer and all(thought.works for thought in token.thoughts)
            if token.answer:
                assert passage.title.endswith(f", answer {token.text.strip()}")
    expected = sum(list(question.working) == working for question in text.questions)
    assert works == expected > 0


def test_numbers_are_those_of_the_step(world):
    quiet, data, tokenizer = opened(world)
    found = read_thoughts(quiet, data, tokenizer, SETTINGS, rows=2)
    for passage in found.passages:
        first, *rest = passage.tokens
        assert first.gain is first.nll is None
        assert first.thoughts == ()
        for token in rest:
            assert len(token.thoughts) == 2
            assert math.isfinite(token.gain)
            assert token.nll > 0
        last = rest[-1]
        assert all(math.isnan(thought.reward) for thought in last.thoughts)  # m = 2
        assert all(math.isfinite(t.reward) for t in rest[0].thoughts)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "how many nats likelier one thought made the true tokens that follow"),
        ({"reward": "exact", "thought_cost": 0.1, "end": "drawn"}, "1 if .*, less the cost of its"),
        ({"reward": "probability"}, "mean probability of the true tokens"),
    ],
)
def test_what_a_reward_is_is_said(world, changes, expected):
    settings = replace(SETTINGS, thought=replace(SETTINGS.thought, **changes))
    quiet, data, tokenizer = opened(world, settings)
    assert re.match(expected, read_thoughts(quiet, data, tokenizer, settings, rows=1).earned)
    quiet.reward = lambda base, mix, valid: base.sum(-1)[:, :, None] - mix.sum(-1)
    assert "own" in read_thoughts(quiet, data, tokenizer, settings, rows=1).earned


def test_gain_is_the_mean_reward_where_one_token_ahead_is_judged(world):
    thought = ThoughtConfig(thoughts=3, ahead=1, samples=2, start_text="1", end_text="2")
    settings = Config(thought, run=SETTINGS.run)
    found = read_thoughts(*opened(world, settings), settings, rows=2)
    for passage in found.passages:
        for token in passage.tokens[1:]:
            mean = sum(thought.reward for thought in token.thoughts) / 2
            assert token.gain == pytest.approx(mean, abs=1e-5)


def test_text_without_known_answers_is_shown_from_its_start(tmp_path):
    tiny = make(tmp_path)
    settings = Config(SETTINGS.thought, run=RunConfig(seq=16, batch=2, device="cpu"))
    found = read_thoughts(*opened(tiny, settings), settings, rows=3)
    assert found.examples == list(range(len(found.passages)))
    assert sum(len(p.tokens) for p in found.passages) == 48


def test_pauses_are_shown_as_dots(world):
    run = RunConfig(seq=48, objective="pause", device="cpu")
    settings = Config(SETTINGS.thought, run=run)
    found = read_thoughts(*opened(world, settings), settings, rows=1)
    (thought,) = found.passages[0].tokens[1].thoughts
    assert thought.text == "………"


def test_special_tokens_show_nothing(world):
    found = read_thoughts(*opened(world), SETTINGS, rows=1)
    assert found.passages[0].tokens[0].text == found.passages[0].tokens[-1].text == ""
    assert Tokenizer(world.tokenizer).bos_id == 1


# What is shown


def test_numbers_are_short():
    values = (1.006, -0.004, -2.5, 999.0, -12345.6, math.inf, -math.inf, math.nan, None)
    signed = ["+1.01", "+0.00", "−2.50", "+999.00", "−1.2e+04", "+∞", "−∞", "nan", "–"]
    assert [two_decimals(x) for x in values] == signed
    assert [two_decimals(x, "-") for x in values] == [text.removeprefix("+") for text in signed]


def test_nothing_invisible_is_shown_as_itself():
    every = "".join(map(chr, range(0x110000)))
    for char, glyph in zip(every, visible(every), strict=True):
        assert (glyph != char) == unseen(char)
        assert glyph == char or glyph in "↵⇥" or (glyph.isascii() and glyph.isprintable())
    assert visible(JOINERS) == ["\\u200c", "\\u200d"]  # alone they would be nothing to see


CELLS = {"a": 1, "é": 1, " ": 1, "漢": 2, "👩": 2, "\u0301": 0, "\u200d": 0}  # other: 1


@given(passages(st.text(st.sampled_from([*CELLS, "\x1b", "\n"]), max_size=60)), st.integers(0, 100))
@example(
    Passage("", (PassageToken(" " + "a" * 41, 1.0, 0.0, ()),)), 0
)  # too long even after its space
def test_no_line_is_wider_than_the_terminal(passage, width):
    for color in (False, True):
        for row in passage_text(passage, color, width).split("\n"):
            text = re.sub(r"\x1b\[[0-9;]*m", "", row)
            assert sum(CELLS.get(char, 1) for char in text) <= max(width, NARROWEST)
    assert display_width("".join(CELLS)) == sum(CELLS.values())


@given(passages())
@example(example_passage(1.0, -1.0, 0.0))
def test_nothing_in_a_text_controls_the_terminal(passage):
    colored = passage_text(passage, color=True)
    own = re.compile(r"\x1b\[38;5;16;48;5;\d+(?:;4)?m([^\x1b\n]+)\x1b\[0m")  # reset on its line
    for text in (passage_text(passage, color=False), own.sub(r"\1", colored)):
        assert not [char for char in text.replace("\n", "") if unseen(char)]
        text.encode()


@given(passages(), st.booleans())
def test_the_terminal_shows_the_whole_text(passage, color):
    tokens = tuple(replace(token, gain=token.gain if color else None) for token in passage.tokens)
    rows = passage_text(replace(passage, tokens=tokens), color)
    if replace(passage, tokens=tokens).largest():
        rows = rows[: rows.rindex("\n\n    gain")]
    body = re.sub(r"\x1b\[[0-9;]*m", "", rows.split("\n", 2)[2])
    expected = "".join("".join(visible(token.text)) or "∅" for token in tokens)
    assert re.sub("[ \n]", "", body) == expected.replace(" ", "")


def test_a_terminal_without_colour_reads_like_this():
    first, *others = example_passage(None, 1.2, -0.2, 0.1, 0.5, None).tokens
    answer = PassageToken(
        "\n", -1.0, 1.0, (Thought("bad", math.nan, 0.1), Thought("a\nb", -2.0, 0.2))
    )
    less, more = others[2].thoughts
    others[2] = replace(others[2], thoughts=(less, replace(more, works=True)))
    passage = Passage("title " * 9, (replace(first, text="↵ t0"), *others, answer))
    expected = """
title title title title title title title title…

↵ t0 [t1 +1.20] [t2 −0.20] t3 [t4 +0.50]
t5[↵ −1.00]


    gain   weight  token         best thought
   +1.20     0.50   t1           y1
   −1.00     0.20  ↵             a↵b
   +0.50     0.50   t4           y4
   −0.20     0.50   t2           y2
   +0.10     0.50   t3           y3 ✓"""
    assert passage_text(passage, color=False, width=10) == expected[1:]


def test_colours_of_a_terminal_tell_the_sign_and_underline_what_was_hurt():
    line = passage_text(example_passage(-1.5, -0.05, 0.0, 0.05, 1.5), color=True).split("\n")[2]
    found = re.findall(r"(?:\x1b\[38;5;16;48;5;([\d;]+)m)? (t\d)", line)
    assert found == [("208;4", "t0"), ("230;4", "t1"), ("", "t2"), ("195", "t3"), ("75", "t4")]


def test_examples_are_told_in_their_order_and_no_more_than_are_asked_for():
    one, two, three = (replace(example_passage(1.0), title=title) for title in "abc")
    shown = Passages([one, two, three], [2, 0])
    assert shown.examples_text(1) == passage_text(three, color=False)
    both = f"{passage_text(three, color=False)}\n\n{passage_text(one, color=False)}"
    assert shown.examples_text(3) == both
