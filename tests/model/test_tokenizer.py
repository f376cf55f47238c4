"""tokenizer: decoding what was encoded gives the text back, and no text makes a special token."""

import hashlib
import json
import shutil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qs.model.tokenizer import Tokenizer, train_tokenizer

CORPUS = ["the cat  sat on\nthe mat\n\n  and 12 + 30 = 42, the end. <s> it is"] * 20
MARK = "\u2581"  # sentencepiece's own sign for a space: the one character that cannot survive


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS, folder, 300)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(folder)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK))
PIECES = st.sampled_from(
    ["<s>", "</s>", "<unk>", "<|startthought|>", "<0x0A>", "\n", "  ", " the", "\r\n", "\x00", "é"]
)


@given(text=st.one_of(TEXTS, st.lists(PIECES).map("".join)))
@example(text="  two spaces before, two after  ")
@example(text="\n\n\tx\n ")
def test_decode_inverts_encode_and_no_text_gives_a_special_id(tokenizer, text):
    ids = tokenizer.encode(text)
    special = {0, tokenizer.bos_id, tokenizer.eos_id}
    assert not special & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    framed = tokenizer.encode(text, bos=True, eos=True)
    assert framed == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.decode(framed) == text


@given(text=TEXTS.filter(str.isascii))
def test_pieces_of_ascii_text_joined_are_the_text_after_the_dummy_space(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(map(tokenizer.piece, ids)) == (" " + text if text else "")


def test_special_ids_are_those_of_mistral_and_there_is_no_padding(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert tokenizer.vocab_size == 300


def test_newline_is_one_token_that_reads_as_newline(tokenizer):
    ids = tokenizer.encode("a\n\nb")
    assert [tokenizer.piece(i) for i in ids] == [" a", "\n", "\n", "b"]


def test_a_byte_of_a_longer_character_reads_as_its_number(tokenizer):
    assert [tokenizer.piece(i) for i in tokenizer.encode("é")][1:] == ["<0xC3>", "<0xA9>"]


def test_digits_are_tokens_of_their_own(tokenizer):
    assert [tokenizer.piece(i) for i in tokenizer.encode("x 4242")][-4:] == list("4242")


def test_hash_is_sha256_of_the_model_file(folder, tokenizer):
    assert tokenizer.hash == hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()


def test_training_twice_gives_the_same_bytes(tmp_path):
    hashes = {train_tokenizer(CORPUS, tmp_path / name, 290).hash for name in "ab"}
    assert len(hashes) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["tokenizer.model"]


def test_training_reads_no_further_than_its_limit(tmp_path):
    def texts():
        yield from CORPUS
        raise AssertionError("read too far")

    limited = train_tokenizer(texts(), tmp_path, 290, limit=len(CORPUS[0]) * 19 + 1)
    assert limited.vocab_size == 290


@pytest.mark.parametrize(
    ("texts", "vocab", "message"),
    [
        (
            ["tiny text"],
            4096,
            r"4096 tokens on 9 characters .*\(.*high.*<= \d+\.\); give",
        ),
        (["tiny text"], 100, r"100 tokens on 9 .*\(.*than required_chars\. 100 vs \d+\); give"),
        ([], 300, r"300 tokens on 0 characters of text \(no words\); give more text or another"),
        (["\n"], 300, r"300 tokens on 1 characters of text \(no words\); give more text"),
    ],
)
def test_a_corpus_that_does_not_fit_the_vocabulary_is_refused(tmp_path, texts, vocab, message):
    with pytest.raises(ValueError, match=message) as caught:
        train_tokenizer(texts, tmp_path, vocab)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_vocabulary_that_a_refusal_names_is_accepted(tmp_path):
    with pytest.raises(ValueError, match="too high") as caught:
        train_tokenizer(["tiny text"], tmp_path, 4096)
    most = int(str(caught.value).split("<= ")[1].split(".")[0])
    assert train_tokenizer(["tiny text"], tmp_path, most).vocab_size == most


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="expected tokenizer.model or tokenizer.json, found neither"
    ):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=f"found {len(content)} bytes that are none"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("token", [-1, 300, 32000, 32001])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, token):
    for use in (lambda: tokenizer.decode([5, token]), lambda: tokenizer.piece(token)):
        with pytest.raises(ValueError, match=f"ids from 0 to 299, found {token}; .*thought token"):
            use()


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(ValueError, match="half a surrogate pair at character 1; repair"):
        tokenizer.encode("a\ud800")


def test_an_end_of_text_that_the_model_lacks_is_refused(folder):
    without = Tokenizer(folder)
    without.eos_id = None
    assert without.decode(without.encode("the", bos=True)) == "the"
    with pytest.raises(ValueError, match="expected a tokenizer with EOS, found none in it or in"):
        without.encode("the", bos=True, eos=True)


@pytest.mark.parametrize(("content", "begins"), [({"add_bos_token": False}, False), ({}, True)])
def test_texts_begin_as_the_checkpoint_says(tmp_path, folder, content, begins):
    shutil.copy(folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    tokenizer, plain = Tokenizer(tmp_path), Tokenizer(folder)
    assert tokenizer.encode("the", bos=True) == [1] * begins + plain.encode("the")
    assert (tokenizer.hash == plain.hash) == begins  # other documents are other data


def test_a_symbol_is_never_merged_with_what_stands_beside_it(tmp_path):
    texts = ["a;:b ;: c;:d\n"] * 50
    for symbols, merged in (((), True), ((";", ":"), False)):
        tokenizer = train_tokenizer(texts, tmp_path, 268, symbols=symbols)
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode("b;:c")]
        assert any(";:" in piece for piece in pieces) == merged
        assert tokenizer.decode(tokenizer.encode("a;:b ;: c")) == "a;:b ;: c"
