"""files: a file of lines holds whole lines only, whatever cut it short."""

import json

import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st

from qs.files import Lines

RECORDS = st.lists(st.fixed_dictionaries({"text": st.text(max_size=4)}), max_size=5)


@examples(0.2)  # each one waits for the disk
@given(some=RECORDS, more=RECORDS, cut=st.integers(0, 60), keep=st.integers(0, 6))
def test_what_is_whole_is_kept_and_the_rest_can_be_added_again(
    tmp_path_factory, some, more, cut, keep
):
    path = tmp_path_factory.mktemp("lines") / "deep" / "x.jsonl"
    lines = Lines(path)
    assert list(lines.lines()) == []
    lines.add(some)
    lines.add(more)
    assert list(lines.lines()) == some + more
    assert path.read_text() == "".join(json.dumps(line) + "\n" for line in some + more)

    whole = path.read_bytes()[:-cut] if cut else path.read_bytes()
    path.write_bytes(whole)
    again = Lines(path)
    left = list(again.lines())
    assert left == (some + more)[: whole.count(b"\n")]
    again.keep(keep)
    assert list(again.lines()) == left[:keep]
    again.add((some + more)[len(left[:keep]) :])
    assert list(again.lines()) == some + more
    assert [x.name for x in path.parent.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("line", ["nonsense", "7", "[]", '{"a": 1'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="x.jsonl, line 2: expected a JSON object, .* remove the"):
        list(Lines(path).lines())
