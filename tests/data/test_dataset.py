"""dataset: windows are the written stream again, in an order that a position restores exactly."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qs.atomic import new_folder
from qs.data.dataset import FORMAT, SPLITS, TokenDataset, Windows, sequential
from qs.data.prepare import EncodedDocument, ShardWriter
from qs.files import write_json

TOKENIZER = SimpleNamespace(hash="5ha", vocab_size=99_999)
# Documents as ids, all different, so that a token tells its place; only the lengths matter.
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=12)


def make(where, lengths, shard_tokens=10**6, dtype="uint16"):
    """A dataset whose train split holds 0, 1, 2, ... cut into documents of given lengths."""
    with new_folder(Path(where) / "out") as folder:
        writers = {split: ShardWriter(folder, split, shard_tokens) for split in SPLITS}
        ends = np.cumsum(lengths)
        for length, end in zip(lengths, ends, strict=True):
            ids = np.arange(end - length, end, dtype=dtype)
            writers["train"].add(EncodedDocument("train", 1, ids))
        writers["train"].close()
        meta = {"format": FORMAT, "dtype": dtype, "tokenizer": "tok", "tokenizer_hash": "5ha"}
        meta |= {"vocab_size": 99_999, "splits": {s: w.summary() for s, w in writers.items()}}
        write_json(folder / "meta.json", meta)
    return Path(where) / "out"


def owners(lengths):
    """Naive: the number of each token's document."""
    return [number for number, length in enumerate(lengths) for _ in range(length)]


def row(lengths, start, seq):
    """Naive: tokens and document numbers of a window, padded."""
    owner = owners(lengths)
    tokens = list(range(start, min(start + seq, len(owner))))
    padding = seq - len(tokens)
    return tokens + [0] * padding, [owner[t] - owner[start] for t in tokens] + [-1] * padding


def rows_of(batch):
    return list(zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True))


@given(
    lengths=LENGTHS, shard_tokens=st.integers(1, 40), seq=st.integers(1, 15), rows=st.integers(1, 4)
)
@example(lengths=[2], shard_tokens=1, seq=3, rows=1)
@example(lengths=[3, 3], shard_tokens=3, seq=6, rows=1)
def test_sequential_windows_are_the_stream_with_only_the_last_padded(
    lengths, shard_tokens, seq, rows
):
    with tempfile.TemporaryDirectory() as where:
        dataset = TokenDataset(make(where, lengths, shard_tokens))
        assert (dataset.tokens, dataset.documents) == (sum(lengths), len(lengths))
        for shard in dataset.meta["splits"]["train"]["shards"]:
            assert shard["documents"] == 1 or shard["tokens"] <= shard_tokens
        few, all_there_are = (rows_of(sequential(dataset, seq, count)) for count in (rows, 999))
    assert all_there_are == [row(lengths, start, seq) for start in range(0, sum(lengths), seq)]
    assert few == all_there_are[:rows]


@given(
    lengths=LENGTHS,
    shard_tokens=st.integers(1, 40),
    seq=st.integers(1, 15),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)
@example(lengths=[5, 4], shard_tokens=5, seq=9, seed=0, epoch=0)
def test_an_epoch_is_each_window_of_the_stream_once(lengths, shard_tokens, seq, seed, epoch):
    seq = min(seq, sum(lengths))
    with tempfile.TemporaryDirectory() as where:
        windows = Windows(TokenDataset(make(where, lengths, shard_tokens)), seq, seed)
        batch, position = windows.batch((epoch, 0), windows.count)
    assert position == (epoch + 1, 0)
    found = sorted(rows_of(batch))
    first = found[0][0][0]
    assert 0 <= first < seq
    assert found == [row(lengths, first + i * seq, seq) for i in range(windows.count)]
    assert sum(lengths) - windows.count * seq < 2 * seq


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return TokenDataset(make(tmp_path_factory.mktemp("data"), [2 + i % 9 for i in range(90)], 100))


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(0, 9), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_restoring_from_any_position_equals_the_straight_run(dataset, seq, seed, sizes):
    windows, position, straight = Windows(dataset, seq, seed), (0, 0), []
    for rows in sizes:
        before, (batch, position) = position, windows.batch(position, rows)
        straight.append((before, rows, batch, position))
    one_by_one, at = [], (0, 0)
    for _ in range(sum(sizes)):
        row, at = windows.batch(at, 1)
        one_by_one.append(row.tokens)
    assert at == position
    assert torch.equal(torch.cat(one_by_one), torch.cat([s[2].tokens for s in straight]))
    for before, rows, batch, after in reversed(straight):
        again, then = Windows(dataset, seq, seed).batch(before, rows)
        assert then == after
        assert torch.equal(again.tokens, batch.tokens)
        assert torch.equal(again.documents, batch.documents)


