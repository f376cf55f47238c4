"""attention: every realisation of the visibility rule attends alike, packed, cached or compiled."""

from __future__ import annotations

import math
import shutil
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from cases import Case, anchors_of, cases, documents_of, examples, normal, same, seeds, visibilities
from cases import thought_configs as configs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qs.model import kernels as model_kernels
from qs.quietstar import attention, kernels
from qs.quietstar.attention import (
    CachedBranches,
    CachedText,
    Dense,
    Flex,
    Structured,
    joined_attention,
    masked_attention,
    new_cache,
    packed_attention,
    short_of_shared,
)
from qs.quietstar.masks import Layout, block_mask, dense_mask, over_own, over_text
from qs.quietstar.sampler import branch_cache, prefill


@dataclass(frozen=True)
class Heads:
    """Seeded queries, keys and values for the slots of a drawn layout."""

    layout: Layout
    window: int | None
    heads: int
    groups: int
    seed: int
    dim: int = 4

    def qkv(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        B, S = self.layout.packed.anchor.shape
        counts = (self.heads, self.groups, self.groups)
        return [
            normal(B, S, count, self.dim, seed=self.seed + i, dtype=dtype)
            for i, count in enumerate(counts)
        ]

    def dense(self) -> Dense:
        packed = self.layout.packed
        return Dense(dense_mask(packed, packed, self.window))


@st.composite
def all_heads(draw) -> Heads:
    rows, T = draw(st.integers(1, 2)), draw(st.integers(1, 6))
    heads = draw(st.sampled_from([1, 2, 4]))
    layout = Layout(
        draw(documents_of(rows, T)),
        draw(anchors_of(rows, T)),
        samples=draw(st.integers(1, 2)),
        length=draw(st.integers(1, 4)),
    )
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if heads % g == 0]))
    return Heads(layout, draw(st.none() | st.integers(1, 6)), heads, groups, draw(seeds))


