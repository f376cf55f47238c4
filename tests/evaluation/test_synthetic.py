"""synthetic: a question is measured at its own answer, and everything else is another token."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tiny import make_world

from qs.config import Config, RunConfig, ThoughtConfig
from qs.data.dataset import TokenDataset
from qs.data.synthetic import World, documents
from qs.evaluation.heldout import measure_heldout, summarise
from qs.evaluation.synthetic import heldout_text, rewarded
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import PAUSE
from qs.quietstar.load import choose_placement, load
from qs.quietstar.sampler import step_generator

SETTINGS = Config(
    ThoughtConfig(thoughts=5, ahead=2, samples=3, beta=0.0, start_text=":", end_text=";"),
    run=RunConfig(seq=48, batch=4, device="cpu", dtype="float32"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def quiet(world):
    module, _ = load(world.weights, SETTINGS, choose_placement(SETTINGS.run))
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a head that is open, outputs that differ
        for name, parameter in module.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(0, 0.3, generator=numbers)
    return module


def text_of(folder, tokenizer, seq=48, rows=1000):
    return heldout_text(TokenDataset(folder, "heldout"), tokenizer, seq, rows)


@pytest.fixture(scope="module")
def text(world):
    return text_of(world.data, Tokenizer(world.tokenizer))


def found(quiet, text, size=4, objective="quiet", **arguments):
    config = SETTINGS.changed(batch=size, objective=objective, seed=1)
    return measure_heldout(quiet, text, config, **arguments)


def test_rows_hold_whole_documents_and_a_question_for_each_left_out_working(world, text):
    tokenizer = Tokenizer(world.tokenizer)
    drawn = []
    for d, _ in zip(documents(World(), 3, "heldout"), range(40), strict=False):
        drawn.append(d)
    held = [
        row[inside == number].tolist()
        for row, inside in zip(text.tokens, text.documents, strict=True)
        for number in inside[inside >= 0].unique()
    ]
    last = text.documents[-1]  # numbered through the whole text
    assert int(last.max()) == len(held) - 1
    assert held == [tokenizer.encode(d.text, bos=True, eos=True) for d in drawn]
    asked = [d for d in drawn if d.style == "none"]
    assert len(text.questions) == len(asked) > 10
    for q, d in zip(text.questions, asked, strict=True):
        assert (q.kind, q.difficulty) == (d.kind, d.difficulty)
        assert d.choices[q.gold] == d.answer
        assert q.choices[q.gold] == text.tokens[q.row, q.position + 1]
        assert tokenizer.decode(text.tokens[q.row, q.position : q.position + 1].tolist()) == "\n"
        assert len(set(q.choices)) == len(d.choices)
        spelt = tokenizer.decode(q.working)
        assert d.working.strip().startswith(spelt.strip())
        assert len(q.working) == d.needed


@pytest.mark.parametrize("seq", [2, *range(30, 60)])
def test_a_row_ends_where_the_next_document_does_not_fit(world, seq):
    text = text_of(world.data, Tokenizer(world.tokenizer), seq=seq)
    used = (text.documents >= 0).sum(1)
    first = (text.documents == text.documents[:, :1]).sum(1)
    assert (used > 0).all()
    assert (used[:-1] + first[1:] > text.tokens.shape[1]).all()


def test_fewer_rows_are_the_first_ones_and_long_documents_make_rows_longer(world, text):
    tokenizer = Tokenizer(world.tokenizer)
    some = text_of(world.data, tokenizer, rows=3)
    assert torch.equal(some.tokens, text.tokens[:3])
    assert some.questions == [q for q in text.questions if q.row < 3]
    assert text_of(world.data, tokenizer, seq=2).tokens.shape[1] > 20


def test_an_answer_is_measured_as_by_hand_and_the_rest_is_other_tokens(quiet, text):
    result = found(quiet, text)
    with torch.no_grad():
        one = dict(ahead=1, samples=1, baseline="none")
        generator = step_generator(1, 0)
        lines, other = [], []
        with quiet.with_settings(**one):
            for rows in (slice(i, i + 4) for i in range(0, len(text.tokens), 4)):
                tokens, inside = text.tokens[rows], text.documents[rows]
                step = quiet(tokens, inside, generator=generator)
                there = step.base_valid.clone()
                for q in (q for q in text.questions if rows.start <= q.row < rows.stop):
                    b, t = q.row - rows.start, q.position
                    line = [step.nll_base[b, t].item(), step.nll_mix[b, t, 0, 0].item()]
                    row = slice(b, b + 1)
                    logs = []  # NLL of each possible answer put in the place of the true one
                    for choice in q.choices:
                        changed = tokens[row].clone()
                        changed[0, t + 1] = choice
                        again = quiet(changed, inside[row], thoughts=step.thoughts[row])
                        logs.append([-again.nll_base[0, t], -again.nll_mix[0, t, 0, 0]])
                    gold = torch.tensor(logs).softmax(0)[q.gold].tolist()
                    useful = step.thoughts[b, t, 0, : len(q.working)].tolist() == list(q.working)
                    lines.append([*gold, *line, useful, step.weight[b, t, 0, 0].item()])
                    there[b, t] = False
                other += [
                    [
                        there[b].sum().item(),
                        step.nll_base[b][there[b]].sum().item(),
                        step.nll_mix[b, :, 0, 0][there[b]].sum().item(),
                        step.weight[b, :, 0, 0][there[b]].sum().item(),
                    ]
                    for b in range(len(tokens))
                ]
    expected = np.array(lines)
    close = dict(rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(result.answers[:6]).T, expected, **close)
    np.testing.assert_allclose(np.array(result.other[:4]).T, np.array(other), **close)
    counts = result.text.tokens - result.other.tokens
    assert counts.sum() == len(text.questions)


def test_a_thought_that_holds_the_steps_is_counted_as_useful(quiet, text):
    def right(module, documents, thoughts, generator):
        thoughts = thoughts.clone()
        for q in text.questions:
            if q.row < len(thoughts):  # the first batch
                thoughts[q.row, q.position, 0, : len(q.working)] = torch.tensor(q.working)
        return thoughts

    result = found(quiet, text, size=len(text.tokens), change=right)
    assert result.answers.useful.all()

    def nearly(module, documents, thoughts, generator):
        thoughts = right(module, documents, thoughts, generator)
        for q in text.questions:
            thoughts[q.row, q.position, 0, len(q.working) - 1] = 0
        return thoughts

    assert not found(quiet, text, size=len(text.tokens), change=nearly).answers.useful.any()


def test_weights_of_0_and_1_are_the_text_alone_and_the_thought_alone(quiet, text):
    off = found(quiet, text, fixed_weight=0.0)
    np.testing.assert_allclose(off.answers.gold_mix, off.answers.gold_base, rtol=1e-5)
    np.testing.assert_allclose(off.other.nll_mix, off.other.nll_base, rtol=1e-5)
    alone = found(quiet, text, fixed_weight=1.0)
    assert (alone.answers.weight == 1).all()
    q, tokens, inside = text.questions[0], text.tokens[:4], text.documents[:4]
    with torch.no_grad(), quiet.with_settings(ahead=1, samples=1, baseline="none"):
        anchors, thoughts = quiet.think(tokens, inside, generator=step_generator(1, 0))
        _, branch = quiet.score(tokens, inside, anchors, thoughts)
        after = quiet.model.logits(branch[q.row, q.position, 0, -1]).double()  # at <end>
    nll = -after.log_softmax(-1)[text.tokens[q.row, q.position + 1]]
    gold = after[list(q.choices)].softmax(0)[q.gold]
    assert alone.answers.nll_mix[0] == pytest.approx(nll.item(), rel=1e-4)
    assert alone.answers.gold_mix[0] == pytest.approx(gold.item(), rel=1e-4)


def test_without_thinking_both_columns_are_the_text_alone(quiet, text):
    plain = found(quiet, text, objective="plain")
    own, thinking = plain.answers, found(quiet, text).answers
    np.testing.assert_allclose(own.gold_base, thinking.gold_base, rtol=1e-4)
    np.testing.assert_allclose(own.gold_mix, own.gold_base, rtol=1e-5)
    assert not own.useful.any()
    score = summarise(text, plain, SETTINGS.changed(objective="plain"))
    assert score.answers[-1].gold_mix is score.text.nll_mix is score.other.gain is None


def test_pauses_need_no_sampling(quiet, text):
    def paused(module, documents, thoughts, generator):
        return torch.full_like(thoughts, PAUSE)

    result = found(quiet, text, change=paused)
    assert np.isfinite(result.answers.gold_mix).all()
    assert not result.answers.useful.any()


def test_answers_are_rewarded_as_long_as_their_document_goes_on(text):
    """The answer and the end of the text follow a question; nothing else does."""
    assert [rewarded(text, m) for m in (1, 2, 3, 4)] == [1, 1, 0, 0]
    longer = dataclasses.replace(text, documents=text.documents * 0)  # as if rows were one document
    assert 0.5 < rewarded(longer, 3) <= 1


class Odd(Tokenizer):
    """A tokenizer that spells some short texts as others."""

    swaps = ()

    def encode(self, text, **flags):
        return super().encode(dict(self.swaps).get(text, text), **flags)


@pytest.mark.parametrize(
    ("swaps", "message"),
    [
        ((("\n2", "\n1"),), "expected each possible answer to be one token"),
        ((("\n2", "\n1"), ("\n1", "\n2")), "expected each possible answer to be one token"),
        ((("\n:", "\n;"),), "expected ':' to be a token of its own, found ';'"),
    ],
)
def test_a_tokenizer_that_does_not_spell_answers_in_one_token_is_refused(world, swaps, message):
    tokenizer = Odd(world.tokenizer)
    assert type(tokenizer) is Odd
    assert text_of(world.data, tokenizer).questions
    tokenizer.swaps = swaps
    with pytest.raises(ValueError, match=message):
        text_of(world.data, tokenizer)


def test_possible_answers_that_share_a_token_are_refused_though_none_is_the_answer(world, text):
    first = [q for q in text.questions if q.row == 0]
    assert any(q.kind != "chain" for q in first)
    right = {q.gold for q in first if q.kind != "chain"}
    one, two, *_ = (digit for digit in range(10) if digit not in right)
    tokenizer = Odd(world.tokenizer)
    tokenizer.swaps = ((f"\n{one}", f"\n{two}"),)
    with pytest.raises(ValueError, match="expected each possible answer to be one token"):
        text_of(world.data, tokenizer, rows=1)


def test_text_that_its_recipe_does_not_give_is_refused(world, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(world.data, copy)
    recipe = json.loads((copy / "world.json").read_text())
    (copy / "world.json").write_text(json.dumps(recipe | {"seed": 4}))
    with pytest.raises(ValueError, match=r"expected held-out text drawn from its world.json"):
        text_of(copy, Tokenizer(world.tokenizer))
    (copy / "world.json").unlink()
    assert text_of(copy, Tokenizer(world.tokenizer)).questions is None


def test_a_threshold_of_entropy_chooses_between_both_predictions(quiet, text):
    result = found(quiet, text).answers
    assert result.gold_above(-1) == pytest.approx(result.gold_mix.mean())
    assert result.gold_above(99) == pytest.approx(result.gold_base.mean())
    middle = float(np.median(result.entropy))
    expected = [
        with_thought if entropy > middle else without
        for without, with_thought, entropy in zip(
            result.gold_base, result.gold_mix, result.entropy, strict=True
        )
    ]
    assert result.gold_above(middle) == pytest.approx(np.mean(expected))
    q = text.questions[0]
    tokens, documents = (x[q.row : q.row + 1] for x in (text.tokens, text.documents))
    anchors, thoughts = torch.tensor([[q.position]]), torch.zeros(1, 1, 1, 0, dtype=torch.int64)
    with torch.no_grad(), quiet.with_settings(ahead=1):
        base, _, _ = quiet.predict(tokens, documents, anchors, thoughts)
    expected = -(base.exp() * base).sum().item()
    assert result.entropy[0] == pytest.approx(expected, rel=1e-4)
