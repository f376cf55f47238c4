"""losses: likelihoods equal slow loops; REINFORCE is judged by its gradient, over all outcomes."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from cases import (
    VOCAB,
    anchors_of,
    close,
    documents_of,
    gradients,
    normal,
    random_module,
    same,
    same_gradients,
    seeded,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qs.config import ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.products import BLOCKS
from qs.presets import PRESETS
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import ENDED
from qs.quietstar.losses import (
    LOGITS_AT_ONCE,
    advantages,
    linear_cross_entropy,
    linear_nll,
    logit_rows,
    reinforce,
    rewards,
)
from qs.quietstar.terms import Step, Terms, count_terms, loss_terms, targets_ahead, term_weights

# Likelihood


@given(
    seed=seeds,
    rows=st.integers(0, 7),
    chunk=st.none() | st.integers(1, 9),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    forbidden=st.sets(st.integers(0, VOCAB - 1), max_size=VOCAB - 1),
)
def test_linear_nll_equals_a_slow_softmax_in_value_and_gradient(
    seed: int, rows: int, chunk: int | None, temperature: float, forbidden: set[int]
):
    outputs = normal(rows, 3, seed=seed).requires_grad_()
    head = normal(VOCAB, 3, seed=seed + 1).requires_grad_()
    kept = [i for i in range(VOCAB) if i not in forbidden]
    targets = torch.tensor([kept[(seed + i) % len(kept)] for i in range(rows)], dtype=torch.int64)
    found = linear_nll(outputs, head, targets, temperature, tuple(forbidden), chunk)
    assert found.shape == (rows,)
    slow = [torch.zeros((), dtype=torch.float64)]
    for row in range(rows):
        logits = [(head[i] @ outputs[row]) / temperature for i in range(VOCAB)]
        total = sum(logits[i].exp() for i in kept)
        slow.append(total.log() - logits[targets[row]])
        close(found[row], slow[-1])
    if rows:
        weights = normal(rows, seed=seed + 2)
        expected = torch.autograd.grad((weights * torch.stack(slow[1:])).sum(), (outputs, head))
        for x, y in zip(
            torch.autograd.grad((weights * found).sum(), (outputs, head)), expected, strict=True
        ):
            close(x, y)


@given(seed=seeds, shape=st.lists(st.integers(1, 3), max_size=4))
def test_linear_nll_keeps_the_shape_of_its_targets(seed: int, shape: list[int]):
    targets = torch.randint(VOCAB, shape, generator=seeded(seed))
    nll = linear_nll(normal(*shape, 3, seed=seed), normal(VOCAB, 3, seed=seed), targets)
    assert nll.shape == targets.shape


@given(vocab_size=st.integers(1, 2**27))
def test_logits_are_made_in_whole_blocks_of_products_or_as_many_as_there_may_be(vocab_size: int):
    on_cpu, on_cuda = (logit_rows(vocab_size, torch.device(name)) for name in ("cpu", "cuda"))
    assert on_cpu % BLOCKS[-1] == 0
    assert on_cpu == BLOCKS[-1] or on_cpu * vocab_size <= LOGITS_AT_ONCE // 16
    assert on_cuda == 1 or on_cuda * vocab_size <= LOGITS_AT_ONCE < (on_cuda + 1) * vocab_size


def test_linear_nll_is_at_least_float32_and_a_forbidden_target_is_impossible():
    outputs, head = torch.ones((2, 3), dtype=torch.bfloat16), torch.eye(4, 3)
    nll = linear_nll(outputs, head, torch.tensor([1, 3]), forbidden=(3,))
    assert nll.dtype == torch.float32
    assert nll[0] == torch.tensor(3.0).log()
    assert nll[1] == torch.inf


def plain_cross_entropy(outputs, head, teacher, teacher_head) -> Tensor:
    p = (teacher @ teacher_head.T).softmax(-1)
    return -(p * (outputs @ head.T).log_softmax(-1)).sum(-1)


@given(seed=seeds, shape=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_linear_cross_entropy_equals_plain_torch_and_its_teacher_is_a_constant(
    seed: int, shape: list[int]
):
    sizes = ((*shape, 3), (VOCAB, 3), (*shape, 4), (VOCAB, 4))
    leaves = [normal(*size, seed=seed + i).requires_grad_() for i, size in enumerate(sizes)]
    weights = normal(*shape, seed=seed + 4)
    expected = plain_cross_entropy(*leaves)
    slopes = torch.autograd.grad((weights * expected).sum(), leaves[:2])
    for chunk in (None, 1, 2):  # a part of the rows at a time is the whole
        found = linear_cross_entropy(*leaves, chunk)
        close(found, expected)
        found = torch.autograd.grad((weights * found).sum(), leaves, allow_unused=True)
        assert found[2] is found[3] is None
        for x, y in zip(found[:2], slopes, strict=True):
            close(x, y)


def test_the_gradient_of_linear_cross_entropy_is_that_of_central_differences():
    outputs, head, *teacher = (normal(*x, seed=i) for i, x in enumerate([(3, 2), (4, 2)] * 2))
    leaves = outputs.requires_grad_(), head.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: linear_cross_entropy(x, y, *teacher, 2), leaves)


@st.composite
def rows_of_text(draw) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """tokens, documents, anchors, counted."""
    B, T, seed = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(seeds)
    counted = draw(st.none() | st.just(torch.rand((B, T), generator=seeded(seed)) < 0.6))
    tokens = torch.randint(VOCAB, (B, T), generator=seeded(seed))
    return tokens, draw(documents_of(B, T)), draw(anchors_of(B, T)), counted


@given(text=rows_of_text(), ahead=st.integers(1, 9))
def test_targets_are_the_tokens_ahead_in_the_same_document_that_count(text, ahead: int):
    tokens, documents, anchors, counted = text
    targets, valid = targets_ahead(tokens, documents, anchors, ahead, counted)
    assert targets.shape == valid.shape == (*anchors.shape, ahead)
    for b, row in enumerate(tokens.tolist()):
        for a, t in enumerate(anchors[b].tolist()):
            for i in range(1, ahead + 1):
                there = t + i < len(row) and int(documents[b, t + i]) != -1
                there = there and int(documents[b, t + i]) == int(documents[b, t])
                there = there and (counted is None or bool(counted[b, t + i]))
                assert bool(valid[b, a, i - 1]) is there
                if there:
                    assert int(targets[b, a, i - 1]) == row[t + i]
    assert (targets >= 0).all()
    assert (targets < VOCAB).all()


# Rewards


@given(
    seed=seeds,
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
def test_reward_is_the_gain_over_all_targets_or_nothing(seed: int, sizes: tuple[int, ...]):
    B, A, K, m = sizes
    nll_base = normal(B, A, m, seed=seed)
    nll_mix = normal(B, A, K, m, seed=seed + 1).requires_grad_()
    valid = torch.rand((B, A, m), generator=seeded(seed)) < 0.8
    found = rewards(nll_base, nll_mix, valid)
    assert not found.requires_grad
    for b, a, k in itertools.product(range(B), range(A), range(K)):
        expected = 0.0
        if all(bool(valid[b, a, i]) for i in range(m)):
            expected = sum(
                float(nll_base[b, a, i] - nll_mix[b, a, k, i].detach()) for i in range(m)
            )
        assert math.isclose(float(found[b, a, k]), expected, abs_tol=1e-12)


def test_rewards_of_each_kind_are_what_hands_compute():
    nll_base = torch.tensor([[[2.0, 1.0]]], dtype=torch.float64)
    nll_mix = -torch.tensor([[[[0.5, 0.25], [0.5, 1.0]]]], dtype=torch.float64).log()
    right = torch.tensor([[[[True, False], [True, True]]]])
    valid = torch.ones((1, 1, 2), dtype=torch.bool)
    gains = [3 - math.log(8), 3 - math.log(2)]
    for kind, expected in (
        ("information-gain", gains),
        ("exact", [0.0, 1.0]),
        ("probability", [0.375, 0.75]),
    ):
        found = rewards(nll_base, nll_mix, valid, kind, right)
        same(found, torch.tensor([[expected]], dtype=torch.float64))
        assert not rewards(nll_base, nll_mix, ~valid, kind, right).any()


@given(
    seed=seeds,
    K=st.integers(2, 4),
    baseline=st.sampled_from(["mean", "others", "none"]),
    keep=st.booleans(),
)
def test_advantage_is_the_reward_over_the_mean_of_the_same_position(
    seed: int, K: int, baseline: str, keep: bool
):
    reward = normal(2, 3, K, seed=seed)
    found = advantages(reward, baseline, keep)
    for b, a, k in itertools.product(range(2), range(3), range(K)):
        own, total = float(reward[b, a, k]), sum(reward[b, a].tolist())
        mean = {"mean": total / K, "others": (total - own) / (K - 1), "none": 0.0}[baseline]
        expected = float(reward[b, a, k]) - mean
        expected = expected if keep else max(expected, 0.0)
        assert math.isclose(float(found[b, a, k]), expected, abs_tol=1e-12)


@given(seed=seeds, K=st.integers(2, 4), shift=st.floats(-5, 5))
def test_a_constant_added_to_every_reward_of_a_position_changes_no_advantage(
    seed: int, K: int, shift: float
):
    reward = normal(3, K, seed=seed)
    same(advantages(reward + shift), advantages(reward))


# REINFORCE, over all outcomes


def expected_gradient(logits: Tensor, worth: Tensor, K: int, baseline: str, keep: bool) -> Tensor:
    """Gradient of `reinforce` in expectation over every K-tuple of outcomes, exactly."""
    log_p = logits.log_softmax(0)
    total = torch.zeros_like(logits)
    for chosen in itertools.product(range(len(logits)), repeat=K):
        chosen = list(chosen)
        surrogate = reinforce(log_p[chosen], worth[chosen], baseline, keep)
        gradient = torch.autograd.grad(surrogate, logits, retain_graph=True)[0]
        total += log_p.detach()[chosen].sum().exp() * gradient
    return total


def gradient_of_expected_reward(logits: Tensor, worth: Tensor) -> Tensor:
    return torch.autograd.grad((logits.softmax(0) * worth).sum(), logits)[0]


@pytest.mark.parametrize("K", [1, 2, 3])
@given(seed=seeds, V=st.integers(2, 4))
def test_without_baseline_the_expected_gradient_is_that_of_the_expected_reward(
    K: int, seed: int, V: int
):
    logits, worth = normal(V, seed=seed).requires_grad_(), normal(V, seed=seed + 1)
    found = expected_gradient(logits, worth, K, "none", keep=True)
    close(found, -K * gradient_of_expected_reward(logits, worth))


@pytest.mark.parametrize("K", [2, 3])
@given(seed=seeds, V=st.integers(2, 4))
def test_the_mean_of_the_others_leaves_the_expected_gradient_as_it_is(K: int, seed: int, V: int):
    logits, worth = normal(V, seed=seed).requires_grad_(), normal(V, seed=seed + 1)
    found = expected_gradient(logits, worth, K, "others", keep=True)
    close(found, -K * gradient_of_expected_reward(logits, worth))


@pytest.mark.parametrize("K", [2, 3])
@given(seed=seeds, V=st.integers(2, 4))
def test_the_mean_baseline_scales_the_expected_gradient_by_one_minus_one_over_k(
    K: int, seed: int, V: int
):
    logits, worth = normal(V, seed=seed).requires_grad_(), normal(V, seed=seed + 1)
    found = expected_gradient(logits, worth, K, "mean", keep=True)
    close(found, -(1 - 1 / K) * K * gradient_of_expected_reward(logits, worth))


def test_dropping_negative_advantages_is_biased():
    logits = torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, 0.0, -3.0], dtype=torch.float64)
    true = -(1 - 1 / 2) * 2 * gradient_of_expected_reward(logits, worth)
    same(expected_gradient(logits, worth, 2, "mean", keep=True), true)
    biased = expected_gradient(logits, worth, 2, "mean", keep=False)
    assert (biased - true).abs().max() > 0.1
    slope = torch.nn.functional.cosine_similarity(biased, true, dim=0)
    assert 0 < slope < 0.999  # another direction, not only another length


@given(seed=seeds, K=st.integers(1, 3))
def test_reinforce_is_minus_the_sum_of_advantage_times_log_p(seed: int, K: int):
    log_p, reward = normal(2, 3, K, seed=seed), normal(2, 3, K, seed=seed + 1)
    pairs = zip(log_p.flatten().tolist(), reward.flatten().tolist(), strict=True)
    expected = -sum(a * b for a, b in pairs)
    found = reinforce(log_p, reward.requires_grad_(), "none", keep_negative=True)
    assert math.isclose(float(found), expected, abs_tol=1e-9)
    assert not found.requires_grad  # nothing flows through the reward


SMALL = ModelConfig(
    5, dim=6, layers=1, heads=2, kv_heads=1, head_dim=2, hidden_dim=8, bos_id=1, pad_id=None
)


def anchor_step(module: QuietStar, anchor: int, thoughts: list[list[int]]):
    """One anchor of a fixed text with these K thoughts."""
    tokens = torch.tensor([[0, 3, 2, 4, 0]])
    thoughts = torch.tensor(thoughts).view(1, 1, len(thoughts), -1)
    return module(tokens, anchors=torch.tensor([[anchor]]), thoughts=thoughts)


def test_rlp_draws_and_learns_at_one_temperature_with_nothing_but_reinforce():
    config = PRESETS["rlp"].thought
    assert term_weights(config) == (0, 0, 1)
    assert config.sample_temperature == config.policy_temperature == 0.7
    names = ("samples", "ahead", "reference", "average_decay", "baseline", "mix_weight")
    values = [getattr(config, name) for name in names]
    assert values == [16, 1, "average", 0.999, "others", "one"]


@pytest.mark.parametrize(
    ("n", "anchor", "changes"),
    [
        (1, 0, {}),
        (2, 2, {}),
        (2, 0, {"reward": "exact", "ahead": 1, "mix_weight": "one"}),
        (1, 2, {"reward": "probability"}),
        (2, 2, {"mix_weight": "one", "length_norm": True}),
    ],
)
def test_expected_policy_gradient_of_the_whole_model_is_that_of_the_expected_reward(
    n: int, anchor: int, changes: dict
):
    settings = {"ahead": 2, "policy_temperature": 1.0, "keep_negative": True} | changes
    config = ThoughtConfig(thoughts=n, samples=1, beta=1.0, baseline="none", **settings)
    module = random_module(SMALL, config, seed=3)
    found = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    mass, worth = 0.0, torch.zeros((), dtype=torch.float64)
    for thought in itertools.product((0, 2, 3, 4), repeat=n):  # 1 is forbidden
        step = anchor_step(module, anchor, [list(thought)])
        p = step.log_p.squeeze().exp()
        worth = worth + p * step.reward.squeeze()
        mass += float(p.detach())
        for name, value in gradients(loss_terms(step, config).policy, module).items():
            found[name] += float(p.detach()) * value
    assert math.isclose(mass, 1, rel_tol=1e-12)
    expected = {name: -value for name, value in gradients(worth, module).items()}
    assert expected["start"].any()
    same_gradients(found, expected)


def test_expected_policy_gradient_with_two_thoughts_and_the_mean_baseline_is_half_of_both():
    config = ThoughtConfig(
        thoughts=1, ahead=2, samples=2, beta=1.0, keep_negative=True, policy_temperature=1.0
    )
    module = random_module(SMALL, config, seed=3)
    allowed = (0, 2, 3, 4)
    found = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for pair in itertools.product(allowed, repeat=2):
        step = anchor_step(module, 1, [[token] for token in pair])
        p = float(step.log_p.detach().sum().exp())
        for name, value in gradients(loss_terms(step, config).policy, module).items():
            found[name] += p * value
    step = anchor_step(module, 1, [[token] for token in allowed])
    worth = (step.log_p.exp() * step.reward).sum()
    half = {name: -(1 - 1 / 2) * 2 * value for name, value in gradients(worth, module).items()}
    same_gradients(found, half)


def test_the_length_norm_is_a_mean_over_what_a_thought_chose():
    ended = torch.tensor([[5, 5, 5], [5, ENDED, ENDED], [ENDED] * 3])  # 3, 2 and 1 choices
    config = ThoughtConfig(baseline="none", keep_negative=True, beta=1.0, end="drawn")
    log_p = torch.tensor([-6.0, -4.0, -1.0], dtype=torch.float64, requires_grad=True)
    zero, counts = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.bool)
    chosen, reward = log_p[None, None], torch.ones(1, 1, 3)
    nll, thoughts = (zero, zero[..., None, None]), ended[None, None]
    step = Step(*nll, chosen, reward, zero, zero, counts, zero, thoughts, zero)
    for norm, expected in ((False, [1.0, 1.0, 1.0]), (True, [1.0, 3 / 2, 3.0])):
        policy = loss_terms(step, dataclasses.replace(config, length_norm=norm)).policy
        (slope,) = torch.autograd.grad(-policy, log_p)
        same(slope, torch.tensor(expected, dtype=torch.float64))


# Sums and counts


@given(
    seed=seeds,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    thoughts=st.integers(0, 3),
)
def test_counts_are_what_slow_loops_count(seed: int, sizes: tuple[int, ...], thoughts: int):
    B, A, m, K = sizes
    base_valid = torch.rand((B, 5), generator=seeded(seed)) < 0.5
    valid = torch.rand((B, A, m), generator=seeded(seed + 1)) < 0.6
    base, talk, policy = 0, [0] * m, 0
    for b in range(B):
        base += sum(map(int, base_valid[b]))
        for a in range(A):
            for _ in range(K):
                for i in range(m):
                    talk[i] += int(valid[b, a, i])
                policy += thoughts if all(map(bool, valid[b, a])) else 0
    counts = count_terms(base_valid, valid, K, thoughts)
    assert (int(counts.base), counts.talk.tolist(), int(counts.policy)) == (base, talk, policy)


@given(seed=seeds, m=st.integers(1, 4), empty=st.booleans())
def test_means_are_sums_over_counts_and_an_empty_term_is_zero(seed: int, m: int, empty: bool):
    numbers = seeded(seed)
    counts = Terms(*(torch.randint(9, size, generator=numbers) for size in ((), (m,), ())))
    if empty:
        counts = Terms(*(torch.zeros_like(count) for count in counts))
    sums = Terms(*(normal(*c.shape, seed=seed + i).where(c > 0, 0.0) for i, c in enumerate(counts)))
    means = sums.means(counts)
    assert math.isclose(float(means.base), float(sums.base) / max(int(counts.base), 1))
    talk = [s / max(c, 1) for s, c in zip(sums.talk.tolist(), counts.talk.tolist(), strict=True)]
    assert math.isclose(float(means.talk), sum(talk) / m, abs_tol=1e-15)
    assert math.isclose(float(means.policy), float(sums.policy) / max(int(counts.policy), 1))
    if empty:
        assert not any(means)


# Refusals


@pytest.mark.parametrize("loss", [advantages, lambda reward: reinforce(reward, reward)])
def test_one_thought_has_no_mean_to_be_compared_with(loss):
    with pytest.raises(ValueError, match="mean baseline needs K >= 2 thoughts at a position"):
        loss(torch.zeros(3, 1))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 2, 1), (1, 2)])
def test_rewards_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"log_p \(3, 2\) and reward \(.*\) differ"):
        reinforce(torch.zeros(3, 2), torch.zeros(shape))
