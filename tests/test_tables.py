"""tables: a terminal and a Markdown page show the same cells, and text stays text."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from qs.tables import Table, escaped, markdown, results_page, terminal, words

TABLE = Table(
    "sums | 3", ("what", "gain"), [("easy", "+0.10"), ("a|b `c`", "-12.00")], ["seed 0", "*n* 5"]
)


def test_a_terminal_has_aligned_columns_with_numbers_to_the_right():
    assert terminal(TABLE).splitlines() == [
        "sums | 3",
        "  what       gain",
        "  easy      +0.10",
        "  a|b `c`  -12.00",
        "  seed 0",
        "  *n* 5",
    ]


def test_a_page_says_how_its_tables_were_made():
    made = f"Made with {words({'commit': 'c0', 'threads': 1})}.\n"
    found = results_page("m on sums", "python evaluate.py m", made, [TABLE])
    assert found.splitlines() == [
        "# m on sums",
        "",
        "```sh",
        "python evaluate.py m",
        "```",
        "",
        "Made with commit c0, threads 1.",
        "",
        r"## sums \| 3",
        "",
        "| what | gain |",
        "| --- | ---: |",
        "| easy | +0.10 |",
        r"| a\|b \`c\` | -12.00 |",
        "",
        "- seed 0",
        r"- \*n\* 5",
    ]


def test_a_table_of_nothing_is_its_title_and_notes():
    empty = Table("none", notes=["all too long"])
    assert terminal(empty) == "none\n  all too long"
    assert markdown(empty) == "## none\n\n- all too long\n"
    assert terminal(Table("no rows", ("a", "b"))).splitlines() == ["no rows", "  a  b"]
    assert terminal(Table("no heads", ("", ""), [("a", "1")])).splitlines() == [
        "no heads",
        "  a  1",
    ]
    assert terminal(empty, TABLE) == f"{terminal(empty)}\n\n{terminal(TABLE)}"


def test_no_name_in_a_table_controls_a_terminal():
    table = Table("a\x1b[2J", ("\rb",), [("c\x07",)], ["d\x9b"])
    assert terminal(table).splitlines() == ["a\\x1b[2J", "  \\rb", "  c\\x07", "  d\\x9b"]


@given(text=st.text(alphabet="ab\\`*_[]<>|$#~& 1"))
def test_escaped_text_has_no_mark_left_and_reads_back(text: str):
    found = escaped(text)
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[\]<>|$#~&]", found)
    assert re.sub(r"\\(.)", r"\1", found) == text
