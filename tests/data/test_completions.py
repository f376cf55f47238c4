"""completions: whole examples in rows, each once an epoch, and only completions are learnt."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qs.data.completions import Completions, encoded
from qs.model.tokenizer import Tokenizer, train_tokenizer

WORDS = st.lists(st.sampled_from(["q", "ab", "a", "b", " ab", "\n", "é"]), max_size=6).map("".join)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """Of bytes, letters, ` q` and `ab`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(["q ab ab b a"] * 50, folder, 268, symbols=["ab"])


def parts(batch) -> list[tuple[list[int], list[bool]]]:
    """Ids and counted marks of each document, row after row; padding counts for nothing."""
    found = []
    for tokens, documents, counted in zip(*batch, strict=True):
        assert not counted[documents < 0].any()
        rises = documents[documents >= 0]
        assert torch.equal(rises, rises.sort().values)
        assert (documents[len(rises) :] == -1).all()
        for number in range(int(rises.max()) + 1):
            here = documents == number
            found.append((tokens[here].tolist(), counted[here].tolist()))
    return found


@given(pairs=PAIRS, seq=st.integers(4, 20), size=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_example_that_fits_is_there_whole_once_an_epoch_and_its_end_counts(
    tokenizer, pairs, seq, size, seed
):
    texts = [tokenizer.encode(p + c, bos=True, eos=True) for p, c in pairs]
    fit = sorted(ids for ids in texts if len(ids) <= seq)
    if not fit:
        with pytest.raises(ValueError, match=f"none of at most {seq} tokens among {len(pairs)}"):
            Completions(pairs, tokenizer, seq, seed)
        return
    data = Completions(pairs, tokenizer, seq, seed)
    assert data.too_long == len(texts) - len(fit)
    made = list(islice(data.batches(size), 3 * len(fit)))
    assert all(x.shape == (size, seq) for batch in made for x in batch)
    seen = [part for batch in made for part in parts(batch)]
    for epoch in range(2):
        some = seen[epoch * len(fit) : (epoch + 1) * len(fit)]
        assert sorted(ids for ids, _ in some) == fit
    starts = {tuple(whole): p for (p, _), whole in zip(pairs, texts, strict=True)}
    prompts = {}
    for (p, _), whole in zip(pairs, texts, strict=True):
        prompts.setdefault(tuple(whole), []).append(p)
    assert starts.keys() == prompts.keys()
    for ids, counted in seen:
        assert counted == sorted(counted)  # first what is given, then what is learnt
        assert counted[-1]
        assert not counted[0]
        given = tokenizer.decode(ids[: counted.index(True)])
        assert any(p.startswith(given) for p in prompts[tuple(ids)])


@given(pairs=PAIRS, seed=st.integers(0, 9))
def test_the_same_seed_gives_the_same_batches_each_time(tokenizer, pairs, seed):
    data, other = (Completions(pairs, tokenizer, 64, seed) for _ in range(2))  # all pairs fit
    rows = [list(islice(x.batches(2), 4)) for x in (data, data, other)]
    for again in rows[1:]:
        assert all(
            torch.equal(x, y)
            for a, b in zip(rows[0], again, strict=True)
            for x, y in zip(a, b, strict=True)
        )


def test_seeds_and_epochs_have_orders_of_their_own(tokenizer):
    pairs = [("", letter * n) for letter in "qab" for n in range(1, 6)]

    def order(seed: int) -> list[list[int]]:
        data = Completions(pairs, tokenizer, 8, seed)
        return [ids for b in islice(data.batches(1), 2 * len(pairs)) for ids, _ in parts(b)][:30]

    assert order(0)[:15] != order(0)[15:] != order(1)[15:]
    assert order(0)[:15] != order(1)[:15]


def test_rows_hold_as_many_examples_as_fit_in_order(tokenizer):
    data = Completions([("q", "a"), ("q", "b")], tokenizer, 9, 0)
    (batch,) = islice(data.batches(1), 1)
    length = len(encoded(tokenizer, "q", "a")[0])
    assert length == 4
    assert batch.documents.tolist() == [[0] * 4 + [1] * 4 + [-1]]
    assert batch.counted.tolist() == [([False] * 2 + [True] * 2) * 2 + [False]]


def test_a_token_across_the_border_is_learnt(tokenizer):
    assert encoded(tokenizer, "qa", " b")[1] == len(tokenizer.encode("qa", bos=True)) == 3
    ids, prompt = encoded(tokenizer, "qa", "b")
    assert [tokenizer.piece(i) for i in ids[1:-1]] == [" q", "ab"]
    assert prompt == 2
    assert encoded(tokenizer, "qa", "")[1] == 3


def test_nothing_left_is_refused_in_one_line(tokenizer):
    message = "expected examples to train on, found none of at most 3 tokens among 2: raise --seq"
    with pytest.raises(ValueError, match=message) as error:
        Completions([("qqq", "a"), ("qqq", "b")], tokenizer, 3, 0)
    assert "\n" not in str(error.value)
