"""controls_page: every row has a cell for every column, and what a person wrote is kept."""

import re

import torch
from test_controls import some

from qs.answers import Marked, Question
from qs.controls import row
from qs.controls_page import COMMENTS, HEADS, keep_comments, markdown, notes, page


def test_the_markdown_has_a_cell_for_every_column():
    lines = [row("one", [some(0)]), row("two", [some(1), some(2)], thinks=False, seconds=61.4)]
    table = markdown(lines).splitlines()
    assert [line.count("|") for line in table] == [len(HEADS) + 1] * 4
    assert "(" not in table[2]  # one seed has no spread
    assert table[3].startswith("| two | 2 | ")
    assert table[3].endswith("| 61 |")


def test_differences_and_missing_rewards_are_shown():
    found = [some(0), some(1)]
    (line,) = markdown([row("m = 4", found, before=found, rewarded=0.25)]).splitlines()[2:]
    assert line.startswith("| m = 4 (75 % of the answers earn no reward) | 2 |")
    assert re.search(r" \| [+-]0\.\d{3} ± 0\.\d{3} \| - \| ", line)
    (line,) = markdown([row("m = 1", found, rewarded=1.0)]).splitlines()[2:]
    assert line.startswith("| m = 1 | 2 |")


def test_the_notes_count_what_was_measured_and_name_the_temperature():
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, -1, -1]])
    text = Marked(tokens, documents, [Question(0, 1, "sum", 3, (1, 2), 0, (3,))])
    found = " ".join(notes(text, 0.5).split())
    assert found.startswith("1 questions and 6 other tokens in 2 rows of held-out text.")
    assert "one thought sampled at temperature 0.5 before every token" in found
    assert "one thought sampled greedily before" in " ".join(notes(text, 0.0).split())


def test_what_a_person_wrote_below_the_tables_is_kept(tmp_path):
    path = tmp_path / "results" / "controls.md"
    made = {"Measured with": "torch 2"}
    text = page({"A table": [row("one", [some(0)])]}, "the command", made, "How to read.")
    for part in ("the command", "Measured with torch 2.", "How to read.", "## A table"):
        assert part in text
    keep_comments(path, text)
    assert path.read_text() == text
    path.write_text(f"old\n{COMMENTS}\n\nA sentence.\n")
    keep_comments(path, text)
    assert path.read_text() == f"{text}\n{COMMENTS}\n\nA sentence.\n"
