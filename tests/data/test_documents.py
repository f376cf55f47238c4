"""documents: what files hold comes out in order; what is malformed is named and left out."""

import gzip
import json
import sys

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
    (b"[" * 100_000 + b"\n", "recursion"),
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
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: expected a whole gzip file.*again$"):
            list(DocumentReader([tmp_path]))


@pytest.mark.parametrize(
    ("name", "found"), [("no", "nothing"), ("a.md", "another kind"), (".", "")]
)
def test_sources_without_data_are_refused(tmp_path, name, found):
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(ValueError, match=f"expected .jsonl, .*found .*{found}; give files"):
        list(DocumentReader([tmp_path / name]))


def test_empty_sources_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="expected documents, found only empty sources"):
        list(DocumentReader([tmp_path]))
