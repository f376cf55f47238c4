"""gold_probability: answers are scored as the official code scores them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import make, module

from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.arithmetic import Sum, split_of
from qs.data.prompts import direct_answer, direct_prompt
from qs.data.question_sets import BenchmarkQuestion, arithmetic_questions
from qs.evaluation.gold_probability import gold_probability, item
from qs.inference.decoding import uniforms
from qs.inference.loglikelihood import TextScore, Thinking, score, seed_of
from qs.model.mistral import Mistral
from qs.model.tokenizer import train_tokenizer
from qs.quietstar import algorithm
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.anchors import Numbers
from qs.quietstar.load import choose_placement, load

GOLDEN = Path(__file__).parents[1] / "golden"
NUMBER = BenchmarkQuestion("n", "How many?", (), "1042", "1,042")
CHOICE = BenchmarkQuestion(
    "c", "Which one?", (("A", "a pear"), ("B", "a fig"), ("C", "rain")), "B", "B"
)


def test_gold_probability_is_that_of_the_official_code():
    facts = json.loads((GOLDEN / "eval_metric.json").read_text())
    values = load_file(GOLDEN / "eval_metric.safetensors")
    assert len(facts["rows"]) == 6
    for b, row in enumerate(facts["rows"]):
        letters = any(text.strip().isalpha() for *_, text in row["scored"])
        allowed = facts["valid_letter_tokens" if letters else "valid_number_tokens"]
        positions = [j for j, *_ in row["scored"]]
        logits = torch.full((len(positions), facts["vocab"]), facts["background_logit"])
        logits[:, values["logit_columns"]] = values["logits_on_columns"][b, positions]
        targets = [int(values["labels"][b, j]) for _, j, _ in row["scored"]]
        found = gold_probability(logits, targets, allowed).item()
        assert found == pytest.approx(row["official"], rel=1e-4)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 4))
def test_gold_probability_passes_over_what_no_answer_holds(seed, length):
    numbers = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, length, 9, generator=numbers, dtype=torch.float64)
    targets = torch.randint(9, (length,), generator=numbers).tolist()
    allowed = [1, 4, 8]
    if not set(targets) & set(allowed):
        with pytest.raises(ValueError, match="found none of them"):
            gold_probability(logits, targets, allowed)
        return
    expected = torch.ones(2, 3, dtype=torch.float64)
    for i, target in enumerate(targets):
        if target in allowed:
            odds = logits[..., i, :].exp()
            expected *= odds[..., target] / odds[..., allowed].sum(-1)
    torch.testing.assert_close(gold_probability(logits, targets, allowed), expected)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [direct_prompt(q) + direct_answer(q) for q in (NUMBER, CHOICE)] * 50
    texts += ["A: 0 1 2 3 4 5 6 7 8 9\n"] * 50
    return train_tokenizer(texts, tmp_path_factory.mktemp("t"), 300)


@pytest.mark.parametrize(("question", "answer"), [(NUMBER, "1042\n"), (CHOICE, "B\n")])
def test_the_answer_and_its_newline_are_scored_and_nothing_else(tokenizer, question, answer):
    x = item(question, tokenizer)
    spelt = [tokenizer.decode([x.text.ids[t + 1]]).strip(" ") for t in x.text.positions]
    assert "".join(spelt) == answer
    assert tokenizer.decode(x.text.ids[1:]).startswith(direct_prompt(question))
    assert tokenizer.decode(x.prompt[1:]) == direct_prompt(question)
    assert [tokenizer.decode([i]).strip(" ") for i in x.options] == list(question.labels)
    assert len(set(x.allowed)) == len(x.allowed) == (11 if question is NUMBER else 4)


def test_marks_in_the_question_are_not_its_answer(tokenizer):
    tricky = BenchmarkQuestion("t", "Is 7 odd?\nA: 7\nQ: And 8?", (), "0", "0")
    x = item(tricky, tokenizer)
    assert [tokenizer.decode([x.text.ids[t + 1]]) for t in x.text.positions] == ["0", "\n"]


class Spaced:
    """A token for each character, and for each digit another one with the space before it."""

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        pieces = re.findall(r" [0-9]|.", text, re.DOTALL)
        return [1] * bos + [int.from_bytes(piece.encode()) for piece in pieces] + [2] * eos

    def piece(self, token: int) -> str:
        return token.to_bytes(2).decode().lstrip("\0")


def test_a_first_digit_may_be_another_token_than_the_same_one_later():
    x = item(NUMBER, Spaced())
    pieces = [Spaced().piece(x.text.ids[t + 1]) for t in x.text.positions]
    assert pieces == [" 1", "0", "4", "2", "\n"]
    assert len(set(x.allowed)) == len(x.allowed) == 21


def some(tokenizer):
    """A random module in float64 with the tokenizer's vocabulary."""
    config = ThoughtConfig(thoughts=2, ahead=2, samples=2, beta=0.0)
    shape = dataclasses.replace(module(config).model.config, vocab_size=tokenizer.vocab_size)
    found = QuietStar(Mistral(shape, torch.float64), config).double()
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0, 0.4, generator=numbers)
    return found


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_is_scored_as_each_question_alone_thinking_everywhere(
    tokenizer, samples, temperature
):
    quiet = some(tokenizer)
    items = [item(q, tokenizer) for q in (NUMBER, CHOICE)]
    texts, thinking = [x.text for x in items], Thinking("always", samples, temperature, 5)
    without, after = score(quiet, texts, [Thinking("never"), thinking])
    for x, before, result in zip(items, without, after, strict=True):
        tokens = torch.tensor([x.text.ids])
        n, anchors = quiet.config.thoughts, torch.tensor([x.text.positions])
        shape = (1, len(x.text.positions), samples, n)
        numbers = uniforms(5, [seed_of(x.text.ids)], shape[1], samples * n)[1].view(shape)
        settings = dict(samples=samples, ahead=1, sample_temperature=temperature)
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(
                algorithm, "draw", lambda *_, drawn=numbers: Numbers(torch.empty(1, 0), drawn)
            )
            with quiet.with_settings(**settings):
                documents = torch.zeros_like(tokens)
                _, thoughts = quiet.think(tokens, documents, anchors)
                base, mix, _ = quiet.predict(tokens, documents, anchors, thoughts)
        gold, plain = torch.ones(samples, dtype=torch.float64), 1.0
        for i, t in enumerate(x.text.positions):
            place = x.allowed.index(x.text.ids[t + 1])
            gold *= mix[0, i, :, 0][:, list(x.allowed)].softmax(-1)[:, place]
            plain *= base[0, i, 0, 0][list(x.allowed)].softmax(-1)[place].item()
        assert x.gold(result) == pytest.approx(gold.mean().item(), rel=1e-9)
        assert x.gold(before) == pytest.approx(plain, rel=1e-9)
        assert x.chance == len(x.allowed) ** -len(x.text.positions)
        if x.options:
            options, right = list(x.options), x.question.labels.index(x.question.gold)
            likeliest = mix[0, 0, :, 0].exp().mean(0)[options].argmax()
            assert x.chosen(result) == (likeliest == right)
            assert x.chosen(before) == (base[0, 0, 0, 0][options].argmax() == right)


