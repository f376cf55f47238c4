"""kernels: what the CPU computes in pieces equals what losses and the sampler write out."""

from __future__ import annotations

import pytest
import torch
from cases import Case, cases, normal, seeds
from cases import thought_configs as configs
from hypothesis import given
from hypothesis import strategies as st

from qs.model import kernels as model_kernels
from qs.quietstar.kernels import blocks_of
from qs.quietstar.losses import linear_nll
from qs.quietstar.masks import Layout
from qs.quietstar.sampler import prefill, sample


@given(
    rows=st.integers(0, 9),
    seed=seeds,
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    forbidden=st.sets(st.integers(0, 2)),
    chunk=st.sampled_from([None, 1, 4]),
    idle=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_nll_in_pieces_equals_nll_of_all_logits_whatever_rows_have_no_gradient(
    rows, seed, temperature, forbidden, chunk, idle
):
    generator = torch.Generator().manual_seed(seed)
    outputs, head = normal(rows, 5, seed=seed), normal(8, 5, seed=seed + 1)
    targets = torch.randint(3, 8, (rows,), generator=generator)
    weights = normal(rows, seed=seed + 2)
    weights[torch.rand(rows, generator=generator) < idle] = 0.0

    results = []
    for serves in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_kernels, "serves", lambda x, serves=serves: serves)
            leaves = [x.clone().requires_grad_() for x in (outputs, head)]
            nll = linear_nll(*leaves, targets, temperature, forbidden, chunk)
            results.append((nll, *torch.autograd.grad((nll * weights).sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@given(case=cases(config=configs(), rows=2), seed=seeds)
@torch.no_grad()
def test_thoughts_are_those_of_the_step_that_is_compiled(case: Case, seed: int):
    module, (B, A, K, _), n = case.module("structured"), case.thoughts.shape, 3
    uniforms = torch.rand((B, A, K, n), generator=torch.Generator().manual_seed(seed)).double()
    layout = Layout(case.documents, case.anchors, K, n)
    drawn = []
    for serves in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_kernels, "serves", lambda x, serves=serves: serves)
            _, cache = prefill(module.model, case.tokens, case.documents)
            start, forbidden = module.vectors[0], case.shape.forbidden
            thought = (start, layout, cache, uniforms, 1.0, forbidden, module.end_row)
            drawn.append(sample(module.model, *thought))
    assert torch.equal(*drawn)


def test_a_block_holds_only_the_text_that_its_anchors_see():
    mask = torch.zeros(1, 4, 2, 9, dtype=torch.bool)
    mask[0, 0, :, 2:4], mask[0, 1, 1, 5] = True, True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qs.quietstar.kernels.ROWS_AT_ONCE", 16)
        one, two = blocks_of(mask, 2, 2, torch.float64)
    assert (one.anchors, one.text) == (slice(0, 2), slice(2, 6))
    assert one.blind.sum() == 4  # slot 0 of the second anchor: K = 2 thoughts, 2 heads
    assert (two.anchors, two.text) == (slice(2, 4), slice(0, 1))
    assert two.blind.all()


@given(case=cases(config=configs(), rows=2))
@torch.no_grad()
def test_compiled_layers_are_given_the_forms_written_out(case: Case):
    module = case.module("structured")
    eager = module.score(case.tokens, case.documents, case.anchors, case.thoughts)
    module.model.compiled = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qs.quietstar.attention.JoinedAttention.apply", None)
        written_out = module.score(case.tokens, case.documents, case.anchors, case.thoughts)
    for found, expected in zip(eager, written_out, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
