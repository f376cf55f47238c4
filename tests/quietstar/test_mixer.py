"""mixing: how much of a thought's prediction goes in, against the formula in slow code."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from cases import normal, same, seeds
from hypothesis import given
from hypothesis import strategies as st

from qs.config import ThoughtConfig
from qs.quietstar.mixer import (
    Mixed,
    MixingHead,
    foretold,
    mix_nll,
    mix_outputs,
    mixed_cross_entropy,
    mixed_log_p,
    mixed_nll,
    mixing_weight,
)

finite = st.floats(-60, 60)
nats = st.floats(0, 200)


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


@given(seed=seeds, dim=st.integers(1, 5))
def test_the_head_is_three_layers_with_relu_between(seed: int, dim: int):
    head = MixingHead(dim).double()
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "0.weight": (dim, 2 * dim),
        "0.bias": (dim,),
        "2.weight": (dim, dim),
        "2.bias": (dim,),
        "4.weight": (1, dim),
    }
    with torch.no_grad():
        for i, p in enumerate(head.parameters()):
            p.copy_(normal(*p.shape, seed=seed + i))
    p = dict(head.named_parameters())
    base, thought = normal(2, 3, dim, seed=seed + 9), normal(2, 3, dim, seed=seed + 10)
    scores = head(base, thought)
    assert scores.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            x = [*base[i, j].tolist(), *thought[i, j].tolist()]
            for layer in (0, 2):
                rows = zip(p[f"{layer}.weight"].tolist(), p[f"{layer}.bias"].tolist(), strict=True)
                x = [max(0.0, dot(row, x) + bias) for row, bias in rows]
            expected = dot(p["4.weight"][0].tolist(), x)
            assert math.isclose(float(scores[i, j].detach()), expected, rel_tol=1e-9, abs_tol=1e-12)


@given(seed=seeds)
def test_the_score_of_a_new_head_is_zero_and_its_other_layers_are_not(seed: int):
    head = MixingHead(4)
    x, y = normal(5, 4, seed=seed).float(), normal(5, 4, seed=seed + 1).float()
    assert torch.equal(head(x, y), torch.zeros(5))
    for name, p in head.named_parameters():
        assert bool(p.any()) is (name != "4.weight")


@given(score=finite)
def test_a_linear_weight_is_the_score_and_a_sigmoid_weight_is_bounded(score: float):
    x = torch.tensor(score, dtype=torch.float64)
    assert mixing_weight(x, "linear") is x
    assert mixing_weight(x, "one") == 1
    weight = float(mixing_weight(x, "sigmoid"))
    assert math.isclose(weight, 1 / (1 + math.exp(-score)), rel_tol=1e-12)
    assert 0 < weight <= 1


@given(seed=seeds)
def test_mixing_outputs_is_mixing_logits(seed: int):
    base, thought, head = (normal(4, 3, seed=seed + i) for i in range(3))
    weight = normal(4, seed=seed + 3)
    mixed = mix_outputs(base, thought, weight)
    for i in range(4):
        w = float(weight[i])
        same(mixed[i], (1 - w) * base[i] + w * thought[i])
        same(mixed[i] @ head.T, (1 - w) * (base[i] @ head.T) + w * (thought[i] @ head.T))


@given(seed=seeds)
def test_weight_zero_leaves_the_base_output_as_it_is_bit_for_bit(seed: int):
    base, thought = normal(4, 3, seed=seed), 1e3 * normal(4, 3, seed=seed + 1)
    for dtype in (torch.float64, torch.float32):
        x, y = base.to(dtype), thought.to(dtype)
        assert torch.equal(mix_outputs(x, y, torch.zeros(4, dtype=dtype)), x)
        assert torch.equal(mix_outputs(x, y, torch.ones(4, dtype=dtype)), y)


@given(base=nats, thought=nats, score=finite)
def test_nll_of_a_mixture_is_that_of_its_mixed_probability(
    base: float, thought: float, score: float
):
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (base, thought, score))
    weight = 1 / (1 + math.exp(-score))
    rest = 1 / (1 + math.exp(score))  # 1 - weight, without cancellation
    expected = -math.log(rest * math.exp(-base) + weight * math.exp(-thought))
    assert math.isclose(float(mix_nll(*numbers)), expected, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("kind", "space"), [("linear", "output"), ("sigmoid", "output"), ("sigmoid", "probability")]
)
@given(seed=seeds)
def test_cross_entropy_is_with_the_mixture_that_is_predicted(kind: str, space: str, seed: int):
    base, after, outputs = (normal(2, 3, 4, seed=seed + i) for i in range(3))
    teacher_head, head = normal(5, 4, seed=seed + 3), normal(5, 4, seed=seed + 4)
    config = ThoughtConfig(mix_weight=kind, mix_space=space)
    mixed = Mixed.by(base, after, normal(2, 3, seed=seed + 5), config)
    _, log_p = mixed_log_p(mixed, teacher_head, space)
    expected = -(log_p.exp() * (outputs @ head.T).log_softmax(-1)).sum(-1)
    same(mixed_cross_entropy(mixed, teacher_head, outputs, head, space), expected)
    for x in (*mixed, teacher_head):
        x.requires_grad_()
    assert not mixed_cross_entropy(mixed, teacher_head, outputs, head, space).requires_grad


@pytest.mark.parametrize("weight", [-1e-9, 0.0, 0.5, 1.0, 1.0 + 1e-9, 1.5])
@pytest.mark.parametrize("space", ["output", "probability"])
def test_probabilities_are_mixed_by_weights_from_0_to_1_alone(space: str, weight: float):
    config = ThoughtConfig(mix_weight="sigmoid", mix_space=space)
    shapes = (2, 4), (2, 4), (2,), (5, 4)
    base, after, score, head = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    fits = space == "output" or 0 <= weight <= 1
    said = f"--fixed-weight: expected 0 to 1, .* got {weight}$"
    with nullcontext() if fits else pytest.raises(ValueError, match=said):
        mixed = Mixed.by(base, after, score, config, weight)
        for log_p in mixed_log_p(mixed, head, space):
            same(log_p.exp().sum(-1), torch.ones(2).double())


@pytest.mark.parametrize(("score", "expected"), [(-math.inf, 2.0), (math.inf, 700.0)])
def test_an_infinite_score_takes_one_side_alone(score: float, expected: float):
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (2.0, 700.0, score))
    assert float(mix_nll(*numbers)) == expected


@given(base=nats, thought=nats, score=finite)
def test_a_mixture_is_never_less_likely_than_both_and_its_gradient_is_finite(
    base: float, thought: float, score: float
):
    numbers = [
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (base, thought, score)
    ]
    nll = mix_nll(*numbers)
    assert min(base, thought) - 1e-9 <= float(nll.detach()) <= max(base, thought) + 1e-9
    gradients = torch.autograd.grad(nll, numbers)
    assert all(torch.isfinite(g) for g in gradients)
    assert math.isclose(float(gradients[0] + gradients[1]), 1, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("kind", "space"),
    [("linear", "output"), ("sigmoid", "output"), ("sigmoid", "probability"), ("one", "output")],
)
def test_log_probabilities_of_all_tokens_hold_the_nll_of_each(kind, space):
    numbers = torch.Generator().manual_seed(0)
    base, after, head = (
        torch.randn(*shape, generator=numbers, dtype=torch.float64)
        for shape in ((3, 2, 5), (3, 2, 5), (7, 5))
    )
    score = torch.randn(3, 2, generator=numbers, dtype=torch.float64)
    mixed = Mixed(base, after, score, mixing_weight(score, kind))
    plain, mix = mixed_log_p(mixed, head, space)
    torch.testing.assert_close(plain, (base @ head.T).log_softmax(-1))
    for token in range(7):
        targets = torch.full((3, 2), token)
        torch.testing.assert_close(-mix[..., token], mixed_nll(mixed, head, targets, space))
        assert torch.equal(foretold(mixed, head, targets, space), mix.argmax(-1) == token)
    if space == "probability":
        weight = score.sigmoid()[..., None]
        there = (after @ head.T).softmax(-1)
        torch.testing.assert_close(mix.exp(), (1 - weight) * plain.exp() + weight * there)
