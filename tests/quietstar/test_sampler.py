"""thoughts: sampling all thoughts in parallel draws what sampling one at a time draws."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from cases import (
    VOCAB,
    Case,
    cases,
    close,
    random_module,
    same,
    seeded,
    seeds,
    shapes,
    visibilities,
)
from cases import thought_configs as configs
from hypothesis import given
from hypothesis import strategies as st
from oracle import likelihood, log_p, read_text, think
from torch import Tensor

import qs.quietstar.sampler
from qs.config import ThoughtConfig
from qs.model.config import ModelConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import ENDED
from qs.quietstar.masks import Layout
from qs.quietstar.sampler import prefill, sample

temperatures = st.sampled_from([0.0, 0.5, 1.0, 3.0])
edges = [0.0, math.nextafter(1, 0)]
thinking = cases(config=configs(), visibility=visibilities)


def uniforms_of(case: Case) -> Tensor:
    size = case.thoughts.shape
    return torch.rand(size, generator=seeded(case.seed), dtype=torch.float64)


def sampled(case: Case, module: QuietStar, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    _, cache = prefill(module.model, case.tokens, case.documents, case.visibility)
    start = module.start * case.config.embedding_scale
    layout = Layout(case.documents, case.anchors, *case.thoughts.shape[2:], case.visibility)
    forbidden = case.shape.forbidden
    end = module.end_row
    return sample(module.model, start, layout, cache, uniforms, temperature, forbidden, end)


def slowly(
    case: Case, module: QuietStar, uniforms: Tensor, temperature: float = 1.0
) -> tuple[Tensor, dict[tuple[int, ...], list[Tensor]]]:
    """Tokens, and (b, a, k) -> the logits that each was drawn from, one branch after the other."""
    parameters = dict(module.named_parameters())
    text = (case.tokens, case.documents)
    _, stopped = read_text(parameters, case.shape, *text, case.visibility)
    start = parameters["start"] * case.config.embedding_scale
    tokens = torch.full(uniforms.shape, ENDED)
    seen = {}
    for b, a, k in torch.cartesian_prod(*map(torch.arange, uniforms.shape[:3])).tolist():
        reader, numbers = stopped[b, int(case.anchors[b, a])], uniforms[b, a, k].tolist()
        thought, seen[b, a, k] = think(reader, case.config, start, numbers, temperature)
        said = [i for i in thought if i < VOCAB]
        tokens[b, a, k, : len(said)] = torch.tensor(said, dtype=torch.int64)
    return tokens, seen


@given(case=thinking, temperature=temperatures)
@torch.no_grad()
def test_parallel_sampler_draws_the_tokens_of_one_branch_at_a_time(case: Case, temperature: float):
    module, uniforms = case.module(), uniforms_of(case)
    expected, _ = slowly(case, module, uniforms, temperature)
    assert torch.equal(sampled(case, module, uniforms, temperature), expected)


@given(case=thinking, seed=seeds)
@torch.no_grad()
def test_a_generator_gives_a_step_the_numbers_of_row_after_row(case: Case, seed: int):
    module, numbers = case.module(), seeded(seed)
    size = case.thoughts.shape[1:]
    rows = [torch.rand(size, generator=numbers, dtype=torch.float64) for _ in case.tokens]
    expected, _ = slowly(case, module, torch.stack(rows))
    step = module(case.tokens, case.documents, anchors=case.anchors, generator=seeded(seed))
    assert torch.equal(step.thoughts, expected)


@given(case=thinking, edge=st.sampled_from([*edges, None]))
@torch.no_grad()
def test_greedy_takes_the_likeliest_allowed_token_whatever_the_numbers(
    case: Case, edge: float | None
):
    module, uniforms = case.module(), uniforms_of(case)
    if edge is not None:
        uniforms = torch.full_like(uniforms, edge)
    found = sampled(case, module, uniforms, 0.0)
    _, seen = slowly(case, module, uniforms, 0.0)
    for key, scores in seen.items():
        for token, row in zip(found[key].tolist(), scores, strict=False):
            allowed = [i for i in range(len(row)) if i not in case.shape.forbidden]
            likeliest = max(allowed, key=lambda i, row=row: float(row[i]))
            assert token == (ENDED if likeliest == VOCAB else likeliest)


@given(case=thinking, temperature=st.sampled_from([0.5, 1.0, 3.0]))
@torch.no_grad()
def test_log_p_in_scoring_is_that_under_which_the_tokens_were_sampled(
    case: Case, temperature: float
):
    module = case.module()
    module.config = dataclasses.replace(module.config, policy_temperature=temperature)
    uniforms = uniforms_of(case)
    thoughts, seen = slowly(case, module, uniforms, temperature)
    step = case.step(module, thoughts=thoughts)
    for key, scores in seen.items():
        total = torch.zeros((), dtype=torch.float64)
        for token, row in zip(thoughts[key].tolist(), scores, strict=False):
            chosen = VOCAB if token == ENDED else token
            total = total + log_p(row, chosen, temperature, set(case.shape.forbidden))
        close(step.log_p[key], total)


@given(case=cases(config=st.integers(1, 3).flatmap(lambda n: configs(thoughts=n))), data=st.data())
@torch.no_grad()
def test_the_numbers_of_one_branch_change_that_branch_only(case: Case, data):
    module, uniforms = case.module(), uniforms_of(case)
    before = sampled(case, module, uniforms)
    chosen = tuple(data.draw(st.integers(0, limit - 1)) for limit in uniforms.shape[:3])
    changed = uniforms.clone()
    changed[chosen] = data.draw(st.sampled_from(edges))
    after = sampled(case, module, changed)
    rest = torch.ones(uniforms.shape[:3], dtype=torch.bool)
    rest[chosen] = False
    assert torch.equal(after[rest], before[rest])
    alone, _ = slowly(case, module, changed)
    assert torch.equal(after[chosen], alone[chosen])


@given(case=thinking, edge=st.sampled_from(edges), temperature=temperatures)
@torch.no_grad()
def test_a_thought_holds_no_forbidden_token(case: Case, edge: float, temperature: float):
    uniforms = torch.full(case.thoughts.shape, edge, dtype=torch.float64)
    tokens = sampled(case, case.module(), uniforms, temperature)
    assert tokens.shape == case.thoughts.shape
    assert not set(tokens.flatten().tolist()) & set(case.shape.forbidden)


@given(case=thinking, rows=st.integers(1, 5))
@torch.no_grad()
def test_logits_made_a_few_rows_at_a_time_give_the_same_tokens(case: Case, rows: int):
    module, uniforms = case.module(), uniforms_of(case)
    expected = sampled(case, module, uniforms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qs.quietstar.sampler, "LOGITS_AT_ONCE", rows * VOCAB)
        assert torch.equal(sampled(case, module, uniforms), expected)


@given(case=thinking)
@torch.no_grad()
def test_prefill_reads_every_document_as_if_it_were_alone(case: Case):
    module = case.module()
    outputs, cache = prefill(module.model, case.tokens, case.documents)
    expected, stopped = read_text(
        dict(module.named_parameters()), case.shape, case.tokens, case.documents
    )
    assert len(cache) == case.shape.layers
    for (b, t), value in expected.items():
        close(outputs[b, t], value)
        for (_, values), slow in zip(cache, stopped[b, t].values, strict=True):
            close(values[b, t], torch.stack(slow[-1]))


@given(case=cases(config=configs(thoughts=2)))
def test_sampling_leaves_no_gradient(case: Case):
    assert not sampled(case, case.module(), uniforms_of(case)).requires_grad


# The distribution


def critical_value(degrees: int, normal_quantile: float) -> float:
    """Chi-squared quantile by Wilson and Hilferty (1931)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + normal_quantile * math.sqrt(part)) ** 3