def test_the_option_that_is_likeliest_on_average_over_thoughts_is_chosen(tokenizer):
    x = item(CHOICE, tokenizer)
    columns = [x.allowed.index(option) for option in x.options]
    p = torch.full((2, 2, len(x.allowed)), 0.01, dtype=torch.float64)
    p[:, 0, columns] = torch.tensor([[0.6, 0.01, 0.1], [0.05, 0.9, 0.02]], dtype=torch.float64)
    score = TextScore(p.log(), torch.zeros(2), 0)
    assert x.chosen(score)  # its mean probability is larger, that of logarithms smaller
    assert not x.chosen(score._replace(log_p=score.log_p[:1]))


def test_a_tokenizer_without_single_digits_is_refused(tmp_path):
    tiny = make(tmp_path)
    settings = Config(
        ThoughtConfig(start_text="1", end_text="1"), run=RunConfig(seq=16, device="cpu")
    )
    _, tokenizer = load(tiny.weights, settings, choose_placement(settings.run))
    assert item(NUMBER, tokenizer).text.positions
    strange = BenchmarkQuestion("s", "Which?", (("Ω", "x"), ("Ж", "y")), "Ω", "Ω")
    with pytest.raises(ValueError, match="expected a token for"):
        item(strange, tokenizer)


def test_sums_are_asked_once_each_and_are_held_out():
    asked = arithmetic_questions(20)
    assert len({q.id for q in asked}) == len(asked) > 85
    for q in asked:
        a, b = map(int, q.id.split("+"))
        assert q.text == f"What is {a} + {b}?"
        assert q.gold == q.written == str(a + b)
        assert split_of(Sum(a, b)) == "heldout"
    assert {len(q.id.split("+")[0]) for q in asked} == {1, 2, 3, 4, 5}
