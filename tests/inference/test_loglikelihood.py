"""continuations: scored as the model alone reads them, whatever they are batched with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, module

from qs.config import ThoughtConfig
from qs.inference import loglikelihood
from qs.inference.decoding import ThinkWhen, uniforms
from qs.inference.loglikelihood import Row, Thinking, fitted, score, seed_of, split, windows
from qs.model.tokenizer import train_tokenizer
from qs.quietstar import algorithm
from qs.quietstar.anchors import Numbers

ALWAYS, NEVER = ThinkWhen.parse("always"), ThinkWhen.parse("never")
QUIET = module(ThoughtConfig(thoughts=2, ahead=3, samples=2, beta=0.0))
ids = st.lists(st.integers(0, 10), min_size=2, max_size=9)


@st.composite
def rows(draw):
    text = tuple(draw(ids))
    return Row(text, draw(st.integers(1, len(text) - 1)))


def alone(quiet, row, thinking):
    """The same by one `predict` for each token, and what was thought from the same numbers."""
    K, n, count = thinking.samples, quiet.config.thoughts, len(row.ids) - row.first
    drawn = uniforms(thinking.seed, [seed_of(row.ids)], count, K * n)[1].view(count, K, n)
    total, greedy, thoughts = 0.0, True, 0
    sayable = [i for i in range(11) if i not in (1,)]  # BOS is never said
    for i, at in enumerate(range(row.first, len(row.ids))):
        tokens = torch.tensor([row.ids[:at]])
        documents, anchors = torch.zeros_like(tokens), torch.tensor([[at - 1]])
        changed = dict(ahead=1, samples=K, sample_temperature=thinking.temperature)
        with quiet.with_settings(**changed), torch.no_grad():
            numbers = Numbers(torch.empty(1, 0), drawn[i].view(1, 1, K, n))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(algorithm, "draw", lambda *_, numbers=numbers: numbers)
                _, thought = quiet.think(tokens, documents, anchors)
            base, mix, _ = quiet.predict(tokens, documents, anchors, thought)
        p = base[0, 0, 0, 0].exp()
        if -(p * p.log()).sum() > thinking.when.above:
            p, thoughts = mix[0, 0, :, 0].exp().mean(0), thoughts + K
        total += p[row.ids[at]].log().item()
        greedy &= sayable[int(p[sayable].argmax())] == row.ids[at]
    return total, greedy, count, thoughts


@settings(max_examples=20)
@given(
    some=st.lists(rows(), min_size=1, max_size=3),
    samples=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 1.0]),
    when=st.sampled_from(["always", "never", "entropy>0.9", "entropy>1.6"]),
    seed=st.integers(0, 2**32),
    budgets=st.sampled_from([(1024, 2**24), (1, 2**24), (12, 2**24), (1024, 40)]),
)
def test_a_batch_in_chunks_is_each_token_alone(some, samples, temperature, when, seed, budgets):
    thinking = Thinking(ThinkWhen.parse(when), samples, temperature, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loglikelihood, "SLOTS_AT_ONCE", budgets[0])
        patch.setattr(loglikelihood, "LOGITS_AT_ONCE", budgets[1])
        found = score(QUIET, some, thinking)
    for row, result in zip(some, found, strict=True):
        log_p, *facts = alone(QUIET, row, thinking)
        assert result.log_p == pytest.approx(log_p, rel=1e-9, abs=1e-9)
        assert [*result[1:]] == facts


@settings(max_examples=15)
@given(some=st.lists(rows(), min_size=1, max_size=3))
def test_without_thoughts_it_is_the_plain_model(some):
    empty = module(ThoughtConfig(thoughts=0, ahead=1, beta=0.0))
    for quiet, when in ((QUIET, NEVER), (empty, ALWAYS)):
        for row, result in zip(some, score(quiet, some, Thinking(when)), strict=True):
            tokens = torch.tensor([row.ids])
            step = quiet(tokens, None, None, tokens[:, :0], tokens[:, :0, None, None])
            assert result.log_p == pytest.approx(-step.nll_base[0, row.first - 1 :].sum().item())
            assert result.thoughts == 0


def test_a_pause_is_thought_like_a_thought():
    quiet = module(ThoughtConfig(thoughts=2, ahead=1, samples=1, beta=0.0))
    quiet.pause = True
    row = Row((1, 5, 6, 7), 2)
    (found,) = score(quiet, [row], Thinking(ALWAYS))
    tokens = torch.tensor([row.ids])
    step = quiet(tokens, None, None, torch.tensor([[1, 2]]), torch.full((1, 2, 1, 2), -1))
    assert found.log_p == pytest.approx(-step.nll_mix.sum().item())


@given(text=st.lists(st.integers(0, 99), max_size=40), longest=st.integers(1, 12))
def test_windows_score_each_token_once_after_all_that_fits(text, longest):
    found, whole = list(windows(text, -1, longest)), (-1, *text)
    scored, end = [], 1
    for row in found:
        scored += row.ids[row.first :]
        end += len(row.ids) - row.first
        assert row.ids == whole[max(0, end - longest - 1) : end]
    assert scored == text


@given(row=rows(), longest=st.integers(1, 10))
def test_a_row_loses_its_beginning_and_nothing_that_is_scored(row, longest):
    scored = row.ids[row.first :]
    if len(scored) > longest:
        with pytest.raises(ValueError, match=f"{len(scored)} tokens does not fit in {longest}"):
            fitted(row, longest)
        return
    cut = fitted(row, longest)
    assert cut.ids[cut.first :] == scored
    assert cut.ids == row.ids[-longest - 1 :]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("t"), 300)


@given(
    context=st.text("ab 1\n", max_size=6), continuation=st.text("ab 1\n", min_size=1, max_size=6)
)
def test_a_continuation_begins_with_the_spaces_before_it(tokenizer, context, continuation):
    row = split(tokenizer, context, continuation)
    assert row.ids == tuple(tokenizer.encode(context + continuation, bos=True))
    before = len(tokenizer.encode(context.rstrip(), bos=True))
    assert row.first == before or row.first == len(row.ids) - 1 < before


def test_an_empty_continuation_is_refused(tokenizer):
    with pytest.raises(ValueError, match="expected a continuation of 'one and'"):
        split(tokenizer, "one and", "")


def test_texts_have_numbers_of_their_own():
    assert seed_of([1, 2]) == seed_of((1, 2)) != seed_of([12])
    assert seed_of([1, 2]) % 2**32 == 0
