"""anchors: over every choice of random ones the mean gradient is that of all positions."""

from __future__ import annotations

from itertools import permutations, product
from math import comb

import torch
from cases import (
    Case,
    cases,
    close,
    documents_of,
    examples,
    gradients,
    normal,
    same_gradients,
    seeded,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st
from oracle import judge
from tiny import module
from torch import Tensor

from qs.config import ThoughtConfig
from qs.quietstar.anchors import Numbers, choose_anchors, uncertainty
from qs.quietstar.masks import every_position
from qs.quietstar.terms import loss_terms


def choose(kind: str, documents: Tensor, order: Tensor, A: int) -> list[list[int]]:
    """The A anchors of each row, by the order or the uncertainty of its positions."""
    numbers = Numbers(order, torch.zeros(len(documents), A, 1, 1))
    return choose_anchors(kind, documents, numbers, order).tolist()


def random_choices(documents: Tensor, A: int) -> list[tuple[int, ...]]:
    """What each order of (T,) positions chooses: drawn alike, all orders are equally likely."""
    orders = torch.tensor(list(permutations(range(len(documents))))) / len(documents)
    return list(map(tuple, choose("random", documents.expand(orders.shape), orders, A)))


def think_everywhere(case: Case) -> Case:
    """The same text with thoughts after every position."""
    kept = torch.tensor([i for i in range(case.shape.vocab_size) if i not in case.shape.forbidden])
    size = (*case.tokens.shape, case.config.samples, case.config.thoughts)
    thoughts = kept[torch.randint(len(kept), size, generator=seeded(case.seed))]
    return case.but(anchors=every_position(case.tokens), thoughts=thoughts)


def some_think(case: Case, A: int) -> list[Case]:
    """Every choice of A anchors a row; each position has the same thoughts in all of them."""
    rows = product(*(sorted(set(random_choices(row, A))) for row in case.documents))
    kept = [torch.tensor(anchors) for anchors in rows]  # (B, A) each
    index = torch.arange(len(case.tokens))[:, None]
    return [case.but(anchors=at, thoughts=case.thoughts[index, at]) for at in kept]


def gradient(case: Case) -> dict[str, Tensor]:
    """Of the loss whose terms are divided by the case's own counts."""
    module = case.module()
    return gradients(case.loss(case.step(module)), module)


def gradient_alone(case: Case) -> dict[str, Tensor]:
    """The same by running every branch on its own."""
    module = case.module()
    batch = (case.tokens, case.documents, case.counted, case.anchors, case.thoughts)
    answer = judge(dict(module.named_parameters()), case.shape, case.config, *batch)
    return gradients(answer.loss, module)


# Random


@given(documents=documents_of(rows=1, length=4), A=st.integers(1, 4))
def test_random_anchors_are_every_choice_of_real_positions_equally_often(documents: Tensor, A: int):
    real = [t for t in range(4) if documents[0, t] != -1]
    chosen = [tuple(t for t in some if t in real) for some in random_choices(documents[0], A)]
    size = min(A, len(real))
    assert {len(some) for some in chosen} == {size}  # padding thinks only where all else does
    assert len(set(chosen)) == comb(len(real), size)
    assert {chosen.count(some) * len(set(chosen)) for some in chosen} == {len(chosen)}


@examples(0.3)
@given(case=cases(length=4), data=st.data())
def test_mean_gradient_over_every_choice_is_that_of_all_positions_of_rows_alike(case: Case, data):
    first, T = (case.documents[:1], case.counted[:1]), case.tokens.shape[1]
    documents, counted = (x.expand_as(case.tokens) for x in first)  # as many targets in each row
    case = think_everywhere(case.but(documents=documents, counted=counted))
    valid = case.step().valid[0]  # (T, m)
    judged = torch.cat([valid.sum(0), valid.all(-1).sum()[None]])  # targets of each term
    fewest = int(judged[judged > 0].min()) if judged.any() else T
    A = data.draw(st.integers(T - fewest + 1, T))  # so that none of them has no target left
    parts = [gradient(some) for some in some_think(case, A)]
    mean = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    same_gradients(mean, gradient_alone(case))


@examples(0.5)
@given(case=cases(rows=2, length=4), data=st.data())
def test_sums_and_counts_over_every_choice_are_on_average_their_share_of_all(case: Case, data):
    case = think_everywhere(case.but(documents=case.documents.clamp(min=0)))  # no padding
    T = case.tokens.shape[1]
    A, module = data.draw(st.integers(1, T)), case.module().requires_grad_(False)

    def sums_and_counts(case: Case) -> Tensor:
        step = case.step(module)
        _, *sums = loss_terms(step, case.config)  # what the text alone has is the same
        _, *counts = case.counts(step)
        return torch.cat([value.double().reshape(-1) for value in (*sums, *counts)])

    parts = [sums_and_counts(some) for some in some_think(case, A)]
    close(torch.stack(parts).mean(0), sums_and_counts(case) * A / T)


# Uncertain, all


@given(documents=documents_of(rows=2, length=5), A=st.integers(1, 5), seed=seeds)
def test_uncertain_anchors_are_those_of_most_entropy_and_of_equal_ones_the_earlier(
    documents: Tensor, A: int, seed: int
):
    entropy = torch.randint(3, (2, 5), generator=seeded(seed)).double()  # with ties
    for b, row in enumerate(choose("uncertain", documents, entropy, A)):
        ranked = sorted(range(5), key=lambda t: (documents[b, t] == -1, -entropy[b, t], t))
        real = int((documents[b] != -1).sum())
        assert row == sorted(row)
        assert set(ranked[: min(A, real)]) <= set(row)
        assert len(set(row)) == A


def test_outputs_that_differ_by_rounding_are_as_uncertain_as_each_other():
    model = module(ThoughtConfig()).requires_grad_(False).model
    output, nudges = normal(1, 1, model.config.dim, seed=0), 1 + 1e-9 * normal(2, 5, 1, seed=1)
    assert len(uncertainty(model, output * nudges).unique()) == 1


@given(documents=documents_of(rows=2, length=5))
def test_all_anchors_are_every_position_padding_too(documents: Tensor):
    assert choose("all", documents, torch.zeros(2, 0), 5) == [[0, 1, 2, 3, 4]] * 2
