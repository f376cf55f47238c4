"""records: a passage shows every token once, with the thoughts that came before it."""

import math

import pytest
import torch
from tiny import make, make_world

from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset
from qs.evaluation.thoughts import shown
from qs.model.tokenizer import Tokenizer
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
    found = shown(quiet, data, tokenizer, SETTINGS, rows=3)
    tokens, numbers = data.read(0, data.tokens)
    for number, passage in enumerate(found.passages):
        text = "".join(token.text for token in passage.tokens)
        ids = [i for i in tokens[numbers == number] if i not in (1, 2)]
        assert text == "".join(tokenizer.piece(int(i)) for i in ids)
        assert passage.title.startswith(f"document {number + 1}")
    assert 3 <= len(found.passages) < 40


def test_examples_are_the_first_question_of_each_kind(world):
    quiet, data, tokenizer = opened(world)
    found = shown(quiet, data, tokenizer, SETTINGS, rows=12)
    kinds: dict[str, list[int]] = {}
    for i, passage in enumerate(found.passages):
        if "working left out" in passage.title:
            kinds.setdefault(passage.title.split()[2], []).append(i)
    assert set(kinds) == {"sum", "chain", "story"}
    assert set(found.examples[:3]) == {numbers[0] for numbers in kinds.values()}
    assert found.examples[:3] == sorted(found.examples[:3])
    assert sorted(found.examples) == sorted(sum(kinds.values(), []))
    assert found.examples[3] in {numbers[1] for numbers in kinds.values()}


def test_numbers_are_those_of_the_step(world):
    quiet, data, tokenizer = opened(world)
    found = shown(quiet, data, tokenizer, SETTINGS, rows=2)
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


def test_gain_is_the_mean_reward_where_one_token_ahead_is_judged(world):
    thought = ThoughtConfig(thoughts=3, ahead=1, samples=2, start_text="1", end_text="2")
    settings = Config(thought, run=SETTINGS.run)
    found = shown(*opened(world, settings), settings, rows=2)
    for passage in found.passages:
        for token in passage.tokens[1:]:
            mean = sum(thought.reward for thought in token.thoughts) / 2
            assert token.gain == pytest.approx(mean, abs=1e-5)


def test_text_without_known_answers_is_shown_from_its_start(tmp_path):
    tiny = make(tmp_path)
    settings = Config(SETTINGS.thought, run=RunConfig(seq=16, batch=2, device="cpu"))
    found = shown(*opened(tiny, settings), settings, rows=3)
    assert found.examples == list(range(len(found.passages)))
    assert sum(len(p.tokens) for p in found.passages) == 48


def test_pauses_are_shown_as_dots(world):
    run = RunConfig(seq=48, objective="pause", device="cpu")
    settings = Config(SETTINGS.thought, run=run)
    found = shown(*opened(world, settings), settings, rows=1)
    (thought,) = found.passages[0].tokens[1].thoughts
    assert thought.text == "………"


def test_special_tokens_show_nothing(world):
    found = shown(*opened(world), SETTINGS, rows=1)
    assert found.passages[0].tokens[0].text == found.passages[0].tokens[-1].text == ""
    assert Tokenizer(world.tokenizer).bos_id == 1
