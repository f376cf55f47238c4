"""tokenizer_files: `tokenizer.json` keeps the promises of `tokenizer.model`, and BOS its rule."""

import json
import shutil
import sys

import pytest
import tokenizer_files as made
from hypothesis import example, given
from hypothesis import strategies as st

from qs.model.tokenizer import Tokenizer, copy_tokenizer, settled, train_tokenizer
from qs.model.tokenizer_files import HuggingFace, find_vocabulary

tokenizers = pytest.importorskip("tokenizers")
MARK = "\u2581"
KINDS = ("sentencepiece", "byte_level", "byte_fallback")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=MARK))
PIECES = st.sampled_from(
    [*made.SPECIAL, "<s>", "</s>", "<unk>", "<0x0A>", "\n", "  ", " the", "\x00", "é", "中", "😀"]
)
ANY_TEXT = st.one_of(TEXTS, st.lists(PIECES).map("".join))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(made.CORPUS, root / "sentencepiece", 300)
    for make in (made.byte_level, made.byte_fallback, made.normalising):
        make(root / make.__name__)
    return root


@pytest.fixture(scope="module")
def of_kind(folders):
    return {name: Tokenizer(folders / name) for name in (*KINDS, "normalising")}


@pytest.mark.parametrize("kind", KINDS)
@given(text=ANY_TEXT)
@example(text=" <|im_start|>user</s><s> \n")
@example(text="  two before, two after  ")
def test_decode_inverts_encode_and_no_text_gives_a_special_id(of_kind, kind, text):
    tokenizer = of_kind[kind]
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unknown_id, 0} & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    framed = tokenizer.encode(text, bos=True, eos=True)
    assert framed == [tokenizer.bos_id] * tokenizer.begins + ids + [tokenizer.eos_id]
    assert tokenizer.decode(framed) == text


@pytest.mark.parametrize("kind", [*KINDS, "normalising"])
@given(text=ANY_TEXT, share=st.floats(0, 1))
@example(text="a é中😀 b", share=0.5)
@example(text=" the cat", share=0.0)
def test_what_was_said_and_its_continuation_are_the_whole_text(of_kind, kind, text, share):
    tokenizer = of_kind[kind]
    ids = tokenizer.encode(text, bos=True)
    cut = round(share * len(ids))
    before, after = tokenizer.decode(ids[:cut]), tokenizer.continuation(ids[:cut], ids[cut:])
    whole = tokenizer.decode(ids)
    genuine = before if whole.startswith(before) else settled(before)  # else half a character
    assert genuine + after == whole


@pytest.mark.parametrize("kind", [*KINDS, "normalising"])
@given(data=st.data())
def test_text_that_is_streamed_only_grows_and_ends_whole(of_kind, kind, data):
    tokenizer = of_kind[kind]
    before = tokenizer.encode(data.draw(ANY_TEXT), bos=True)
    said = ANY_TEXT.map(tokenizer.encode)
    ids = data.draw(said | st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    shown = ""
    for i in range(len(ids) + 1):
        now = settled(tokenizer.continuation(before, ids[:i]))
        assert now.startswith(shown)
        shown = now
    assert shown == settled(tokenizer.continuation(before, ids))


@pytest.mark.parametrize("kind", [*KINDS, "normalising"])
@given(data=st.data())
def test_any_ids_are_text_after_any_others(of_kind, kind, data):
    tokenizer = of_kind[kind]
    some = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)
    before, ids = data.draw(some), data.draw(some)
    assert isinstance(tokenizer.continuation(before, ids), str)
    assert tokenizer.continuation(before, []) == ""
    assert all(isinstance(tokenizer.piece(i), str) for i in ids)


def test_a_normalised_text_goes_on_with_what_was_said(of_kind):
    tokenizer = of_kind["normalising"]
    before, whole = tokenizer.encode("Ｄ  two W"), tokenizer.encode("d two w n g home")
    assert whole[: len(before)] == before
    assert tokenizer.continuation(before, whole[len(before) :]) == " n g home"
    assert tokenizer.encode("\n") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_of_two_tokens_belongs_to_the_text_that_completes_it(of_kind, kind):
    tokenizer = of_kind[kind]
    ids = tokenizer.encode("a中")
    assert tokenizer.continuation(ids[:-1], ids[-1:]) == "中"
    half = tokenizer.continuation(ids[:-3], ids[-3:-1])
    assert half != settled(half) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_tokenizer_that_normalises_is_said_to_change_text(of_kind, kind):
    assert of_kind[kind].changes() is None
    assert "tokenizer.json changes text: 'two  spaces' comes back as 'two spaces'; what is" in (
        of_kind["normalising"].changes()
    )


