"""quiet: a packed step equals running every branch on its own; nothing leaks between branches."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from cases import (
    Case,
    cases,
    close,
    examples,
    gradients,
    normal,
    random_module,
    same,
    same_gradients,
    seeded,
    seeds,
    thought_configs,
    visibilities,
)
from hypothesis import given
from hypothesis import strategies as st
from oracle import Answer, judge
from tiny import module as tiny_module
from torch import Tensor

import qs.quietstar.algorithm
import qs.quietstar.ends
import qs.quietstar.losses
import qs.quietstar.mixer
from qs.config import Config, RunConfig, ThoughtConfig
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.algorithm import PAUSE, QuietStar
from qs.quietstar.ends import ENDED, lengths
from qs.quietstar.load import begin_vector, eager
from qs.quietstar.losses import linear_nll
from qs.quietstar.terms import Step, Terms, loss_terms, targets_ahead, targets_of, term_weights

# Equals naive code


def answer_of(case: Case, parameters: dict[str, Tensor], **arguments) -> Answer:
    batch = (case.tokens, case.documents, case.counted, case.anchors, case.thoughts)
    own = {"visibility": case.visibility} | arguments
    return judge(parameters, case.shape, case.config, *batch, **own)


def agrees(found: Tensor, expected: dict, elsewhere: float | None = 0.0) -> None:
    """Entries named by `expected` are equal; all others are `elsewhere` (None: anything)."""
    there = torch.zeros(found.shape, dtype=torch.bool)
    for key, value in expected.items():
        there[key] = True
        close(found[key], torch.as_tensor(value, dtype=torch.float64))
    if elsewhere is not None:
        assert (found[~there] == elsewhere).all()


def outputs_agree(case: Case, module: QuietStar, answer: Answer) -> None:
    base, branch = module.score(case.tokens, case.documents, case.anchors, case.thoughts)
    for key, value in answer.base.items():
        close(base[key], value)
    for (b, a, k), values in answer.branch.items():
        before_text = int((case.thoughts[b, a, k] != ENDED).sum()) + 2
        t = int(case.anchors[b, a])
        home = [int(d) == int(case.documents[b, t]) for d in case.documents[b, t + 1 :]]
        known = before_text + (home.index(False) if False in home else len(home))
        for depth, value in enumerate(values[:known]):
            close(branch[b, a, k, depth], value)


def values_agree(step: Step, answer: Answer) -> None:
    agrees(step.nll_base, answer.nll_base)
    agrees(step.nll_mix, answer.nll_mix)
    agrees(step.weight, answer.weight, elsewhere=None)
    agrees(step.reward, answer.reward)
    agrees(step.log_p, answer.log_p, elsewhere=None)
    assert {tuple(key) for key in step.base_valid.nonzero().tolist()} == answer.nll_base.keys()
    valid = {(b, a, i) for b, a, _, i in answer.nll_mix}
    assert {tuple(key) for key in step.valid.nonzero().tolist()} == valid


@pytest.mark.parametrize("attention", ["structured", "dense"])
@given(case=cases(visibility=visibilities))
def test_step_equals_running_every_branch_alone_in_value_and_gradient(attention: str, case: Case):
    module = case.module(attention)
    answer = answer_of(case, dict(module.named_parameters()))
    outputs_agree(case, module, answer)
    step = case.step(module)
    values_agree(step, answer)
    means = loss_terms(step, case.config).means(case.counts(step))
    close(means.base, answer.terms[0])
    close(means.talk, answer.terms[1])
    close(means.policy, answer.terms[2] if case.config.beta > 0 else torch.zeros_like(means.policy))
    loss = case.loss(step)
    close(loss, answer.loss)
    same_gradients(gradients(loss, module), gradients(answer.loss, module))


@examples(0.1)
@given(case=cases(visibility=visibilities))
def test_step_with_flex_attention_has_the_values_of_every_branch_alone(case: Case):
    module = case.module("flex").requires_grad_(False)  # FlexAttention has no backward on CPU
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        values_agree(case.step(module), answer_of(case, dict(module.named_parameters())))


@examples(0.2)
@given(case=cases(), weight=st.sampled_from([0.0, 0.3, 1.0]))
def test_fixed_weight_replaces_the_mixing_head(case: Case, weight: float):
    module = case.module().requires_grad_(False)
    step = case.step(module, fixed_weight=weight)
    values_agree(step, answer_of(case, dict(module.named_parameters()), fixed_weight=weight))
    assert (step.weight == weight).all()


def later_nll(case: Case, step: Step) -> Tensor:
    """(B, A, K, m) NLL without thoughts of the tokens that nll_mix is about; 0 if not valid."""
    at = case.anchors[:, :, None] + torch.arange(case.config.ahead)
    at = at.clamp(max=case.tokens.shape[1] - 1)
    nll = step.nll_base.gather(1, at.flatten(1)).view(at.shape).where(step.valid, 0.0)
    return nll[:, :, None].expand_as(step.nll_mix)


@given(case=cases(config=thought_configs(reward="information-gain")), seed=seeds)
def test_information_gain_is_over_the_reference_where_there_is_one(case: Case, seed: int):
    module = case.module().requires_grad_(False)
    everywhere = case.documents, case.anchors, case.config.ahead, case.counted
    targets = targets_of(case.tokens, *everywhere)
    reference = normal(*case.tokens.shape, seed=seed).abs().where(targets.next_valid, 0.0)
    step, plain = (
        case.step(module, targets=targets._replace(reference=reference)),
        case.step(module),
    )
    more = later_nll(case, plain._replace(nll_base=reference)) - later_nll(case, plain)
    same(step.reward, plain.reward + more.sum(-1) * step.valid.all(-1)[:, :, None])
    for one, other in zip(step._replace(reward=plain.reward), plain, strict=True):
        assert torch.equal(one, other)  # no prediction and no loss of likelihood changes


@given(case=cases(config=thought_configs(reward="information-gain")))
def test_weight_zero_is_the_base_prediction_and_weight_one_is_the_thought_prediction(case: Case):
    module = case.module().requires_grad_(False)
    step = case.step(module, fixed_weight=0.0)
    same(step.nll_mix, later_nll(case, step))
    earns = step.valid.all(-1)[:, :, None]
    paid = case.config.thought_cost * lengths(case.thoughts).double()
    same(step.reward, -paid * earns)
    step = case.step(module, fixed_weight=1.0)
    _, branch = module.score(case.tokens, case.documents, case.anchors, case.thoughts)
    T, m = case.tokens.shape[1], case.config.ahead
    at = (case.anchors[:, :, None] + torch.arange(1, m + 1)).clamp(max=T - 1)
    targets = case.tokens.gather(1, at.flatten(1)).view(at.shape)[:, :, None]
    after = module.after(branch, case.thoughts)
    nll = linear_nll(after, module.model.head, targets.expand_as(step.nll_mix))
    same(step.nll_mix, nll.where(step.valid[:, :, None], 0.0))


# Step 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(case=cases(config=thought_configs(mix_weight="linear", mix_space="output")))
def test_mixed_prediction_of_step_zero_equals_the_base_prediction_exactly(
    dtype: torch.dtype, case: Case
):
    module = case.module()
    module.mixer = QuietStar(Mistral(case.shape), case.config).mixer  # as it is built
    module = module.to(dtype)
    module.model.compute_dtype = dtype
    judged = []

    def watched(outputs: Tensor, *arguments) -> Tensor:
        judged.append(outputs)
        return linear_nll(outputs, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        for place in (qs.quietstar.algorithm, qs.quietstar.mixer, qs.quietstar.ends):
            patch.setattr(place, "linear_nll", watched)
        step = case.step(module)
    base, mixed, _ = judged  # of the text, of the mixture, of the thoughts' tokens
    at = case.anchors[:, :, None] + torch.arange(case.config.ahead)
    at = at.clamp(max=case.tokens.shape[1] - 1).flatten(1)
    plain = base.gather(1, at[..., None].expand(-1, -1, base.shape[2]))
    plain = plain.view(*case.anchors.shape, 1, -1, base.shape[2]).expand_as(mixed).contiguous()
    assert torch.equal(step.weight, torch.zeros_like(step.weight))
    assert torch.equal(mixed, plain)
    assert torch.equal(module.model.logits(mixed), module.model.logits(plain))
    # A matrix product may round one row otherwise than many: equal in NLL to that.
    limit = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(step.nll_mix, later_nll(case, step), rtol=limit, atol=limit)


@given(seed=seeds, scale=st.sampled_from([1.0, 100.0]), tied=st.booleans())
def test_vectors_begin_as_the_mean_of_their_text(seed: int, scale: float, tied: bool):
    shape = dataclasses.replace(SHAPE, tied=tied)
    module = QuietStar(Mistral(shape), ThoughtConfig(embedding_scale=scale, end="drawn"))
    with torch.no_grad():
        module.model.tok_embeddings.weight.copy_(normal(7, 8, seed=seed))
    begin_vector(module, "start", [2])
    begin_vector(module, "end", [3, 5, 3])
    rows = module.model.tok_embeddings.weight
    torch.testing.assert_close(module.start * scale, rows[2])
    torch.testing.assert_close(module.end * scale, (2 * rows[3] + rows[5]) / 3)
    begin_vector(module, "end_output", [4, 6])  # drawn as often as they are, about
    torch.testing.assert_close(module.end_row, module.model.head[[4, 6]].mean(0))


SHAPE = ModelConfig(7, dim=8, layers=2, heads=2, kv_heads=1, head_dim=4, hidden_dim=12)

# Change one thing and nothing else changes


def other(ids: Tensor, vocabulary: int) -> Tensor:
    """Every token is replaced by another one."""
    return (ids + 1) % vocabulary


quiet_cases = cases(rows=3, visibility=visibilities)


@given(case=quiet_cases, cut=st.integers(0, 6))
def test_no_prediction_and_no_thought_sees_the_future(case: Case, cut: int):
    module, T = case.module().requires_grad_(False), case.tokens.shape[1]
    cut = min(cut, T - 1)
    changed = case.tokens.clone()
    changed[:, cut:] = other(changed[:, cut:], case.shape.vocab_size)
    before, after = case.step(module), case.step(module, tokens=changed)
    target = torch.arange(1, T + 1).expand_as(case.tokens)
    same(after.nll_base[target < cut], before.nll_base[target < cut])
    target = case.anchors[:, :, None] + torch.arange(1, case.config.ahead + 1)
    target = target[:, :, None].expand_as(before.nll_mix)
    same(after.nll_mix[target < cut], before.nll_mix[target < cut])
    same(after.log_p[case.anchors < cut], before.log_p[case.anchors < cut])
    base, branch = module.score(case.tokens, case.documents, case.anchors, case.thoughts)
    base_2, branch_2 = module.score(changed, case.documents, case.anchors, case.thoughts)
    same(base_2[:, :cut], base[:, :cut])
    anchors = case.anchors[:, :, None, None]
    ahead = torch.arange(branch.shape[3]) - 1 - lengths(case.thoughts)[..., None]
    last = anchors + ahead.clamp(min=0)  # latest true token that each branch slot holds or sees
    same(branch_2[last < cut], branch[last < cut])


@given(case=quiet_cases, seed=seeds)
def test_no_sampled_thought_depends_on_the_future(case: Case, seed: int):
    module, cut = case.module().requires_grad_(False), case.tokens.shape[1] // 2
    changed = case.tokens.clone()
    changed[:, cut:] = other(changed[:, cut:], case.shape.vocab_size)
    before = case.step(module, thoughts=None, generator=seeded(seed))
    after = case.step(module, thoughts=None, generator=seeded(seed), tokens=changed)
    early = case.anchors < cut
    assert torch.equal(after.thoughts[early], before.thoughts[early])


@given(
    case=cases(rows=3, config=st.integers(1, 3).flatmap(lambda n: thought_configs(thoughts=n))),
    data=st.data(),
)
def test_no_branch_sees_another_branch(case: Case, data):
    module = case.module().requires_grad_(False)
    kept = [i for i in range(case.shape.vocab_size) if i not in case.shape.forbidden]
    size = case.thoughts.shape[:3]
    chosen = tuple(data.draw(st.integers(0, limit - 1)) for limit in size)
    changed = case.thoughts.clone()
    here = changed[chosen]
    tokens = here[here != ENDED].tolist() or [kept[-1]]  # one of no token gets one
    here[: len(tokens)] = torch.tensor([kept[(kept.index(i) + 1) % len(kept)] for i in tokens])
    rest = torch.ones(size, dtype=torch.bool)
    rest[chosen] = False
    before, after = case.step(module), case.step(module, thoughts=changed)
    same(after.nll_base, before.nll_base)
    for name in ("nll_mix", "reward", "log_p", "weight"):
        same(getattr(after, name)[rest], getattr(before, name)[rest])
    assert not torch.equal(after.log_p[chosen], before.log_p[chosen])


@given(case=quiet_cases, data=st.data())
def test_no_document_sees_another_document_and_nothing_sees_padding(case: Case, data):
    module = case.module().requires_grad_(False)
    number = data.draw(st.sampled_from(case.documents.unique().tolist()))
    gone = case.documents == number
    changed = case.tokens.where(~gone, other(case.tokens, case.shape.vocab_size))
    before, after = case.step(module), case.step(module, tokens=changed)
    same(after.nll_base[~gone], before.nll_base[~gone])
    rest = ~gone.gather(1, case.anchors)
    for name in ("nll_mix", "reward", "log_p"):
        same(getattr(after, name)[rest], getattr(before, name)[rest])
    if number == -1:
        same(after.nll_mix, before.nll_mix)
        same(case.loss(after), case.loss(before))


@given(case=quiet_cases)
def test_no_row_sees_another_row(case: Case):
    module = case.module().requires_grad_(False)
    before = case.step(module)
    changed = case.tokens.clone()
    changed[-1] = other(changed[-1], case.shape.vocab_size)
    thoughts = case.thoughts.clone()
    thoughts[-1] = thoughts[-1].flip(1)
    after = case.step(module, tokens=changed, thoughts=thoughts)
    for name in ("nll_base", "nll_mix", "reward", "log_p", "weight"):
        same(getattr(after, name)[:-1], getattr(before, name)[:-1])


@given(case=quiet_cases, seed=seeds)
def test_permuting_rows_permutes_the_step(case: Case, seed: int):
    module = case.module().requires_grad_(False)
    order = torch.randperm(len(case.tokens), generator=seeded(seed))
    names = ("tokens", "documents", "counted", "anchors", "thoughts")
    before = case.step(module)
    after = case.step(module, **{name: getattr(case, name)[order] for name in names})
    for x, y in zip(after, before, strict=True):
        same(x, y[order])
    same(case.loss(after), case.loss(before))


@given(case=quiet_cases, seed=seeds)
def test_permuting_the_thoughts_of_a_position_permutes_what_they_earn(case: Case, seed: int):
    module = case.module().requires_grad_(False)
    order = torch.randperm(case.config.samples, generator=seeded(seed))
    before = case.step(module)
    after = case.step(module, thoughts=case.thoughts[:, :, order])
    same(after.nll_base, before.nll_base)
    for name in ("nll_mix", "reward", "log_p", "weight"):
        same(getattr(after, name), getattr(before, name)[:, :, order])
    same(case.loss(after), case.loss(before))


@given(case=quiet_cases, seed=seeds)
def test_permuting_the_anchors_permutes_what_they_earn(case: Case, seed: int):
    module = case.module().requires_grad_(False)
    order = torch.randperm(case.anchors.shape[1], generator=seeded(seed))
    before = case.step(module)
    after = case.step(module, anchors=case.anchors[:, order], thoughts=case.thoughts[:, order])
    for name in ("nll_mix", "reward", "log_p", "weight"):
        same(getattr(after, name), getattr(before, name)[:, order])
    same(case.loss(after), case.loss(before))


@given(case=quiet_cases, extra=st.integers(1, 3))
def test_appending_padding_changes_nothing(case: Case, extra: int):
    module, B = case.module().requires_grad_(False), len(case.tokens)
    T = case.tokens.shape[1]
    before = case.step(module)
    after = case.step(
        module,
        tokens=torch.cat([case.tokens, torch.full((B, extra), 3)], 1),
        documents=torch.cat([case.documents, torch.full((B, extra), -1)], 1),
        counted=torch.cat([case.counted, torch.ones((B, extra), dtype=torch.bool)], 1),
    )
    same(after.nll_base[:, :T], before.nll_base)
    assert not after.nll_base[:, T:].any()
    for name in ("nll_mix", "reward"):
        same(getattr(after, name), getattr(before, name))
    real = case.documents.gather(1, case.anchors) != -1  # what padding thinks does not matter
    same(after.log_p[real], before.log_p[real])
    same(case.loss(after), case.loss(before))


@given(case=quiet_cases)
def test_one_document_a_row_in_which_everything_counts_is_the_default(case: Case):
    module = case.module().requires_grad_(False)
    zeros, ones = torch.zeros_like(case.documents), torch.ones_like(case.counted)
    plain = case.step(module, documents=None, counted=None)
    for x, y in zip(plain, case.step(module, documents=zeros, counted=ones), strict=True):
        assert torch.equal(x, y)


# Memory is bought without changing results


@examples(0.5)
@given(case=quiet_cases)
def test_splitting_a_batch_changes_no_gradient(case: Case):
    module = case.module()
    whole = case.step(module)
    counts = case.counts(whole)
    expected = gradients(case.loss(whole, counts), module)
    sums = {name: torch.zeros_like(value) for name, value in expected.items()}
    for b in range(len(case.tokens)):
        names = ("tokens", "documents", "counted", "anchors", "thoughts")
        part = case.step(module, **{name: getattr(case, name)[b : b + 1] for name in names})
        for name, value in gradients(case.loss(part, counts), module).items():
            sums[name] += value
    same_gradients(sums, expected)


@examples(0.5)
@given(case=quiet_cases)
def test_recomputing_layers_and_small_chunks_of_logits_change_no_gradient(case: Case):
    module, lean = case.module(), case.module(recompute=True)
    expected = case.step(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qs.quietstar.losses, "LOGITS_AT_ONCE", 3 * case.shape.vocab_size)
        found = case.step(lean)
        found_gradients = gradients(case.loss(found), lean)
    for x, y in zip(found, expected, strict=True):
        same(x, y)
    same_gradients(found_gradients, gradients(case.loss(expected), module))


# Where gradients go


@examples(0.5)
@given(case=cases(config=st.sampled_from([1, 2]).flatmap(lambda n: thought_configs(thoughts=n))))
def test_policy_loss_moves_neither_the_end_vector_nor_the_mixing_head(case: Case):
    module = case.module()
    step = case.step(module)
    assert not step.reward.requires_grad
    assert not step.thoughts.requires_grad
    assert gradients(step.log_p.sum(), module)["start"].any()
    for name, gradient in gradients(loss_terms(step, case.config).policy, module).items():
        if name == "end" or name.startswith("mixer."):
            assert not gradient.any(), name


@given(case=cases(config=thought_configs(beta=0.0)))
def test_without_beta_the_policy_loss_is_zero_and_log_p_has_no_part_in_the_loss(case: Case):
    step = case.step()
    terms = loss_terms(step, case.config)
    assert terms.policy == 0
    assert not terms.policy.requires_grad
    assert case.loss(step._replace(log_p=None)) == case.loss(step)


@given(case=quiet_cases)
def test_each_loss_term_is_a_sum_over_what_counts(case: Case):
    step = case.step()
    sums, counts = loss_terms(step, case.config), case.counts(step)
    close(sums.base, step.nll_base[step.base_valid].sum())
    for i in range(case.config.ahead):
        close(
            sums.talk[i],
            step.nll_mix[..., i]
            .transpose(1, 2)[step.valid[:, None, :, i].expand(-1, case.config.samples, -1)]
            .sum(),
        )
        assert counts.talk[i] == int(step.valid[..., i].sum()) * case.config.samples
    means = sums.means(counts)
    assert isinstance(means, Terms)
    assert torch.isfinite(means.base + means.talk + means.policy)


# Randomness and anchors


@given(
    case=quiet_cases,
    seed=seeds,
    rule=st.sampled_from(["all", "random", "uncertain"]),
    share=st.floats(0.01, 1),
    end=st.sampled_from(["fixed", "drawn"]),
)
def test_same_generator_gives_the_same_step(
    case: Case, seed: int, rule: str, share: float, end: str
):
    share = 1.0 if rule == "all" else share
    config = ThoughtConfig(thoughts=2, ahead=1, anchors=rule, anchor_share=share, end=end)
    module = case.but(config=config).module().requires_grad_(False)
    first, second = (module(case.tokens, case.documents, generator=seeded(seed)) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)
    given_thoughts = module(
        case.tokens, case.documents, anchors=first.anchors, thoughts=first.thoughts
    )
    for x, y in zip(given_thoughts, first, strict=True):
        assert torch.equal(x, y)


@given(
    case=quiet_cases,
    seed=seeds,
    rule=st.sampled_from(["random", "uncertain"]),
    share=st.floats(0.01, 1),
)
def test_anchors_are_a_share_of_the_positions_sorted_and_distinct(
    case: Case, seed: int, rule: str, share: float
):
    config = ThoughtConfig(thoughts=1, anchors=rule, anchor_share=share)
    module = case.but(config=config).module().requires_grad_(False)
    step = module(case.tokens, case.documents, generator=seeded(seed))
    B, T = case.tokens.shape
    assert step.anchors.shape == (B, max(1, round(T * share)))
    for row in step.anchors.tolist():
        assert row == sorted(set(row))
        assert set(row) <= set(range(T))
    for row, documents in zip(step.anchors, case.documents, strict=True):  # padding thinks last
        real = int((documents != -1).sum())
        assert int((documents[row] != -1).sum()) == min(len(row), real)
    if rule == "uncertain":
        outputs, _ = module.score(case.tokens, case.documents, step.anchors, step.thoughts)
        p = (outputs @ module.model.head.T).softmax(-1)
        entropy = -(p * p.log()).sum(-1)
        for b, row in enumerate(step.anchors.tolist()):
            real = [t for t in range(T) if case.documents[b, t] != -1]
            thinks = [float(entropy[b, t]) for t in real if t in row]
            rest = [float(entropy[b, t]) for t in real if t not in row]
            assert min(thinks, default=9.0) >= max(rest, default=0.0) - 2e-4  # as near as a tie


@given(
    case=quiet_cases,
    seed=seeds,
    rule=st.sampled_from(["all", "random", "uncertain", "given"]),
    greedy=st.booleans(),
    end=st.sampled_from(["fixed", "drawn"]),
)
def test_splitting_a_batch_draws_the_same_thoughts(
    case: Case, seed: int, rule: str, greedy: bool, end: str
):
    kind = {"end": end}
    if rule not in ("all", "given"):
        kind |= {"anchors": rule, "anchor_share": 0.5}
    if greedy:
        kind |= {"sample_temperature": 0.0, "beta": 0.0}
    config = ThoughtConfig(thoughts=2, ahead=1, **kind)
    module = case.but(config=config).module().requires_grad_(False)
    anchors = case.anchors if rule == "given" else None
    numbers = seeded(seed)
    whole = module(case.tokens, case.documents, anchors=anchors, generator=seeded(seed))
    for b in range(len(case.tokens)):
        row = slice(b, b + 1)
        some = None if anchors is None else anchors[row]
        part = module(case.tokens[row], case.documents[row], anchors=some, generator=numbers)
        assert torch.equal(part.anchors, whole.anchors[row])
        assert torch.equal(part.thoughts, whole.thoughts[row])


def test_random_anchors_differ_between_rows_and_between_seeds():
    config = ThoughtConfig(thoughts=1, anchors="random", anchor_share=0.5)
    module = random_module(SHAPE, config, 0).requires_grad_(False)
    tokens = torch.zeros((8, 12), dtype=torch.int64)
    first, second = (module(tokens, generator=seeded(seed)).anchors for seed in (0, 1))
    assert len({tuple(row) for row in first.tolist()}) > 1
    assert not torch.equal(first, second)


def test_every_position_thinks_unless_told_otherwise():
    module = random_module(SHAPE, ThoughtConfig(thoughts=1), 0).requires_grad_(False)
    tokens = torch.zeros((2, 5), dtype=torch.int64)
    assert module(tokens, generator=seeded(0)).anchors.tolist() == [list(range(5))] * 2
    thoughts = torch.full((2, 5, 2, 1), 4)
    assert module(tokens, thoughts=thoughts).anchors.tolist() == [list(range(5))] * 2


# Settings


def test_other_settings_of_thought_last_as_long_as_their_block():
    module = random_module(SHAPE, ThoughtConfig(thoughts=1), 0)
    tokens = torch.zeros((1, 3), dtype=torch.int64)
    with module.with_settings(thoughts=3):
        assert module(tokens, generator=seeded(0)).thoughts.shape == (1, 3, 2, 3)
    with pytest.raises(KeyError), module.with_settings(thoughts=2):
        raise KeyError
    assert module.config == ThoughtConfig(thoughts=1)


def test_plain_training_weighs_the_base_term_alone():
    thought = ThoughtConfig(base_weight=0.25, beta=7.0)
    assert term_weights(Config(thought=thought).thinking) == (0.25, 0.75, 7.0)
    assert term_weights(Config(thought=thought, run=RunConfig(objective="plain")).thinking) == (
        1,
        0,
        0,
    )


# Refusals


@pytest.mark.parametrize(
    ("anchors", "thoughts"), [(None, (2, 4, 2, 1)), ((2, 3), (2, 5, 2, 1)), ((2, 3), (1, 3, 2, 1))]
)
def test_thoughts_that_do_not_fit_the_anchors_are_refused(anchors, thoughts):
    module = random_module(SHAPE, ThoughtConfig(thoughts=1), 0)
    tokens = torch.zeros((2, 5), dtype=torch.int64)
    anchors = None if anchors is None else torch.zeros(anchors, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"thoughts \(.*\) do not fit \(2, \d\) anchors"):
        module(tokens, anchors=anchors, thoughts=torch.zeros(thoughts, dtype=torch.int64))


# Pauses


@examples(0.2)
@given(case=cases())
def test_a_pause_is_a_token_whose_embedding_is_the_start_vector(case: Case):
    module = case.module().requires_grad_(False)
    spare = int(case.tokens.max())
    case.tokens[case.tokens == spare] = max(0, spare - 1)
    module.model.tok_embeddings.weight[spare] = module.start * case.config.embedding_scale
    arguments = (case.tokens, case.documents, case.counted, case.anchors)
    spelt, paused = (
        module(*arguments, torch.full_like(case.thoughts, token)) for token in (spare, PAUSE)
    )
    close(paused.nll_mix, spelt.nll_mix)
    close(paused.nll_base, spelt.nll_base)
    assert (paused.log_p == 0).all()


def test_a_module_that_pauses_thinks_nothing_else():
    module = QuietStar(
        tiny_module(ThoughtConfig()).model, ThoughtConfig(thoughts=3, samples=2), pause=True
    )
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    _, thoughts = module.think(tokens, torch.zeros_like(tokens))
    assert thoughts.shape == (2, 5, 2, 3)
    assert (thoughts == PAUSE).all()


@pytest.mark.parametrize("anchors", ["all", "random", "uncertain"])
def test_pauses_read_the_text_only_to_find_where_the_model_is_unsure(anchors, monkeypatch):
    share = 1.0 if anchors == "all" else 0.5
    config = ThoughtConfig(thoughts=2, anchors=anchors, anchor_share=share)
    module, reads = QuietStar(tiny_module(config).model, config, pause=True), []
    prefill = qs.quietstar.algorithm.prefill
    monkeypatch.setattr(
        qs.quietstar.algorithm, "prefill", lambda *given: reads.append(1) or prefill(*given)
    )
    tokens = torch.arange(10).view(2, 5)
    module.think(tokens, torch.zeros_like(tokens))
    assert len(reads) == (anchors == "uncertain")
    module.think(tokens, torch.zeros_like(tokens), tokens[:, :2] % 5)
    assert len(reads) == (anchors == "uncertain")


@examples(0.1)
@given(case=cases())
def test_predictions_of_every_token_hold_the_nll_of_the_true_ones(case: Case):
    module = case.module().requires_grad_(False)
    step = case.step(module)
    base, mix, weight = module.predict(case.tokens, case.documents, case.anchors, case.thoughts)
    targets, valid = targets_ahead(
        case.tokens, case.documents, case.anchors, case.config.ahead, case.counted
    )
    targets = targets[:, :, None, :, None].expand(*mix.shape[:4], 1)
    there = valid[:, :, None].expand(mix.shape[:4])
    close(-mix.gather(-1, targets)[..., 0][there], step.nll_mix[there])
    close(weight[there], step.weight[there])
    close(mix.exp().sum(-1), torch.ones(mix.shape[:4], dtype=mix.dtype))
    first = there[..., 0]
    plain = step.nll_base.gather(1, case.anchors)[:, :, None].expand(first.shape)
    close(-base.gather(-1, targets)[..., 0, 0][first], plain[first])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_pass_that_comes_once_is_not_compiled():
    quiet = random_module(SHAPE, ThoughtConfig(thoughts=2, ahead=2), 0)
    tokens, calls = torch.arange(5)[None], []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    for layer in quiet.model.layers:
        layer.compile(backend=backend)
    quiet.model.compiled, quiet.attention = True, "flex"
    with torch.no_grad():
        with eager(quiet):
            assert quiet.attention == "structured"
            expected = quiet(tokens, generator=seeded(0)).nll_mix
        assert not calls
        assert quiet.model.compiled
        quiet.attention = "structured"
        torch.testing.assert_close(quiet(tokens, generator=seeded(0)).nll_mix, expected)
    assert calls
