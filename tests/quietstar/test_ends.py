"""ends: a thought that ended is one of fewer tokens; every thought has its share of probability."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import (
    Case,
    cases,
    close,
    gradients,
    random_module,
    same,
    seeded,
    seeds,
    thought_configs,
)
from hypothesis import given
from hypothesis import strategies as st

from qs.config import ThoughtConfig
from qs.model.config import ModelConfig
from qs.quietstar.ends import ENDED, PAUSE, after_end, close_up, lengths, pauses

SHAPE = ModelConfig(5, dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden_dim=12)
drawing = cases(
    config=st.integers(1, 3).flatmap(lambda n: thought_configs(thoughts=n, end="drawn"))
)
SLOTS = ["start", "z1", "z2", "z3", "end", "x1", "x2"]


@pytest.mark.parametrize(
    ("thought", "order"),
    [
        ([7, 7, 7], ["start", "z1", "z2", "z3", "end", "x1", "x2"]),
        ([7, PAUSE, ENDED], ["start", "z1", "z2", "end", "x1", "x2"]),
        ([7, ENDED, ENDED], ["start", "z1", "end", "x1", "x2"]),
        ([ENDED, ENDED, ENDED], ["start", "end", "x1", "x2"]),
    ],
)
def test_end_and_true_tokens_follow_the_last_token_of_a_thought(thought, order):
    slots, thought = torch.arange(7.0)[None, :, None].expand(2, -1, 3), torch.tensor([thought] * 2)
    closed = close_up(slots, thought)
    assert closed.shape == slots.shape
    found = [SLOTS[int(i)] for i in closed[1, : len(order), 2]]
    assert found == order
    assert lengths(thought).tolist() == [len(order) - 4] * 2
    after = after_end(closed, thought, 3)
    assert [SLOTS[int(i)] for i in after[0, :, 0]] == ["end", "x1", "x2"]


@given(case=drawing)
def test_a_thought_that_ended_is_worth_what_one_of_its_length_is(case: Case):
    """With places for no more tokens than it has, nothing but the chance of its end changes."""
    module = case.module().requires_grad_(False)
    step = case.step(module)
    for length in range(case.config.thoughts + 1):
        shorter = case.step(module, thoughts=case.thoughts[..., :length])
        here = lengths(case.thoughts) == length
        same(shorter.nll_mix[here], step.nll_mix[here])
        same(shorter.weight[here], step.weight[here])
        same(shorter.reward[here], step.reward[here])


@given(seed=seeds, temperature=st.sampled_from([1.0, 3.0]), n=st.integers(0, 2))
@torch.no_grad()
def test_probabilities_of_all_thoughts_add_up_to_one(seed: int, temperature: float, n: int):
    tokens = [i for i in range(SHAPE.vocab_size) if i not in SHAPE.forbidden]
    sizes = [itertools.product(tokens, repeat=size) for size in range(n + 1)]
    every = [[*some, *[ENDED] * (n - len(some))] for size in sizes for some in size]
    config = ThoughtConfig(
        thoughts=n, samples=len(every), policy_temperature=temperature, end="drawn", beta=0.0
    )
    module = random_module(SHAPE, config, seed)
    step = module(
        torch.tensor([[3, 4, 2, 3, 3, 4]]),
        anchors=torch.tensor([[1]]),
        thoughts=torch.tensor(every, dtype=torch.int64).view(1, 1, len(every), n),
    )
    close(step.log_p.exp().sum(), torch.ones((), dtype=torch.float64))


@given(case=drawing)
def test_the_output_vector_of_the_end_moves_by_the_policy_loss_alone(case: Case):
    module = case.module()
    step = case.step(module)
    others = step.nll_base.sum() + step.nll_mix.sum()
    assert not gradients(others, module)["end_output"].any()
    assert gradients(step.log_p.sum(), module)["end_output"].any()


@given(case=drawing, seed=seeds, scale=st.sampled_from([1.0, 0.0]))
@torch.no_grad()
def test_nothing_follows_an_end(case: Case, seed: int, scale: float):
    module = case.module()
    module.end_output.mul_(scale)
    step = case.step(module, thoughts=None, generator=seeded(seed))
    places = torch.arange(case.config.thoughts)
    assert torch.equal(step.thoughts != ENDED, places < lengths(step.thoughts)[..., None])


def test_pauses_have_a_length_and_nobody_chose_them():
    assert lengths(pauses((2, 3), torch.device("cpu"))).tolist() == [3, 3]
    config = ThoughtConfig(thoughts=3, samples=2, end="drawn")
    module = random_module(SHAPE, config, 0)
    thoughts = torch.tensor([PAUSE, PAUSE, ENDED]).expand(1, 4, 2, 3)
    step = module(torch.tensor([[3, 4, 2, 3]]), thoughts=thoughts)
    ended = module(torch.tensor([[3, 4, 2, 3]]), thoughts=torch.full((1, 4, 2, 3), PAUSE))
    assert (ended.log_p == 0).all()
    assert (step.log_p < 0).all()  # of the end alone


def test_vectors_are_used_times_their_scale():
    config = ThoughtConfig(thoughts=1, end="drawn", embedding_scale=10.0)
    module = random_module(SHAPE, config, 0)
    same(module.end_row, module.end_output * 10)
    assert random_module(SHAPE, ThoughtConfig(), 0).end_row is None
