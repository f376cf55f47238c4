"""hard_tokens: tenths, thresholds and examples are those that sorting all tokens gives."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, module

from qs.config import RunConfig, ThoughtConfig
from qs.evaluation.hard_tokens import by_decile, frontier, most_helped
from qs.evaluation.statistics import ratio_estimate
from qs.evaluation.tokens import TextRows, TokenTable, measure_tokens
from qs.quietstar.ends import ENDED

seeds = st.integers(0, 2**32 - 1)
THOUGHT = ThoughtConfig(thoughts=2, ahead=3, samples=3)


def drawn(seed, rows, length=9):
    """A table of random numbers for text of random documents."""
    numbers = np.random.default_rng(seed)
    tokens, documents = batch(seed, rows, length)
    inside = documents[:, 1:]
    scored = torch.zeros_like(documents, dtype=torch.bool)
    scored[:, :-1] = (inside == documents[:, :-1]) & (inside >= 0)
    columns = (torch.from_numpy(numbers.random((rows, length))) for _ in range(4))
    lengths = torch.from_numpy(numbers.integers(0, 6, (rows, length, 1)))
    thoughts = torch.zeros(rows, length, 5).long().where(torch.arange(5) < lengths, ENDED)
    return TokenTable(tokens, documents, scored, *columns, thoughts)


def columns_of(table):
    """(N,) NLL without and with thoughts, entropy and document of every scored token."""
    columns = (table.nll_base, table.nll_mix, table.entropy, table.documents)
    return [column[table.scored].numpy() for column in columns]


@given(seeds, st.integers(1, 12))
def test_deciles_are_tenths_of_the_tokens_in_order_of_difficulty(seed, rows):
    table = drawn(seed, rows)
    base, mix, _, documents = columns_of(table)
    count, found = len(base), by_decile(table)
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
        expected = ratio_estimate(np.array(sums), counts).interval
        assert decile.documents == len(names)
        assert decile.interval == (expected and pytest.approx(expected, abs=1e-12))
        assert decile.nll_base == pytest.approx(base[inside].mean())


@given(seeds, st.integers(1, 9))
def test_thinking_where_it_is_unsure_keeps_the_gain_of_those_tokens(seed, rows):
    table = drawn(seed, rows)
    table.scored[0, 0] = True  # something is
    base, mix, entropy, _ = columns_of(table)
    gain = base - mix
    points = frontier(table)
    assert points[0].share == 1
    spent = 3 + (table.thoughts[table.scored] != ENDED).sum(1).numpy()
    assert points[0].slots == pytest.approx(spent.mean())
    assert points[0].gain == pytest.approx(gain.mean())
    shares = [point.share for point in points]
    assert shares == sorted(shares, reverse=True)
    for point in points[1:]:
        thinks = entropy > point.above
        assert point.share == thinks.mean()
        assert point.slots == pytest.approx(np.where(thinks, spent, 1).mean())
        assert point.gain == pytest.approx(gain[thinks].sum() / len(gain))
        if gain.sum() > 0:
            assert point.kept == pytest.approx(gain[thinks].sum() / gain.sum())
        else:
            assert point.kept is None


@given(seeds, st.integers(1, 30), st.integers(1, 4))
def test_the_most_helped_and_hurt_are_those_of_all_tokens(seed, count, context):
    run = RunConfig(batch=3, seed=seed)
    table = measure_tokens(module(THOUGHT, seed % 3), TextRows(*batch(seed, rows=3)), run)
    best, worst = most_helped(table, count, context)
    gains = np.sort((table.nll_base - table.nll_mix)[table.scored])
    helped, hurt = gains[gains > 0][::-1][:count], gains[gains < 0][:count]
    assert [item.gain for item in best] == helped.tolist()
    assert [item.gain for item in worst] == hurt.tolist()
    texts = [
        tokens[documents == n].tolist()
        for tokens, documents in zip(table.tokens, table.documents, strict=True)
        for n in documents.unique()
    ]
    for item in best + worst:
        assert 1 <= len(item.context) <= context
        assert len(item.thought) == THOUGHT.thoughts
        piece = [*item.context, item.target]
        places = [text[i : i + len(piece)] for text in texts for i in range(len(text))]
        assert piece in places  # of one document
        assert item.weight in table.weight[table.scored]


def test_an_example_is_told_with_its_own_context_weight_and_thought():
    table = drawn(0, 1)
    table = dataclasses.replace(
        table,
        tokens=torch.arange(9)[None] + 10,
        documents=torch.tensor([[0, 0, 1, 1, 1, 1, 1, -1, -1]]),
        thoughts=torch.arange(18).view(1, 9, 2),
        scored=torch.tensor([[False] * 4 + [True] + [False] * 4]),
    )
    best, worst = most_helped(table, 5)
    (item,) = best + worst
    assert item.context == [12, 13, 14]  # of its document, up to itself
    assert item.target == 15
    assert item.thought == [8, 9]
    assert item.weight == table.weight[0, 4]
