"""masks: who sees whom, restated in slow loops, is what every realisation of the rule says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import anchors_of, documents_of, examples, random_module, visibilities
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qs.config import ThoughtConfig
from qs.model.config import ModelConfig
from qs.quietstar.attention import Dense
from qs.quietstar.masks import (
    Layout,
    Visibility,
    block_mask,
    dense_mask,
    every_position,
    mask_mod,
    one_document,
    over_own,
    over_text,
)


@dataclass(frozen=True)
class Slot:
    """One slot in words: the text before it, then what its own branch holds before it."""

    row: int
    anchor: int
    branch: tuple[int, int] | None  # (a, k), or None for text
    depth: int
    document: int

    def sees(self, other: Slot, window: int | None, visibility: Visibility | None) -> bool:
        if other.row != self.row or other.document != self.document:
            return False
        if other.branch is None:
            seen = other.anchor <= self.anchor
        else:
            seen = other.branch == self.branch and other.depth <= self.depth
        near = self.anchor + self.depth - (other.anchor + other.depth)
        shown = visibility is None or self == other or visibility(self, other)
        return bool(seen and shown and (window is None or near < window))


def slots_of(layout: Layout) -> list[list[Slot]]:
    """Every row's slots: the text, then the branches one after the other."""
    rows = []
    for b, documents in enumerate(layout.documents.tolist()):
        row = [Slot(b, t, None, 0, document) for t, document in enumerate(documents)]
        for a, anchor in enumerate(layout.anchors[b].tolist()):
            for k in range(layout.samples):
                depths = range(1, layout.length + 1)
                row += [Slot(b, anchor, (a, k), depth, documents[anchor]) for depth in depths]
        rows.append(row)
    return rows


def visible(layout: Layout, window: int | None) -> Tensor:
    """(B, S, S) by the slow rule."""
    own = layout.visibility
    rows = [[[q.sees(kv, window, own) for kv in row] for q in row] for row in slots_of(layout)]
    return torch.tensor(rows)


@st.composite
def layouts(draw, length: int = 7) -> Layout:
    rows, T = draw(st.integers(1, 2)), draw(st.integers(1, length))
    return Layout(
        draw(documents_of(rows, T)),
        draw(anchors_of(rows, T)),
        samples=draw(st.integers(1, 3)),
        length=draw(st.integers(1, 5)),
        visibility=draw(visibilities),
    )


windows = st.none() | st.integers(1, 8)


@given(layout=layouts())
def test_packed_slots_are_the_text_and_then_one_branch_after_the_other(layout: Layout):
    packed = layout.packed
    rows = slots_of(layout)
    assert packed.anchor.tolist() == [[slot.anchor for slot in row] for row in rows]
    assert packed.depth.tolist() == [[slot.depth for slot in row] for row in rows]
    assert packed.document.tolist() == [[slot.document for slot in row] for row in rows]
    assert packed.position.tolist() == [[slot.anchor + slot.depth for slot in row] for row in rows]
    for numbers, row in zip(packed.branch.tolist(), rows, strict=True):
        pairs = set(zip(numbers, (slot.branch for slot in row), strict=True))
        assert len(pairs) == len(set(numbers)) == len({slot.branch for slot in row})


@given(layout=layouts(), window=windows)
def test_dense_mask_equals_the_rule(layout: Layout, window: int | None):
    packed = layout.packed
    found = dense_mask(packed, packed, window, layout.visibility)
    assert torch.equal(found, visible(layout, window))


@given(layout=layouts(), window=windows)
def test_structured_masks_hold_every_visible_pair_and_no_other(layout: Layout, window: int | None):
    expected, rule = visible(layout, window), (window, layout.visibility)
    T = layout.documents.shape[1]
    B, A, K, length = layout.branches.depth.shape
    text = over_text(layout.branches, layout.text, *rule)  # (B, A, L, T)
    own = over_own(layout.branches, layout.branches, *rule)  # (B, A, K, L, L)
    found = torch.zeros_like(expected)
    found[:, :T, :T] = dense_mask(layout.text, layout.text, *rule)
    number = 0
    for a in range(A):
        for _ in range(K):
            mine = slice(T + number * length, T + (number + 1) * length)
            found[:, mine, :T] = text[:, a]
            found[:, mine, mine] = own[:, a, number % K]
            number += 1
    assert torch.equal(found, expected)


@given(layout=layouts(), window=windows)
def test_mask_mod_equals_the_rule(layout: Layout, window: int | None):
    expected = visible(layout, window)
    B, S, _ = expected.shape
    b, q, kv = torch.meshgrid(torch.arange(B), torch.arange(S), torch.arange(S), indexing="ij")
    found = mask_mod(layout.packed, window, layout.visibility)(b, torch.tensor(0), q, kv)
    assert torch.equal(found, expected)


@given(layout=layouts(), window=windows)
def test_every_slot_sees_itself_and_nothing_later_than_itself(layout: Layout, window: int | None):
    packed = layout.packed
    seen = dense_mask(packed, packed, window, layout.visibility)
    assert seen.diagonal(dim1=1, dim2=2).all()
    later = packed.position[:, None] > packed.position[:, :, None]
    assert not seen[later].any()


@given(layout=layouts())
def test_every_position_of_one_document_is_the_plain_causal_mask(layout: Layout):
    tokens = layout.documents
    T = tokens.shape[1]
    text = Layout(one_document(tokens), every_position(tokens), 1, 1).text
    assert torch.equal(text.anchor, torch.arange(T).expand_as(tokens))
    causal = torch.ones((T, T), dtype=torch.bool).tril().expand(len(tokens), -1, -1)
    assert torch.equal(dense_mask(text, text), causal)