def slow_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the visible keys, one query of one head at a time."""
    B, S, H, d = q.shape
    out = torch.zeros_like(q)
    for b, s, h in torch.cartesian_prod(*map(torch.arange, (B, S, H))).tolist():
        g = h // (H // k.shape[2])
        keys = [j for j in range(k.shape[1]) if mask[b, s, j]]
        scores = [float(q[b, s, h] @ k[b, j, g]) / math.sqrt(d) for j in keys]
        weights = [math.exp(score) for score in scores]
        for j, weight in zip(keys, weights, strict=True):
            out[b, s, h] += weight / sum(weights) * v[b, j, g]
    return out


@examples(0.5)
@given(drawn=all_heads())
def test_dense_attention_equals_slow_softmax(drawn: Heads):
    q, k, v = drawn.qkv()
    mask = drawn.dense().mask
    expected = slow_attention(q, k, v, mask)
    same(masked_attention(q, k, v, mask), expected)
    same(Dense(mask)(q, k, v, None), expected)


@examples(0.5)
@given(drawn=all_heads())
def test_one_softmax_joins_text_and_own_slots(drawn: Heads):
    q, k, v = drawn.qkv()
    layout, T = drawn.layout, drawn.layout.documents.shape[1]
    shape = layout.branches.depth.shape[1:]
    out = joined_attention(
        q[:, T:].unflatten(1, shape),
        [x[:, :T].transpose(1, 2) for x in (k, v)],
        [x[:, T:].unflatten(1, shape).permute(0, 4, 1, 2, 3, 5) for x in (k, v)],
        over_text(layout.branches, layout.text, drawn.window),
        over_own(layout.branches, layout.branches, drawn.window),
    )
    same(out.flatten(1, 3), slow_attention(q, k, v, drawn.dense().mask)[:, T:])


@given(drawn=all_heads(), fast=st.booleans(), rows_at_once=st.sampled_from([1, 20, 1024]))
def test_structured_attention_equals_dense_attention_in_value_and_gradient(
    drawn: Heads, fast: bool, rows_at_once: int
):
    shared = drawn.heads // drawn.groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "ROWS_AT_ONCE", rows_at_once)
        like = torch.zeros((), dtype=torch.float64)
        structured = Structured.of(drawn.layout, drawn.window, shared, like)
    assert (structured.blocks is None) == (drawn.layout.anchors.numel() == 0)
    if not fast:
        structured = replace(structured, blocks=None)
    results = []
    for attend in (structured, drawn.dense()):
        inputs = [x.requires_grad_() for x in drawn.qkv()]
        out = attend(*inputs, None)
        weights = normal(*out.shape, seed=drawn.seed + 3)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        same(found, expected)


@examples(0.2)
@given(drawn=all_heads())
def test_flex_attention_equals_dense_attention(drawn: Heads):
    q, k, v = drawn.qkv()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        out = Flex(block_mask(drawn.layout.packed, drawn.window))(q, k, v, None)
    same(out, drawn.dense()(q, k, v, None))


@pytest.mark.parametrize(
    ("size", "dtype", "stages"),
    [(64, "float32", 2), (128, "bfloat16", 2), (80, "float32", 1), (128, "float32", 1)],
)
def test_a_card_short_of_shared_memory_runs_fewer_stages(monkeypatch, size, dtype, stages):
    options = []
    monkeypatch.setattr(
        attention,
        "flex_attention",
        lambda q, k, v, **given: options.append(given["kernel_options"]) or q,
    )
    layout = Layout(torch.zeros(1, 120).long(), torch.zeros(1, 0).long(), 1, 0)
    drawn = Heads(layout, None, 2, 1, seed=0, dim=size)
    for short in (False, True):
        monkeypatch.setattr(attention, "short_of_shared", lambda device, short=short: short)
        attend = packed_attention("flex", layout, None, 2, None)
        attend(*drawn.qkv(getattr(torch, dtype)), None)
    triton = {"BACKEND": "TRITON"}  # never AUTO's, which has no tiles for fewer than 128 slots
    assert options == [triton, triton | {"fwd_num_stages": stages}]


@pytest.mark.parametrize(
    ("shared", "short"),
    [(101_376, True), (166_912, False), (232_448, False)],  # RTX 3090 and 4090; A100; H100
)
def test_cards_of_99_kib_a_block_are_short_of_shared_memory(monkeypatch, shared: int, short: bool):
    card = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {torch.device("cuda", 1): card}.get)
    assert short_of_shared(torch.device("cuda", 1)) == short


def test_a_cpu_and_a_card_that_does_not_tell_its_shared_memory_are_not_short_of_it(monkeypatch):
    assert not short_of_shared(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert not short_of_shared(torch.device("cuda"))


compiler = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(compiler is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inside torch
@pytest.mark.parametrize("window", [None, 5])
def test_compiled_flex_attention_equals_dense_attention_and_compiles_once(window: int | None):
    torch.compiler.reset()

    @torch.compile(fullgraph=True)
    def attend(q, k, v, visibility):  # made outside, as for a layer
        return visibility(q, k, v, None)

    documents = torch.arange(40).ge(25).long().expand(2, -1)
    for seed in range(3):
        numbers = torch.Generator().manual_seed(seed)
        anchors = torch.randint(40, (2, 8), generator=numbers)
        drawn = Heads(Layout(documents, anchors, 2, 6), window, 4, 2, seed, dim=16)
        assert drawn.layout.packed.anchor.shape[1] == 136  # two blocks, the second part empty
        q, k, v = drawn.qkv(torch.float32)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=seed > 0):
            out = attend(q, k, v, Flex(block_mask(drawn.layout.packed, window)))
        torch.testing.assert_close(out, drawn.dense()(q, k, v, None))


def test_a_cache_is_one_pair_of_zeros_for_each_layer():
    cache = new_cache(3, (2, 5), 4, 8, torch.ones((), dtype=torch.float64))
    assert len(cache) == 3
    for pair in cache:
        for x in pair:
            assert x.shape == (2, 5, 4, 8)
            assert x.dtype == torch.float64
            assert not x.any()
    assert len({x.data_ptr() for pair in cache for x in pair}) == 6


# Cached decoding


@given(case=cases(config=configs(), rows=2, visibility=visibilities), fast=st.booleans())
@torch.no_grad()
def test_decoding_with_a_cache_gives_the_outputs_of_the_packed_pass(case: Case, fast: bool):
    module = case.module("dense")
    model, shape = module.model, case.shape
    base, branch = module.score(case.tokens, case.documents, case.anchors, case.thoughts)
    outputs, cache = prefill(model, case.tokens, case.documents, case.visibility)
    same(outputs, base)

    B, A, K, n = case.thoughts.shape
    layout = Layout(case.documents, case.anchors, K, n + 1, case.visibility)
    rule = (layout, shape.window, shape.shared, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_kernels, "serves", lambda x: fast)
        positions, attend = layout.branches.position, CachedBranches.of(*rule)
        steps = list(CachedBranches.steps(*rule))
    both = branch_cache(model, cache, (A, K, n + 1))
    x = module.embed_branches(case.tokens, case.anchors, case.thoughts)[..., : n + 1, :]
    for depth in range(n + 1):
        step, at = steps[depth], positions[..., depth].flatten(1)
        out = model(x[..., depth, :].flatten(1, 2), at, step, both)
        same(out.view(B, A, K, -1), branch[..., depth, :])
    out = model(x.flatten(1, 3), positions.flatten(1), attend, both)
    same(out.view(B, A, K, n + 1, -1), branch[..., : n + 1, :])


@given(drawn=all_heads())
def test_reading_text_is_a_plain_pass_that_keeps_its_keys_and_values(drawn: Heads):
    T = drawn.layout.documents.shape[1]
    q, k, v = (x[:, :T] for x in drawn.qkv())
    text = drawn.layout.text
    mask = dense_mask(text, text, drawn.window)
    cache = new_cache(1, tuple(text.anchor.shape), drawn.groups, drawn.dim, k)[0]
    same(CachedText(mask)(q, k, v, cache), Dense(mask)(q, k, v, None))
    assert torch.equal(cache[0], k)
    assert torch.equal(cache[1], v)
