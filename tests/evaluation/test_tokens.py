"""tasks: every token counts once, and is scored with and without a thought of its own."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, module

from qs.config import ThoughtConfig
from qs.evaluation.hard_tokens import by_decile, frontier, most_helped
from qs.evaluation.statistics import ratio_interval
from qs.evaluation.tokens import Tokens, text_score, token_nlls
from qs.quietstar.algorithm import QuietStar

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=6)
# whatever a run trains with, text is scored with one thought before every token
TRAINED = [
    ThoughtConfig(thoughts=2, ahead=3, samples=3),
    ThoughtConfig(thoughts=1, anchors="random", anchor_share=0.3, baseline="none"),
    ThoughtConfig(thoughts=0, beta=0.0, ahead=2, mix_weight="sigmoid", mix_space="probability"),
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def naive(quiet, batches, numbers):
    """(NLL without, NLL with, weight, row) of every token, each thought run alone."""
    one = dict(ahead=1, samples=1, beta=0.0, baseline="none", anchors="all", anchor_share=1.0)
    alone = QuietStar(quiet.model, dataclasses.replace(quiet.config, **one)).double()
    alone.load_state_dict(quiet.state_dict())
    found, row = [], 0
    for tokens, documents in batches:
        _, thoughts = alone.think(tokens, documents, generator=numbers)
        for b in range(len(tokens)):
            for t in range(tokens.shape[1] - 1):
                if documents[b, t] != documents[b, t + 1] or documents[b, t] < 0:
                    continue
                own = torch.nonzero(documents[b] == documents[b, t]).flatten()
                text = tokens[b, own[own <= t + 1]][None]  # its document, up to the token
                at = torch.tensor([[text.shape[1] - 2]])
                step = alone(text, anchors=at, thoughts=thoughts[b : b + 1, t : t + 1])
                base, mix = step.nll_base[0, -2], step.nll_mix[0, 0, 0, 0]
                found.append((base.item(), mix.item(), step.weight[0, 0, 0, 0].item(), row))
            row += 1
    return np.array(found)


@few
@given(seeds, st.sampled_from(TRAINED))
def test_text_is_scored_token_by_token_with_the_thought_of_each(seed, config):
    quiet = module(config, seed)
    batches = [batch(seed, rows=2), batch(seed + 1, rows=1, length=5)]
    found = text_score(quiet, batches, generator(seed))
    with torch.no_grad():
        base, mix, weight, row = naive(quiet, batches, generator(seed)).T
    assert found.tokens == len(base)
    assert found.nll_base == pytest.approx(base.mean(), rel=1e-9)
    assert found.nll_mix == pytest.approx(mix.mean(), rel=1e-9)
    assert found.gain == pytest.approx((base - mix).mean(), rel=1e-6, abs=1e-12)
    assert found.weight == pytest.approx(weight.mean(), rel=1e-9)
    gains = [(base - mix)[row == i].sum() for i in range(3)]
    counts = [(row == i).sum() for i in range(3)]
    expected = ratio_interval(np.array(gains), np.array(counts, float))
    assert found.gain_interval == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert quiet.config == config  # scoring leaves the settings of training alone


def test_padding_and_how_rows_are_batched_change_nothing():
    quiet = module(TRAINED[0])
    tokens, documents = batch(1)
    alone = [(tokens[i : i + 1], documents[i : i + 1]) for i in range(4)]
    together = text_score(quiet, [(tokens, documents)], generator(3))
    apart = text_score(quiet, alone, generator(3))
    other = tokens.where(documents >= 0, 7)  # what stands under padding
    padded = text_score(quiet, [(other, documents)], generator(3))
    for score in (apart, padded):
        assert score.tokens == together.tokens
        for name in ("nll_base", "nll_mix", "gain", "gain_interval", "weight"):
            assert getattr(score, name) == pytest.approx(getattr(together, name), rel=1e-9), name


def test_scoring_without_thinking_gives_the_same_nll_and_nothing_else():
    quiet = module(TRAINED[0])
    both = text_score(quiet, [batch(1)], generator(0))
    plain = text_score(quiet, [batch(1)], generator(0), think=False)
    assert plain.tokens == both.tokens
    assert plain.nll_base == pytest.approx(both.nll_base, rel=1e-12)
    assert {plain.nll_mix, plain.gain, plain.gain_interval, plain.weight} == {None}


@pytest.mark.parametrize("think", [False, True])
def test_text_without_a_token_to_score_is_refused(think):
    tokens = torch.zeros((2, 3), dtype=torch.int64)
    lonely = torch.tensor([[0, 1, 2], [-1, -1, -1]])
    for batches in ([], [(tokens, lonely)]):
        with pytest.raises(ValueError, match="no token to score"):
            text_score(module(TRAINED[0]), batches, generator(0), think)


# What helped and what hurt


@few
@given(seeds, st.integers(1, 30), st.integers(1, 4))
def test_the_most_helped_and_hurt_are_those_of_all_tokens(seed, count, context):
    quiet = module(TRAINED[0], seed)
    batches = [batch(seed, rows=2), batch(seed + 1, rows=1, length=5)]
    best, worst = most_helped(quiet, batches, generator(seed), count, context)
    with torch.no_grad():
        base, mix, weights, _ = naive(quiet, batches, generator(seed)).T
    gains = np.sort(base - mix)
    helped, hurt = gains[gains > 0][::-1][:count], gains[gains < 0][:count]
    assert [item.gain for item in best] == pytest.approx(list(helped), rel=1e-6, abs=1e-12)
    assert [item.gain for item in worst] == pytest.approx(list(hurt), rel=1e-6, abs=1e-12)
    rows = [(t, d) for tokens, documents in batches for t, d in zip(tokens, documents, strict=True)]
    texts = [
        tokens[documents == n].tolist() for tokens, documents in rows for n in documents.unique()
    ]
    for item in best + worst:
        assert 1 <= len(item.context) <= context
        assert len(item.thought) == TRAINED[0].thoughts
        piece = [*item.context, item.target]
        places = [text[i : i + len(piece)] for text in texts for i in range(len(text))]
        assert piece in places  # of one document
        assert np.isclose(weights, item.weight, rtol=1e-9).any()


@few
@given(seeds)
def test_tokens_are_those_whose_means_the_score_gives(seed):
    quiet = module(TRAINED[0], seed)
    batches = [batch(seed, rows=2), batch(seed + 1, rows=1, length=5)]
    base, mix, entropy, names = token_nlls(quiet, batches, generator(seed))
    score = text_score(quiet, batches, generator(seed))
    assert len(base) == score.tokens
    assert base.mean() == pytest.approx(score.nll_base)
    assert mix.mean() == pytest.approx(score.nll_mix)
    with torch.no_grad():
        expected = []
        for tokens, documents in batches:
            everywhere = torch.arange(tokens.shape[1]).expand(tokens.shape)
            thoughts = torch.zeros(*tokens.shape, 1, 0, dtype=torch.int64)
            with quiet.with_settings(ahead=1):
                plain, _, _ = quiet.predict(tokens, documents, everywhere, thoughts)
            p = plain[:, :, 0, 0].exp()
            there = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
            expected.append(-(p * p.log()).sum(-1)[:, :-1][there])
    np.testing.assert_allclose(entropy, torch.cat(expected), rtol=1e-5)
    same = [(d[:, 1:] == d[:, :-1]) & (d[:, 1:] >= 0) for _, d in batches]
    expected = torch.cat([d[:, :-1][there] for (_, d), there in zip(batches, same, strict=True)])
    assert names.tolist() == expected.tolist()


@given(seeds, st.integers(0, 60))
def test_deciles_are_tenths_of_the_tokens_in_order_of_difficulty(seed, count):
    numbers = np.random.default_rng(seed)
    base, mix = numbers.random((2, count))
    documents = numbers.integers(0, 7, count)
    found = by_decile(base, mix, documents)
    assert sum(d.tokens for d in found) == count
    assert len(found) == min(10, count)
    assert max((d.tokens for d in found), default=0) - min((d.tokens for d in found), default=0) < 2
    for easier, harder in zip(found, found[1:], strict=False):
        assert easier.high <= harder.low
    gain = sum(d.gain * d.tokens for d in found)
    assert gain == pytest.approx((base - mix).sum(), abs=1e-9)
    for decile in found:
        inside = (base >= decile.low) & (base <= decile.high)
        assert inside.sum() == decile.tokens
        assert decile.gain == pytest.approx((base - mix)[inside].mean())
        names, counts = np.unique(documents[inside], return_counts=True)
        sums = [(base - mix)[inside & (documents == name)].sum() for name in names]
        expected = ratio_interval(np.array(sums), counts)
        assert decile.documents == len(names)
        assert decile.interval == (expected and pytest.approx(expected, abs=1e-12))
        assert decile.nll_base == pytest.approx(base[inside].mean())


@given(seeds, st.integers(1, 50))
def test_thinking_where_it_is_unsure_keeps_the_gain_of_those_tokens(seed, count):
    numbers = np.random.default_rng(seed)
    found = Tokens(*numbers.random((3, count)), np.zeros(count, int))
    gain = found.nll_base - found.nll_mix
    points = frontier(found, 5)
    assert points[0].share == 1
    assert points[0].slots == 8
    assert points[0].gain == pytest.approx(gain.mean())
    shares = [point.share for point in points]
    assert shares == sorted(shares, reverse=True)
    for point in points[1:]:
        thinks = found.entropy > point.above
        assert point.share == thinks.mean()
        assert point.slots == pytest.approx(1 + 7 * thinks.mean())
        assert point.gain == pytest.approx(gain[thinks].sum() / count)
        if gain.sum() > 0:
            assert point.kept == pytest.approx(gain[thinks].sum() / gain.sum())
        else:
            assert point.kept is None