def test_batches_are_int64_rows_of_the_asked_shape(dataset):
    batch, position = Windows(dataset, 16, 0).batch((0, 0), 3)
    assert position == (0, 3)
    for part in (batch.tokens, batch.documents):
        assert part.dtype == torch.int64
        assert part.shape == (3, 16)


def test_epochs_and_seeds_have_different_orders_and_moving_borders(dataset):
    orders = set()
    for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        windows = Windows(dataset, 8, seed)
        batch, _ = windows.batch((epoch, 0), windows.count)
        orders.add(tuple(batch.tokens.flatten().tolist()))
    assert len(orders) == 4
    firsts = {min(Windows(dataset, 8, seed).starts(0)) for seed in range(20)}
    assert len(firsts) > 3


def test_borders_move_to_every_place_also_where_windows_would_fill_the_split(tmp_path):
    windows = Windows(TokenDataset(make(tmp_path, [10] * 4)), 8, 0)  # 5 of 8 tokens
    assert {min(windows.starts(epoch)) for epoch in range(200)} == set(range(8))


def test_a_shard_holds_as_many_whole_documents_as_fit(tmp_path):
    shards = TokenDataset(make(tmp_path, [3, 3, 3, 4, 2], shard_tokens=6)).meta["splits"]["train"]
    assert [shard["tokens"] for shard in shards["shards"]] == [6, 3, 6]


def test_sequential_stops_at_its_rows(dataset):
    assert [len(sequential(dataset, 8, rows).tokens) for rows in (1, 4, 10)] == [1, 4, 10]


def test_ids_above_16_bits_survive(tmp_path):
    dataset = TokenDataset(make(tmp_path, [70_000], dtype="uint32"))
    assert dataset.read(69_990, 70_000)[0].tolist() == list(range(69_990, 70_000))


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.idx", "train-00001.bin"])
def test_a_truncated_or_missing_shard_is_named(tmp_path, name):
    out = make(tmp_path, [9] * 9, shard_tokens=50)
    size = (out / name).stat().st_size
    os.truncate(out / name, size - 2)
    with pytest.raises(ValueError, match=f"{name}: expected {size} bytes, found {size - 2}; prep"):
        TokenDataset(out)
    (out / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: expected {size} bytes, found no file"):
        TokenDataset(out)


def test_offsets_that_do_not_fit_the_tokens_are_refused(tmp_path):
    out = make(tmp_path, [3, 4])
    offsets = np.fromfile(out / "train-00000.idx", np.uint64)
    offsets[-1] += np.uint64(1)
    offsets.tofile(out / "train-00000.idx")
    with pytest.raises(ValueError, match=r"train-00000\.idx that does not fit train-00000\.bin"):
        TokenDataset(out)


def test_a_flipped_bit_is_found_when_it_is_read_and_not_before(tmp_path, monkeypatch):
    monkeypatch.setattr("qs.data.dataset.BLOCK", 16)
    out = make(tmp_path, [9] * 9, shard_tokens=50)
    straight = TokenDataset(out).read(0, 81)[0].tolist()
    for at in (0, 15, 16, 44):
        path = out / "train-00000.bin"
        whole = path.read_bytes()
        path.write_bytes(whole[: 2 * at] + bytes([whole[2 * at] ^ 1]) + whole[2 * at + 1 :])
        dataset, block = TokenDataset(out), at // 16 * 16
        for start, stop in ((0, block), (block + 16, 45), (45, 81)):
            if start < stop <= 45 or start == 45:
                assert dataset.read(start, stop)[0].tolist() == straight[start:stop]
        message = rf"train-00000\.bin: expected what was written, found other .* token {block} on"
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                dataset.read(at, at + 1)
        path.write_bytes(whole)
    path = out / "train-00001.idx"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + bytes([whole[8] ^ 1]) + whole[9:])
    with pytest.raises(ValueError, match=r"found train-00001\.idx that does not fit train-00001"):
        TokenDataset(out)


def edit(out, change):
    meta = json.loads((out / "meta.json").read_text())
    change(meta, *meta["splits"]["train"]["shards"])
    write_json(out / "meta.json", meta)


def without_digests(meta, *shards):
    for shard in shards:
        del shard["token_digests"], shard["offsets_digest"]


def test_a_dataset_without_digests_reads_as_ever_but_no_id_beyond_the_vocabulary(tmp_path):
    out = make(tmp_path, [5] * 4, shard_tokens=10)
    straight = TokenDataset(out).read(0, 20)
    edit(out, without_digests)
    assert [x.tolist() for x in TokenDataset(out).read(0, 20)] == [x.tolist() for x in straight]
    np.full(10, 65_000, np.uint16).tofile(out / "train-00001.bin")
    edit(out, lambda meta, *shards: meta.update(vocab_size=65_000))
    TokenDataset(out).read(0, 10)
    message = "train-00001.bin: .* found id 65,000 where meta.json has 65,000 tokens; prepare"
    with pytest.raises(ValueError, match=message):
        TokenDataset(out).read(9, 11)
    np.array([0, 12, 10], np.uint64).tofile(out / "train-00000.idx")
    with pytest.raises(ValueError, match=r"train-00000\.idx that does not fit"):
        TokenDataset(out)