def chi_squared(counts: Tensor, p: Tensor) -> float:
    expected = p * counts.sum()
    assert (expected >= 5).all()
    return float(((counts - expected) ** 2 / expected).sum())


SHAPE = ModelConfig(
    6, dim=8, layers=2, heads=2, kv_heads=1, head_dim=4, hidden_dim=12, thought_ids=(4, 5)
)
ALLOWED = [0, 2, 3]  # 1 is BOS, 4 and 5 are thought marks


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@torch.no_grad()
def test_sampled_thoughts_have_the_distribution_of_the_model(temperature: float):
    samples = 10_000
    config = ThoughtConfig(thoughts=2, samples=samples, ahead=1)
    module = random_module(SHAPE, config, seed=5)
    tokens = torch.tensor([[2, 0, 3]])
    documents, anchors = torch.zeros_like(tokens), torch.tensor([[1]])
    uniforms = torch.rand((1, 1, samples, 2), generator=seeded(11), dtype=torch.float64)
    _, cache = prefill(module.model, tokens, documents)
    layout = Layout(documents, anchors, samples, 2)
    start = module.start * config.embedding_scale
    found = sample(module.model, start, layout, cache, uniforms, temperature, SHAPE.forbidden)
    pairs = found.view(-1, 2).tolist()

    parameters = dict(module.named_parameters())
    _, stopped = read_text(parameters, SHAPE, tokens, documents)
    reader = stopped[0, 1].fork()
    head, embeddings = parameters["model.output.weight"], module.model.tok_embeddings.weight
    first = likelihood((head @ reader.read(start))[ALLOWED] / temperature)
    p, counts = [], []
    for i, token in enumerate(ALLOWED):
        then = likelihood((head @ reader.fork().read(embeddings[token]))[ALLOWED] / temperature)
        for j, following in enumerate(ALLOWED):
            p.append(float(first[i] * then[j]))
            counts.append(pairs.count([token, following]))
    p, counts = torch.tensor(p, dtype=torch.float64), torch.tensor(counts)
    assert counts.sum() == samples
    same(p.sum(), torch.ones_like(p[0]))
    limit = critical_value(len(p) - 1, 3.09)  # 1 in 1,000
    assert chi_squared(counts, p) < limit
    uniform_p = torch.full_like(p, 1 / len(p))
    assert chi_squared(counts, uniform_p) > limit  # the test can tell distributions apart


def test_critical_values_are_those_of_the_tables():
    for degrees, expected in ((4, 18.467), (8, 26.124), (30, 59.703)):
        assert math.isclose(critical_value(degrees, 3.0902), expected, rel_tol=0.02)


@given(shape=shapes(), n=st.integers(0, 3))
def test_without_tokens_there_is_nothing_to_sample(shape: ModelConfig, n: int):
    config = ThoughtConfig(thoughts=n, ahead=1, beta=0.0)
    module = random_module(shape, config, 0)
    step = module(torch.zeros((2, 3), dtype=torch.int64), generator=seeded(0))
    assert step.thoughts.shape == (2, 3, 2, n)
    assert step.thoughts.dtype == torch.int64