# The block mask


def blocks_of(mask) -> tuple[Tensor, Tensor]:
    """(B, Q, KV) booleans: blocks computed under the mask, and blocks computed without."""
    results = []
    for counts, indices in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        blocks = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
        for b, q in torch.cartesian_prod(*map(torch.arange, counts[:, 0].shape)).tolist():
            used = indices[b, 0, q, : int(counts[b, 0, q])].tolist()
            assert len(set(used)) == len(used)
            blocks[b, q, used] = True
        results.append(blocks)
    return tuple(results)


def tiles_of(seen: Tensor, block: int, fill: bool) -> Tensor:
    """(B, S, S) -> (B, blocks, blocks, block * block), the last ones filled up."""
    pad = -seen.shape[1] % block
    seen = torch.nn.functional.pad(seen, (0, pad, 0, pad), value=fill)
    return seen.unflatten(1, (-1, block)).unflatten(3, (-1, block)).transpose(2, 3).flatten(3)


def block_mask_fits(layout: Layout, window: int | None, block: int) -> None:
    expected = visible(layout, window)
    mask = block_mask(layout.packed, window, block, layout.visibility)
    partial, full = blocks_of(mask)
    assert not (partial & full).any()
    assert not (tiles_of(expected, block, False).any(3) & ~partial & ~full).any()
    assert tiles_of(expected, block, True).all(3)[full].all()
    assert mask.seq_lengths == (expected.shape[1], expected.shape[2])


@given(layout=layouts(length=12), window=windows, block=st.sampled_from([1, 2, 4, 128]))
def test_block_mask_skips_only_what_is_hidden_and_unmasks_only_what_is_visible(
    layout: Layout, window: int | None, block: int
):
    block_mask_fits(layout, window, block)


@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize("window", [*range(1, 14), None])
def test_block_mask_of_a_long_document_follows_the_window(window: int | None, block: int):
    documents = torch.zeros((1, 12), dtype=torch.int64)
    layout = Layout(documents, torch.tensor([[3, 10]]), 1, 3)
    block_mask_fits(layout, window, block)
    _, full = blocks_of(block_mask(layout.packed, window, block))
    assert bool(full.any()) is (window is None or window >= 2 * block)


@examples(0.2)
@given(layout=layouts(length=12), window=windows)
def test_block_mask_knows_its_transpose(layout: Layout, window: int | None):
    mask = block_mask(layout.packed, window, 4)
    partial, full = blocks_of(mask)
    for blocks, counts, indices in (
        (partial, mask.q_num_blocks, mask.q_indices),
        (full, mask.full_q_num_blocks, mask.full_q_indices),
    ):
        for b, kv in torch.cartesian_prod(*map(torch.arange, counts[:, 0].shape)).tolist():
            used = indices[b, 0, kv, : int(counts[b, 0, kv])]
            assert sorted(used.tolist()) == blocks[b, :, kv].nonzero().flatten().tolist()


def computed_blocks(T: int, K: int, length: int, block: int) -> tuple[int, int]:
    documents = torch.zeros((1, T), dtype=torch.int64)
    mask = block_mask(Layout(documents, every_position(documents), K, length).packed, None, block)
    partial, full = blocks_of(mask)
    return int(partial.sum() + full.sum()), partial.numel()


def test_computed_blocks_grow_linearly_with_the_number_of_branches():
    some, more, most = (computed_blocks(64, K, 8, 16) for K in (2, 4, 8))
    assert most[0] - more[0] == 2 * (more[0] - some[0])
    assert most[1] > 3.5 * more[1]  # all blocks: quadratic
    assert most[0] < 0.02 * most[1]


def test_plain_text_is_masked_only_on_the_diagonal():
    documents = torch.zeros((1, 64), dtype=torch.int64)
    partial, full = blocks_of(block_mask(Layout(documents, documents[:, :0], 1, 1).text, None, 16))
    assert torch.equal(partial[0], torch.eye(4, dtype=torch.bool))
    assert torch.equal(full[0], torch.ones((4, 4), dtype=torch.bool).tril(-1))


# No S x S matrix


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        for x in made:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


def largest_in_step(attention: str, T: int, K: int, n: int, m: int) -> tuple[int, int]:
    """Elements of the largest tensor of a packed pass, backward included; and S."""
    shape = ModelConfig(7, dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden_dim=12)
    config = ThoughtConfig(thoughts=n, ahead=m, samples=K)
    module = random_module(shape, config, 0, attention)
    tokens = torch.zeros((1, T), dtype=torch.int64)
    thoughts = torch.full((1, T, K, n), 3)
    with Largest() as watch:
        _, branch = module.score(tokens, one_document(tokens), every_position(tokens), thoughts)
        branch.sum().backward()
    return watch.elements, T + T * K * (n + m + 1)


@pytest.mark.parametrize("n", [2, 6, 12])
def test_structured_attention_never_makes_an_s_by_s_matrix_and_dense_attention_does(n: int):
    T, K, m, heads = 16, 2, 4, 2
    largest, S = largest_in_step("structured", T, K, n, m)
    assert largest <= heads * S * (T + n + m + 1) < S * S
    largest, S = largest_in_step("dense", T, K, n, m)
    assert largest >= S * S


def test_dense_attention_takes_any_mask():
    q = torch.eye(3)[None, :, None]
    alone = torch.eye(3, dtype=torch.bool)[None]
    assert torch.equal(Dense(alone)(q, q, q, None), q)