def test_the_digest_tells_other_content_of_the_same_size(tmp_path):
    out = make(tmp_path / "a", [3, 4])
    same, other = make(tmp_path / "b", [3, 4]), make(tmp_path / "c", [4, 3])
    assert TokenDataset(out).digest == TokenDataset(same, "heldout").digest
    assert TokenDataset(out).digest != TokenDataset(other).digest
    edit(same, lambda meta, *shards: meta.update(tokenizer_hash="6hb"))  # ids of other texts
    assert TokenDataset(out).digest != TokenDataset(same).digest
    edit(same, without_digests)
    assert len(TokenDataset(same).digest) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../evil/train-00000"},
        {"name": "/train-00000"},
        {"name": 5},
        {"tokens": float("1e308") * 10},
        {"tokens": "20"},
        {"tokens": 20.0},
        {"tokens": True},
        {"documents": -4},
        {"documents": 0},
        {"documents": None},
        {"token_digests": ["a", "b"]},
        {"token_digests": 7},
        {"token_digests": {"a": "b"}},
        {"offsets_digest": [3]},
        {"other": 1},
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_is_refused_in_one_line(tmp_path, change):
    out = make(tmp_path, [5] * 4)
    shutil.copytree(out, tmp_path / "evil")
    edit(out, lambda meta, shard: shard.update(change))
    path = out / "meta.json"
    path.write_text(path.read_text().replace("null", "1e400" if "tokens" in change else "null"))
    with pytest.raises(ValueError, match="prepare it again|prepare the dataset again") as error:
        TokenDataset(out).read(0, 20)
    assert str(error.value).startswith(str(out))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [None, "9", 1e3, [9]])
def test_a_vocabulary_without_a_size_is_refused(tmp_path, size):
    out = make(tmp_path, [5] * 4)
    edit(out, lambda meta, shard: meta.update(vocab_size=size))
    with pytest.raises(ValueError, match="expected a sound meta.json, found no usable entry"):
        TokenDataset(out)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{}", "format None where this program reads 1"),
        ('{"format": 2}', "format 2 where this program reads 1"),
        ('{"format": 1}', "no usable entry: 'splits'"),
        (
            '{"format": 1, "splits": {"train": {"shards": []}}, "dtype": "O"}',
            "no usable entry: 'O'",
        ),
    ],
)
def test_a_damaged_meta_is_refused(tmp_path, meta, message):
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(ValueError, match=f"expected a sound meta.json, found {message}.*again"):
        TokenDataset(tmp_path)


def test_a_folder_without_a_readable_meta_is_no_dataset(tmp_path):
    for content, found in ((None, "No such file"), ("{", "Expecting property"), ("[]", "list")):
        if content is not None:
            (tmp_path / "meta.json").write_text(content)
        with pytest.raises(ValueError, match=f"meta.json: expected .*{found}.*qs.data prepare"):
            TokenDataset(tmp_path)


def test_an_unknown_split_is_refused(dataset):
    with pytest.raises(ValueError, match="expected a split train or heldout, found 'test'"):
        TokenDataset(dataset.folder, "test")


def test_shards_of_another_tokenizer_are_refused(dataset):
    dataset.check_tokenizer(TOKENIZER)
    other = SimpleNamespace(hash="another", vocab_size=270)
    with pytest.raises(
        ValueError, match=r"\(tok, 99999 tokens, sha256 5ha.*found one of 270 .*prep"
    ):
        dataset.check_tokenizer(other)


def test_windows_refuse_what_cannot_be(dataset):
    with pytest.raises(ValueError, match="at least one window of 99999 tokens in the split train"):
        Windows(dataset, 99999, 0)
    for seq, seed in ((0, 0), (8, -1)):
        with pytest.raises(ValueError, match="expected seq above 0 and seed 0 or more"):
            Windows(dataset, seq, seed)
    windows = Windows(dataset, 8, 0)
    for position, rows in (((0, windows.count), 1), ((-1, 0), 1), ((0, -1), 1), ((0, 0), 0)):
        with pytest.raises(ValueError, match="has the data or --seq changed"):
            windows.batch(position, rows)


def test_sequential_refuses_an_empty_split_and_no_rows(tmp_path, dataset):
    empty = TokenDataset(make(tmp_path, [3, 4]), "heldout")
    assert (empty.tokens, empty.documents) == (0, 0)
    with pytest.raises(ValueError, match="expected tokens in the split heldout"):
        sequential(empty, 8, 1)
    for seq, rows in ((0, 1), (8, 0)):
        with pytest.raises(ValueError, match=f"seq and rows above 0, found .*, {seq}, {rows}"):
            sequential(dataset, seq, rows)
