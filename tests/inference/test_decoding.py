"""decoding: each token is drawn from its share of the numbers; settings are read strictly."""

from __future__ import annotations

import math

import pytest
import torch
from cases import VOCAB, normal, same, seeded, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracle import pick
from torch import Tensor

from qs.inference.decoding import Decoding, think_above, uniforms
from qs.quietstar.losses import entropy
from qs.quietstar.sampler import choose


@given(seed=seeds, temperature=st.sampled_from([0.5, 1.0, 3.0]), top_p=st.floats(0.05, 1.0))
def test_each_token_is_drawn_from_its_share_of_the_numbers(
    seed: int, temperature: float, top_p: float
):
    N, never = 4000, {2, 5}
    logits = 2 * normal(VOCAB, seed=seed)
    ids = torch.tensor([i for i in range(VOCAB) if i not in never])
    p = {i: math.exp(logits[i].item() / temperature) for i in ids.tolist()}
    total, nucleus = sum(p.values()), {}
    for i in sorted(p, key=p.get, reverse=True):
        if sum(nucleus.values()) < top_p * total:
            nucleus[i] = p[i]
    grid = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    found = choose(logits.expand(N, -1), grid, ids, temperature, top_p).bincount(minlength=VOCAB)
    for i in range(VOCAB):
        share = nucleus.get(i, 0.0) / sum(nucleus.values())
        assert abs(found[i].item() / N - share) <= 1 / N
    edges = torch.tensor([0.0, math.nextafter(1, 0)], dtype=torch.float64)
    kept = set(choose(logits.expand(2, -1), edges, ids, temperature, top_p).tolist())
    assert kept == {min(nucleus), max(nucleus)}
    assert (choose(logits[None], grid[:1], ids, 0.0, top_p) == max(p, key=p.get)).all()


def test_those_that_have_exactly_the_share_are_kept_and_no_more():
    numbers = torch.arange(8, dtype=torch.float64) / 8
    even = torch.zeros(8, 4, dtype=torch.float64)  # a quarter each, exactly
    assert choose(even, numbers, torch.arange(4), 1.0, 0.5).tolist() == [0] * 4 + [1] * 4


def test_a_number_that_rounds_to_one_draws_no_token_without_probability():
    number = torch.tensor([math.nextafter(1, 0)], dtype=torch.float64)
    for logits in ([0.0, 0.0, -1e4], [-1e4, 0.0, 1.0, -1e30, -1e30]):
        drawn = choose(torch.tensor([logits]), number, torch.arange(len(logits)), 1.0)
        assert drawn.item() == max(i for i, logit in enumerate(logits) if logit >= 0)


temperatures = st.sampled_from([0.0, 0.5, 1.0, 3.0])
edges = [0.0, math.nextafter(1, 0)]
logit = st.floats(-50, 50) | st.sampled_from([-1e30, -1e4, 1e4, 1e30])
uniform = st.floats(0, 1, exclude_max=True) | st.sampled_from(edges)


@st.composite
def draws(draw) -> tuple[Tensor, Tensor, set[int]]:
    """Logits (N, V), extreme ones among them, uniforms (N,), and ids that may not be drawn."""
    N, V = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    logits = [[draw(logit) for _ in range(V)] for _ in range(N)]
    forbidden = draw(st.sets(st.integers(0, V - 1), max_size=V - 1))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    uniforms = [draw(uniform) for _ in range(N)]
    return torch.tensor(logits, dtype=dtype), torch.tensor(uniforms, dtype=torch.float64), forbidden


@given(drawn=draws(), temperature=temperatures)
def test_a_drawn_token_is_allowed_and_possible(drawn, temperature: float):
    logits, uniforms, forbidden = drawn
    kept = [i for i in range(logits.shape[1]) if i not in forbidden]
    found = choose(logits, uniforms, torch.tensor(kept), temperature)
    assert found.shape == uniforms.shape
    for token, row in zip(found.tolist(), logits, strict=True):
        assert token in kept
        if temperature > 0:
            p = (row[kept].double() / temperature).softmax(0)[kept.index(token)]
            assert p > 0 or float(row[token]) == float(row[kept].max())


@given(drawn=draws(), temperature=st.sampled_from([0.0, 1.0]))
def test_the_only_allowed_token_is_drawn(drawn, temperature: float):
    logits, uniforms, _ = drawn
    for token in range(logits.shape[1]):
        only = torch.tensor([token])
        assert choose(logits, uniforms, only, temperature).tolist() == [token] * len(uniforms)


@given(seed=seeds, temperature=temperatures)
def test_a_token_is_drawn_where_the_running_sum_passes_the_number(seed: int, temperature: float):
    logits = 3 * normal(20, VOCAB, seed=seed)
    uniforms = torch.rand(20, generator=seeded(seed), dtype=torch.float64)
    ids = torch.tensor([i for i in range(VOCAB) if i != 2])
    found = choose(logits, uniforms, ids, temperature)
    for row, number, token in zip(logits.tolist(), uniforms.tolist(), found.tolist(), strict=True):
        assert token == pick(row, number, temperature, {2})


@given(seed=seeds)
def test_entropy_is_that_of_the_probabilities(seed: int):
    log_p = normal(2, VOCAB, seed=seed).log_softmax(1)
    expected = [-sum(math.exp(x) * x for x in row) for row in log_p.tolist()]
    same(entropy(log_p), torch.tensor(expected, dtype=torch.float64))


@given(seed=seeds, row=st.integers(0, 9), tokens=st.integers(1, 4), n=st.integers(0, 3))
def test_numbers_of_a_row_are_its_own(seed: int, row: int, tokens: int, n: int):
    said, thinking = uniforms(seed, [row], tokens, n)
    more = uniforms(seed, [row + 1, row], tokens + 2, n)
    assert torch.equal(more[0][1, :tokens], said[0])
    assert torch.equal(more[1][1, :tokens], thinking[0])
    assert torch.equal(uniforms(seed, [row], tokens, n + 1)[0], said)
    everything = torch.cat([x.flatten() for x in more])
    assert len(everything.unique()) == len(everything)
    assert not torch.equal(uniforms(seed + 1, [row], tokens, n)[0], said)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_tokens", 0, "--max-tokens must be at least 1, got 0"),
        ("temperature", -0.1, "--temperature must be at least 0"),
        ("think_temperature", math.nan, "--think-temperature: expected a finite number"),
        ("top_p", 0.0, "--top-p must be above 0"),
        ("top_p", 1.5, r"--top-p is a share in \(0, 1\], got 1.5"),
        ("think_when", "often", "expected always, never or entropy>X .* got 'often'"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        Decoding(**{setting: value})


@given(above=st.floats(0, allow_nan=False, allow_infinity=False))
def test_the_entropy_above_which_to_think_is_read_from_text(above: float):
    assert think_above(f"entropy>{above}") == above
    assert think_above("always") == -math.inf == -think_above("never")


@pytest.mark.parametrize(
    "text",
    ["", "Always", "entropy", "entropy>", "entropy>x", "entropy>-1", "entropy>nan", "entropy>1_0"]
    + ["entropy>inf", "entropy>1e999", "entropy> 1", "entropy>1 ", "entropy<1", "entropy>1\n"],
)
def test_any_other_text_is_refused(text: str):
    with pytest.raises(ValueError, match="expected always, never or entropy>X"):
        think_above(text)
