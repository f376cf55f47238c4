"""documents: what files hold comes out in order; what is malformed is named and left out."""

import gzip
import json
import sys
import tracemalloc

import pytest

from qs.data.documents import DocumentReader


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps({"url": "x", "text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def test_every_kind_of_source_is_read_in_sorted_order(tmp_path):
    write(tmp_path / "b.jsonl", ["1", "2\n"])
    write(tmp_path / "a" / "z.json.gz", ["3"])
    write(tmp_path / "c.json", ["4"])
    (tmp_path / "d.txt").write_bytes(b"five\r\nfive\n")
    (tmp_path / "e.md").write_text("not data")
    write(tmp_path / ".cache" / "hidden.jsonl", ["no"])
    (tmp_path / "f.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "6"}\n\n  \n')
    expected = ["3", "1", "2\n", "4", "five\r\nfive\n", "6"]
    assert list(DocumentReader([tmp_path])) == expected
    assert list(DocumentReader([tmp_path / "c.json", tmp_path])) == [
        "4",
        *expected[:3],
        *expected[4:],
    ]


def test_fields_are_alternatives_and_joined_parts(tmp_path):
    lines = [{"text": "1"}, {"question": "2", "answer": "3"}, {"question": "4", "text": "5"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = list(DocumentReader([tmp_path], ["question+answer", "text"]))
    assert found == ["1", "2\n3", "5"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"found none; run pip install -e '\.\[parquet\]'$"):
        list(DocumentReader([tmp_path]))


def test_parquet_is_read_with_pyarrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"document {i}" for i in range(700)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": texts, "n": range(700)}), path, row_group_size=300)
    assert list(DocumentReader([path])) == texts
    with pytest.raises(ValueError, match="expected a column body, found n, text; name one with"):
        list(DocumentReader([path], ["body"]))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file"):
        list(DocumentReader([path]))


BROKEN = [
    (b"{broken\n", "Expecting property name"),
    (b"[1]\n", "expected a JSON object, found list"),
    (b'{"body": "x"}\n', "expected a string in field text, found none"),
    (b'{"text": 5}\n', "expected a string in field text, found none"),
    (b'{"text": "\xff"}\n', "invalid UTF-8 at byte 10"),
    (b'{"text": "\\ud800"}\n', "surrogates not allowed"),
    (b"[" * 100_000 + b"\n", "nested too deeply"),
    (b'{"text": "x", "id": ' + b"1" * 400 + b"}\n", "an integer of 400 digits"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_malformed_line_is_reported_by_file_and_line_and_left_out(tmp_path, capsys, line, reason):
    good = [json.dumps({"text": f"a{i}"}).encode() + b"\n" for i in range(198)]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join([*good[:6], b"\n", line, *good[6:], line]))
    assert list(DocumentReader([source])) == [f"a{i}" for i in range(198)]
    told = capsys.readouterr().err
    for number in (8, 201):
        assert f"malformed: {source}:{number}: " in told
    assert told.lower().count(reason.lower()) == 2


def test_invalid_bytes_in_a_text_file_are_reported_by_their_line(tmp_path, capsys):
    for i in range(100):
        (tmp_path / f"{i:03d}.txt").write_bytes(b"a\nb\n\xff\n" if i == 7 else b"fine")
    assert len(list(DocumentReader([tmp_path]))) == 99
    assert f"{tmp_path / '007.txt'}:3: invalid UTF-8 at byte 4" in capsys.readouterr().err


def test_a_hopeless_job_stops_before_its_end_and_shows_only_the_first_lines(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text("x\n" * 12_000)
    (tmp_path / "never.jsonl.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="expected at most 1 %.*found 10,000 of 10,000"):
        list(DocumentReader([source, tmp_path / "never.jsonl.gz"]))
    assert capsys.readouterr().err.count("malformed:") == 5


def test_one_percent_is_allowed_and_more_is_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n' * 198 + "x\n" * 2)
    assert len(list(DocumentReader([source]))) == 198
    source.write_text('{"text": "a"}\n' * 197 + "x\n" * 2)
    with pytest.raises(ValueError, match="expected at most 1 % .* found 2 of 199; repair"):
        list(DocumentReader([source]))


def test_a_damaged_gzip_is_refused(tmp_path):
    whole = write(tmp_path / "a.jsonl.gz", ["a" * 9, "b"] * 999).read_bytes()
    for content in (whole[:-9], b"no gzip"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: expected a whole packed file.*again$"):
            list(DocumentReader([tmp_path]))


def test_zstandard_is_read_frame_by_frame_and_one_cut_short_is_refused(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    texts = [f"document {i}" * (i % 50) for i in range(2_000)]
    raw = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    frames = b"".join(zstandard.compress(part) for part in (raw[:9_999], raw[9_999:], b""))
    path = tmp_path / "a.JSONL.ZST"
    path.write_bytes(frames)
    assert list(DocumentReader([tmp_path])) == texts
    for content, damage in ((frames[:-20], "ends within a frame"), (b"none" * 9, "descriptor")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.JSONL\.ZST: .* damaged one .*{damage}.*again$"):
            list(DocumentReader([path]))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"a\.JSONL\.ZST: .* found none; run pip .*\[zstd\]'$"):
        list(DocumentReader([path]))


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_what_is_too_long_is_left_out_however_much_it_is_and_is_not_malformed(
    tmp_path, capsys, kind
):
    texts = [f"{i:02} " + "x" * (60 + i) for i in range(100)]  # 63 to 162 bytes
    records = [{"text": text} for text in texts]
    limit = 113 + len(json.dumps({"text": ""})) * (kind == "jsonl")
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    elif kind == "txt":
        for i, text in enumerate(texts):
            (tmp_path / f"{i:02}.txt").write_text(text)
    else:
        parquet_of(tmp_path / "a.parquet", [text.encode() for text in texts], "string")
    reader = DocumentReader([tmp_path], max_document=limit)
    assert list(reader) == texts[:51]
    assert (reader.documents, reader.malformed, reader.too_long) == (51, 0, 49)
    told = capsys.readouterr().err.splitlines()
    where = tmp_path / ("51.txt:1" if kind == "txt" else f"a.{kind}:52")
    assert told[0] == f"left out: {where}: longer than --max-document {limit} bytes"
    assert len(told) == 5
    alone = DocumentReader([tmp_path], max_document=9)
    with pytest.raises(ValueError, match="of 9 bytes at most, found 100 longer .*; raise"):
        list(alone)


def test_the_limit_counts_a_line_with_all_its_fields(tmp_path):
    line = json.dumps({"text": "a", "url": "x" * 99})
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"text": "b"}}\n')
    assert list(DocumentReader([tmp_path], max_document=len(line))) == ["a", "b"]
    assert list(DocumentReader([tmp_path], max_document=len(line) - 1)) == ["b"]


def test_a_document_of_the_longest_size_is_read_and_a_bomb_is_never_held_whole(tmp_path):
    line = json.dumps({"text": "a" * 80}).encode()
    for name, end in (("a", b"\n"), ("b", b"\r\n"), ("c", b"")):
        (tmp_path / f"{name}.jsonl").write_bytes(line + end)
    assert len(list(DocumentReader([tmp_path], max_document=len(line) + 1))) == 3
    bomb = gzip.compress(b'{"text": "' + b"a" * 60_000_000 + b'"}\n' + line, 1)
    (tmp_path / "bomb.jsonl.gz").write_bytes(bomb)
    reader = DocumentReader([tmp_path / "bomb.jsonl.gz"], max_document=10**6)
    tracemalloc.start()
    try:
        assert list(reader) == ["a" * 80]
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()
    (tmp_path / "long.txt").write_text("word " * 30)
    with pytest.raises(ValueError, match="of 149 bytes at most, found 1 longer"):
        list(DocumentReader([tmp_path / "long.txt"], max_document=149))
    for size in (0, 2**63):
        with pytest.raises(ValueError, match=f"expected 1 to 2\\^40 bytes, found {size}"):
            DocumentReader([tmp_path], max_document=size)
    assert len(list(DocumentReader([tmp_path / "a.jsonl"], max_document=2**40))) == 1


@pytest.mark.parametrize("start", ["[", "\ufeff\n [{"])
def test_a_json_array_is_told_to_be_one(tmp_path, start):
    (tmp_path / "a.json").write_text(f'{start}\n{{"text": "a"}}\n]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json: expected JSON lines, found a JSON array"):
        list(DocumentReader([tmp_path]))


def test_only_the_end_of_a_line_parts_documents(tmp_path):
    text = "one\u2028two\x0cthree\x85four\x1cfive"
    line = json.dumps({"text": text}, ensure_ascii=False).replace("\\f", "\\u000c")
    (tmp_path / "a.jsonl").write_text(line + "\n", encoding="utf-8")
    assert list(DocumentReader([tmp_path])) == [text]


def parquet_of(path, raw, kind, **options):
    """A table whose text is bytes, whether they are UTF-8 or not."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = pyarrow.array(raw, pyarrow.binary())
    array = pyarrow.StringArray.from_buffers(len(raw), *values.buffers()[1:])
    array = array.dictionary_encode() if kind == "dictionary" else array.cast(kind)
    parquet.write_table(pyarrow.table({"text": array, "n": range(len(raw))}), path, **options)


def test_a_column_of_lists_of_texts_holds_no_text(tmp_path, capsys):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [["a", "b"]]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="at most 1 % malformed records, found 1 of 1"):
        list(DocumentReader([tmp_path]))
    assert "a.parquet:1: expected a string in field text, found none" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_value_that_is_no_text_is_told_by_its_row_and_left_out(tmp_path, capsys, kind):
    raw = [b"good %d" % i for i in range(300)]
    raw[150] = b"good" if kind == "large_string" else b"bad \xff byte"
    parquet_of(tmp_path / "a.parquet", raw, kind)
    found = list(DocumentReader([tmp_path]))
    assert found == [x.decode() for x in raw if b"bad" not in x]
    line = f"malformed: {tmp_path / 'a.parquet'}:151: invalid UTF-8 at byte 4"
    assert (line in capsys.readouterr().err) == (kind != "large_string")


def test_a_damaged_page_of_a_table_is_told_by_its_file_and_row(tmp_path):
    path = tmp_path / "a.parquet"
    raw = [b"document %d" % (i * i) for i in range(4_000)]
    options = {"row_group_size": 1_000, "use_dictionary": False, "compression": "gzip"}
    parquet_of(path, raw, "string", **options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 99] = bytes(99)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet: .*found after row [12],\d\d\d: .*again$"):
        list(DocumentReader([path]))


@pytest.mark.parametrize(("name", "found"), [("a.md", "another kind"), (".", "")])
def test_sources_without_data_are_refused(tmp_path, name, found):
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(ValueError, match=f"expected .jsonl, .*found .*{found}; give files"):
        list(DocumentReader([tmp_path / name]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_documents_without_any_text_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text(" \n" if name == "a.txt" else '{"text": ""}\n{"text": "\\n"}\n')
    with pytest.raises(ValueError, match=f"found no text in {path}; give others"):
        list(DocumentReader([path]))


def test_empty_sources_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="expected documents, found no text in .*"):
        list(DocumentReader([tmp_path]))