@pytest.mark.parametrize(
    ("kind", "normal", "told"),
    [
        ("byte_level", {"type": "NFC"}, r"changes text: 'e\u0301' comes back as '\xe9'"),
        ("byte_fallback", {"type": "Strip", "strip_left": True, "strip_right": False}, "' led'"),
    ],
)
def test_a_composed_accent_and_a_lost_leading_space_are_said(tmp_path, folders, kind, normal, told):
    shutil.copytree(folders / kind, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"normalizer": normal}))
    assert told in (Tokenizer(tmp_path).changes() or "")


def test_pieces_are_readable(of_kind):
    byte_level, fallback = of_kind["byte_level"], of_kind["byte_fallback"]
    assert list(map(byte_level.piece, byte_level.encode(" the 42\né"))) == (
        [" the", " ", "4", "2", "\n", "<0xC3>", "<0xA9>"]
    )
    assert byte_level.piece(1) == "<|im_start|>"
    assert list(map(fallback.piece, fallback.encode("the\ncat 中"))) == (
        [" the", "\n", "c", "at", " ", "<0xE4>", "<0xB8>", "<0xAD>"]
    )
    assert fallback.piece(1) == "<s>"


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        ("byte_level", {}, (1, 2, False)),
        ("byte_level", {"tokenizer_config.json": {"add_bos_token": True}}, (None, None, False)),
        (
            "byte_level",
            {"tokenizer_config.json": {"add_bos_token": True, "bos_token": "<|im_start|>"}},
            (1, None, True),
        ),
        ("byte_level", {"config.json": {"bos_token_id": 0, "eos_token_id": [2, 0]}}, (1, 2, False)),
        (
            "byte_level",
            {
                "tokenizer_config.json": None,
                "config.json": {"bos_token_id": 0, "eos_token_id": [2, 0]},
            },
            (0, 2, False),
        ),
        (
            "byte_level",
            {
                "tokenizer_config.json": {"bos_token": None},
                "generation_config.json": {"eos_token_id": 0},
                "config.json": {"bos_token_id": 0, "eos_token_id": 2},
            },
            (None, 0, False),
        ),
        ("byte_level", {"tokenizer_config.json": None, "config.json": {"eos_token_id": 50}}, None),
        ("byte_fallback", {}, (1, 2, True)),
        ("byte_fallback", {"tokenizer_config.json": None}, (1, None, True)),
        ("byte_fallback", {"tokenizer_config.json": {"add_bos_token": False}}, (1, None, False)),
    ],
)
def test_bos_and_eos_follow_the_checkpoint(tmp_path, folders, kind, files, expected):
    shutil.copytree(folders / kind, tmp_path, dirs_exist_ok=True)
    for name, content in files.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    bos, eos, begins = expected or (None, None, False)  # an id of text is no special id
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.begins) == (bos, eos, begins)


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        ("byte_level", {"generation_config.json": {"eos_token_id": [0, 2]}}, (2, 0)),
        ("byte_level", {"config.json": {"eos_token_id": [1, 50]}}, (2, 1)),  # 50 is text
        (
            "byte_level",
            {
                "tokenizer_config.json": {"eos_token": {"content": "<|im_start|>"}},
                "generation_config.json": {"eos_token_id": 0},
                "config.json": {"eos_token_id": [2]},
            },
            (1, 0, 2),
        ),
        ("sentencepiece", {"tokenizer_config.json": {"eos_token": "</s>"}}, (2,)),
        ("sentencepiece", {"tokenizer_config.json": {"eos_token": "<s>"}}, (1, 2)),
        ("sentencepiece", {"generation_config.json": {"eos_token_id": [1, 40]}}, (2, 1)),
        ("sentencepiece", {"tokenizer_config.json": {"eos_token": None}}, (2,)),
    ],
)
def test_every_id_that_ends_a_text_is_known(tmp_path, folders, kind, files, expected):
    shutil.copytree(folders / kind, tmp_path, dirs_exist_ok=True)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.ends) == (expected[0], expected)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_an_end_of_text_that_its_config_names_and_no_file_has_is_refused(tmp_path, folders, kind):
    shutil.copytree(folders / kind, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|eot_id|>"}')
    with pytest.raises(ValueError, match="expected the special token '<|eot_id|>'.*, found none"):
        Tokenizer(tmp_path)


def test_of_both_files_the_one_is_used_whose_end_of_text_the_config_names(tmp_path):
    made.byte_level(tmp_path)
    own = Tokenizer(tmp_path)
    train_tokenizer(made.CORPUS, tmp_path, own.vocab_size)
    for name, expected in (("</s>", "tokenizer.model"), ("<|im_end|>", "tokenizer.json")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": name}))
        assert find_vocabulary(tmp_path, name).path.name == expected
        assert Tokenizer(tmp_path).eos_id == 2


def test_a_special_token_that_only_its_config_names_is_not_made_from_text(tmp_path, folders):
    values = json.loads((folders / "byte_level" / "tokenizer.json").read_text())
    for token in values["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert Tokenizer(tmp_path).encode("<|im_end|>") == [2]  # text, as far as the file says
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    tokenizer = Tokenizer(tmp_path)
    assert 2 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.decode(tokenizer.encode("<|im_end|>", eos=True)) == "<|im_end|>"


def test_a_model_whose_merges_spell_a_special_token_is_refused(tmp_path, folders):
    values = json.loads((folders / "byte_level" / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    name = next(piece for piece in vocab if len(piece) > 1 and piece.isascii() and piece.isalpha())
    values["added_tokens"].append(values["added_tokens"][0] | {"content": name, "id": vocab[name]})
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    message = f"plain text {name!r} becomes the special token {vocab[name]}; text must not"
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)


def test_truncation_and_padding_in_the_file_are_not_obeyed(tmp_path, folders):
    tokenizer = tokenizers.Tokenizer.from_file(str(folders / "byte_level" / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    same = Tokenizer(folders / "byte_level")
    for text in ("", "the cat sat on the mat"):
        assert Tokenizer(tmp_path).encode(text) == same.encode(text)


def test_marks_of_thoughts_are_no_tokens_of_text(tmp_path, folders, of_kind):
    path = folders / "byte_level" / "tokenizer.json"
    marked = tokenizers.Tokenizer.from_file(str(path))
    marked.add_tokens(["<|startthought|>", "<|endthought|>"])  # as in the released model
    marked.save(str(tmp_path / "tokenizer.json"))
    tokenizer, plain = Tokenizer(tmp_path), of_kind["byte_level"]
    assert tokenizer.vocab_size == plain.vocab_size
    for text in ("<|startthought|>", "a <|endthought|> b"):
        assert tokenizer.encode(text) == plain.encode(text)


@pytest.mark.parametrize("size", [300, 290])
def test_of_both_files_the_model_is_used_only_if_it_has_as_many_tokens(tmp_path, size):
    made.byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()  # it names EOS of one of the two
    tokens = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    own = Tokenizer(tmp_path)
    train_tokenizer(made.CORPUS, tmp_path, own.vocab_size if size == 300 else size)
    assert len(tokens) == 3
    both = Tokenizer(tmp_path)
    assert both.vocab_size == own.vocab_size
    assert (both.hash == own.hash) == (size != 300)


def test_copied_files_are_the_same_tokenizer(tmp_path, folders, of_kind):
    for kind in KINDS:
        shutil.copytree(folders / kind, tmp_path / "of" / kind)
        (tmp_path / "of" / kind / "chat_template.jinja").write_text("{{ messages }}")
        (tmp_path / kind).mkdir()
        copy_tokenizer(tmp_path / "of" / kind, tmp_path / kind)
        assert (tmp_path / kind / "chat_template.jinja").read_text() == "{{ messages }}"
        assert Tokenizer(tmp_path / kind).hash == of_kind[kind].hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON, found"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "expected a vocabulary in it, found none"),
        ('{"model": {"vocab": {"a": "b"}}}', "expected a vocabulary in it, found none"),
        (
            '{"model": {"type": "New", "vocab": {"a": 0}}}',
            "expected .* reads, found: .*newer",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"tokenizer.json: {message}") as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_package_one_line_says_how_to_get_it(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"tokenizer.json: needs .* run pip install -e '.\[hf\]'"):
        HuggingFace(folders / "byte_level" / "tokenizer.json")
    assert Tokenizer(folders / "sentencepiece").vocab_size == 300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model.v3", b"x", r"found only tokenizer.model.v3; copy it to tokenizer.model"),
        ("tekken.json", b"{}", "found only tekken.json; get tokenizer.json from"),
        ("vocab.json", b"{}", "found only vocab.json; get tokenizer.json from"),
        ("readme.md", b"", "expected tokenizer.model or tokenizer.json, found neither; give the"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "this is a tiktoken file, .*get tokenizer.json"),
    ],
)
def test_a_folder_without_a_tokenizer_that_we_read_says_what_to_do(
    tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
