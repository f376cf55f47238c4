"""rows: going on from a cache, forgetting and dropping rows equals reading each row again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import VOCAB, close, examples, normal, random_module, same, seeded, seeds, shapes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from uncached import uncached

from qs.config import ThoughtConfig
from qs.inference.cache import Rows, folded_attention, read_texts
from qs.inference.decoding import Decoding
from qs.inference.generate import Stream
from qs.model.config import ModelConfig
from qs.model.mistral import Mistral
from qs.quietstar.attention import Dense, masked_attention

SHAPE = ModelConfig(VOCAB, dim=8, layers=2, heads=4, kv_heads=2, head_dim=4, hidden_dim=12)


def model_of(shape: ModelConfig, seed: int = 0) -> Mistral:
    return random_module(shape, ThoughtConfig(), seed).model


def reread(model: Mistral, text: list[int]) -> Tensor:
    """(T, D) outputs of a row that is read at once, under a mask written down entry by entry."""
    T, window = len(text), model.config.window or len(text)
    mask = torch.tensor([[[0 <= q - k < window for k in range(T)] for q in range(T)]])
    return model(model.embed(torch.tensor([text])), torch.arange(T)[None], Dense(mask))[0]


@given(shape=shapes(), seed=seeds, data=st.data())
@torch.no_grad()
def test_rows_go_on_as_if_read_again(shape: ModelConfig, seed: int, data):
    tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)
    texts = data.draw(st.lists(tokens, min_size=1, max_size=3))
    model, fed = model_of(shape, seed), 0
    reading = read_texts(model, texts, limit=24)
    rows = reading.rows
    close(reading.last, torch.stack([reread(model, text)[-1] for text in texts]))

    def feed(rows: Rows, texts: list[list[int]], Q: int) -> list[list[int]]:
        new = torch.randint(VOCAB, (len(texts), Q), generator=seeded(seed + fed))
        found = rows.feed(model.embed(new))
        texts = [text + ids for text, ids in zip(texts, new.tolist(), strict=True)]
        close(found, torch.stack([reread(model, text)[-Q:] for text in texts]))
        return texts

    for _ in range(data.draw(st.integers(1, 6))):
        index = sorted(data.draw(st.sets(st.sampled_from(range(len(texts))), min_size=1)))
        action = data.draw(st.sampled_from(["feed", "feed", "forget", "keep", "copy"]))
        Q = data.draw(st.integers(1, 3))
        if action == "feed":
            texts, fed = feed(rows, texts, Q), fed + Q
        elif action == "forget" and fed >= Q:
            rows.forget(Q)
            texts, fed = [text[:-Q] for text in texts], fed - Q
        elif action == "keep":
            rows.keep(index)
            texts = [texts[i] for i in index]
        elif action == "copy":
            feed(rows.copy(index, Q), [texts[i] for i in index], Q)
        assert rows.lengths == rows.ends.tolist() == [len(text) for text in texts]


@given(shape=shapes(), seed=seeds, data=st.data())
@examples(0.5)
@torch.no_grad()
def test_a_reading_cut_short_goes_on_as_if_the_rest_was_never_read(
    shape: ModelConfig, seed: int, data
):
    tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)
    texts = data.draw(st.lists(tokens, min_size=1, max_size=3))
    model, lengths = model_of(shape, seed), [data.draw(st.integers(1, len(x))) for x in texts]
    begun = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    reading = read_texts(model, texts, limit=4)
    for _ in range(2):  # a copy: the reading is as it was
        cut = reading.until(lengths, 2)
        close(cut.last, torch.stack([reread(model, text)[-1] for text in begun]))
        new = torch.randint(VOCAB, (len(texts), 2), generator=seeded(seed))
        expected = [reread(model, x + y)[-2:] for x, y in zip(begun, new.tolist(), strict=True)]
        close(cut.rows.feed(model.embed(new)), torch.stack(expected))
    close(reading.last, torch.stack([reread(model, text)[-1] for text in texts]))


@given(seed=seeds, shared=st.integers(1, 3), Q=st.integers(1, 3), S=st.integers(1, 6))
def test_folded_heads_attend_as_repeated_ones(seed: int, shared: int, Q: int, S: int):
    q, k, v = (normal(2, n, h, 4, seed=seed + n) for n, h in ((Q, 2 * shared), (S, 2), (S, 2)))
    mask = torch.rand((2, Q, S), generator=seeded(seed)) < 0.5
    mask[..., 0] = True
    same(folded_attention(q, k, v, mask), masked_attention(q, k, v, mask))


@torch.no_grad()
def test_the_cache_doubles_up_to_its_limit():
    rows = read_texts(model_of(SHAPE), [[1, 2, 3]], limit=50).rows
    held = []
    for _ in range(47):
        rows.feed(torch.ones((1, 1, 8), dtype=torch.float64))
        held.append(rows.cache[0][0].shape[1])
    assert sorted(set(held)) == [6, 12, 24, 48, 50]
    with pytest.raises(AssertionError):
        rows.feed(torch.ones((1, 1, 8), dtype=torch.float64))


def test_compiled_layers_are_not_compiled_again_for_every_length():
    def refuse(*_):
        raise AssertionError("compiled")

    model = model_of(SHAPE)
    for layer in model.layers:
        layer.compile(backend=refuse)
    _, rows, outputs = read_texts(model, [[1], [2, 3]], limit=8)
    rows.feed(outputs[:, :1])
    assert rows.lengths == [2, 3]


@given(seed=seeds, window=st.sampled_from([None, 3]), n=st.integers(1, 3))
@examples(0.2)
def test_decoding_says_what_whole_rows_computed_again_say(seed: int, window: int | None, n: int):
    shape = dataclasses.replace(SHAPE, window=window, eos_id=None)
    config = ThoughtConfig(thoughts=n, ahead=1)
    quiet = random_module(shape, config, seed)
    prompts = torch.randint(VOCAB, (2, 4), generator=seeded(seed)).tolist()
    found = [row.ids for row in Stream(quiet, prompts, Decoding(max_tokens=4)).finish()]
    assert found == uncached(quiet, prompts, 4)
