"""answers: a question is measured at its own answer, and everything else is another token."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tiny import make_world

from qs.answers import gold_above, marked, measure
from qs.build import choose_placement, load
from qs.config import Config, RunConfig, ThoughtConfig
from qs.quiet import PAUSE
from qs.scores import Score, heldout_score, summarise
from qs.shards import TokenDataset
from qs.synthetic import World, documents
from qs.tokenizer import Tokenizer

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


@pytest.fixture(scope="module")
def text(world):
    return marked(world.data, Tokenizer.load(world.tokenizer), 48)


def slices(text, size):
    return [slice(i, i + size) for i in range(0, len(text.tokens), size)]


def found(quiet, text, size=4, **arguments):
    return measure(quiet, text, slices(text, size), torch.Generator().manual_seed(1), **arguments)


def test_rows_hold_whole_documents_and_a_question_for_each_left_out_working(world, text):
    tokenizer = Tokenizer.load(world.tokenizer)
    drawn = []
    for d, _ in zip(documents(World(), 3, "heldout"), range(40), strict=False):
        drawn.append(d)
    held = [
        row[inside == number].tolist()
        for row, inside in zip(text.tokens, text.documents, strict=True)
        for number in range(int(inside.max()) + 1)
    ]
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


def test_fewer_rows_are_the_first_ones_and_long_documents_make_rows_longer(world, text):
    tokenizer = Tokenizer.load(world.tokenizer)
    some = marked(world.data, tokenizer, 48, rows=3)
    assert torch.equal(some.tokens, text.tokens[:3])
    assert some.questions == [q for q in text.questions if q.row < 3]
    assert marked(world.data, tokenizer, 2).tokens.shape[1] > 20


def test_an_answer_is_measured_as_by_hand_and_the_rest_is_other_tokens(quiet, text):
    result = found(quiet, text)
    with torch.no_grad():
        one = dict(ahead=1, samples=1, baseline="none")
        generator = torch.Generator().manual_seed(1)
        lines, other = [], []
        with quiet.with_settings(**one):
            for rows in slices(text, 4):
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
    np.testing.assert_allclose(result.gold, expected[:, :2], **close)
    np.testing.assert_allclose(result.nll, expected[:, 2:4], **close)
    np.testing.assert_array_equal(result.useful, expected[:, 4] > 0)
    np.testing.assert_allclose(result.weight, expected[:, 5], **close)
    np.testing.assert_allclose(result.other, np.array(other), **close)
    counts = result.text[:, 0] - result.other[:, 0]
    assert counts.sum() == len(text.questions)


def test_a_thought_that_holds_the_steps_is_counted_as_useful(quiet, text):
    def right(module, documents, thoughts, generator):
        thoughts = thoughts.clone()
        for q in text.questions:
            if q.row < len(thoughts):  # the first batch
                thoughts[q.row, q.position, 0, : len(q.working)] = torch.tensor(q.working)
        return thoughts

    result = found(quiet, text, size=len(text.tokens), change=right)
    assert result.useful.all()

    def nearly(module, documents, thoughts, generator):
        thoughts = right(module, documents, thoughts, generator)
        for q in text.questions:
            thoughts[q.row, q.position, 0, len(q.working) - 1] = 0
        return thoughts

    assert not found(quiet, text, size=len(text.tokens), change=nearly).useful.any()


def test_weights_of_0_and_1_are_the_text_alone_and_the_thought_alone(quiet, text):
    off = found(quiet, text, fixed_weight=0.0)
    np.testing.assert_allclose(off.gold[:, 1], off.gold[:, 0], rtol=1e-5)
    np.testing.assert_allclose(off.other[:, 2], off.other[:, 1], rtol=1e-5)
    assert (found(quiet, text, fixed_weight=1.0).weight == 1).all()


def test_without_thinking_both_columns_are_the_text_alone(quiet, text):
    plain = found(quiet, text, think=False)
    np.testing.assert_allclose(plain.gold[:, 0], found(quiet, text).gold[:, 0], rtol=1e-4)
    np.testing.assert_allclose(plain.gold[:, 1], plain.gold[:, 0], rtol=1e-5)
    assert not plain.useful.any()
    score = summarise(text, plain, think=False)
    assert score.answers[-1].gold_mix is score.text.nll_mix is score.other.gain is None


def test_pauses_need_no_sampling(quiet, text):
    def paused(module, documents, thoughts, generator):
        return torch.full_like(thoughts, PAUSE)

    result = found(quiet, text, change=paused)
    assert np.isfinite(result.gold).all()
    assert not result.useful.any()


def test_a_score_has_every_kind_and_all_of_them_and_survives_json(quiet, world, text):
    data, tokenizer = TokenDataset(world.data, "heldout"), Tokenizer.load(world.tokenizer)
    score = heldout_score(quiet, data, tokenizer, SETTINGS, 1000, "text", show=False)
    kinds = {q.kind for q in text.questions}
    assert {a.kind for a in score.answers} == kinds | {"all"}
    everything = score.answers[-1]
    assert everything.questions == sum(a.questions for a in score.answers[:-1])
    mean = sum(a.gold_mix * a.questions for a in score.answers[:-1]) / everything.questions
    assert everything.gold_mix == pytest.approx(mean)
    assert score.text.tokens == score.other.tokens + everything.questions
    written = json.dumps(dataclasses.asdict(score))
    again = Score.from_json(json.loads(written))
    assert json.dumps(dataclasses.asdict(again)) == written


def test_text_that_its_recipe_does_not_give_is_refused(world, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(world.data, copy)
    recipe = json.loads((copy / "world.json").read_text())
    (copy / "world.json").write_text(json.dumps(recipe | {"seed": 4}))
    with pytest.raises(ValueError, match=r"expected held-out text drawn from its world.json"):
        marked(copy, Tokenizer.load(world.tokenizer), 48)
    (copy / "world.json").unlink()
    assert marked(copy, Tokenizer.load(world.tokenizer), 48) is None


def test_a_threshold_of_entropy_chooses_between_both_predictions(quiet, text):
    result = found(quiet, text)
    assert gold_above(result, -1) == pytest.approx(result.gold[:, 1].mean())
    assert gold_above(result, 99) == pytest.approx(result.gold[:, 0].mean())
    middle = float(np.median(result.entropy))
    expected = [
        g[1] if h > middle else g[0] for g, h in zip(result.gold, result.entropy, strict=True)
    ]
    assert gold_above(result, middle) == pytest.approx(np.mean(expected))
    q = text.questions[0]
    tokens, documents = (x[q.row : q.row + 1] for x in (text.tokens, text.documents))
    anchors, thoughts = torch.tensor([[q.position]]), torch.zeros(1, 1, 1, 0, dtype=torch.int64)
    with torch.no_grad(), quiet.with_settings(ahead=1):
        base, _, _ = quiet.predict(tokens, documents, anchors, thoughts)
    expected = -(base.exp() * base).sum().item()
    assert result.entropy[0] == pytest.approx(expected, rel=1e-4)
