"""page: what went in is what is read, whatever the characters; text never becomes markup."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from dataclasses import replace
from functools import partial
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from passages import TEXTS, example_passage, passages

from qs.evaluation.page import HEADS, PAGE, thoughts_page, write_thoughts
from qs.evaluation.thoughts import (
    EMPTY,
    FEW,
    LEVELS,
    Passage,
    Passages,
    PassageToken,
    Thought,
    gain_level,
    passage_text,
)
from qs.output import MARKS


class Element:
    """A node of the parsed page: a tag with attributes, and children that are nodes or text."""

    def __init__(self, tag: str, attrs: dict[str, str | None]):
        self.tag, self.attrs, self.children = tag, attrs, []

    def all(self, tag: str, kind: str | None = None) -> list[Element]:
        """Those below with this tag and, if given, this class, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                classes = (child.attrs.get("class") or "").split()
                found += [child] if child.tag == tag and kind in (None, *classes) else []
                found += child.all(tag, kind)
        return found


class Parser(HTMLParser):
    """A tree; a tag that does not close, or closes what is not open, is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open = [Element("", {})]
        self.structure: list[tuple[str, list[tuple[str, str | None]]]] = []  # marks left out
        self.feed(text)
        self.close()
        assert [element.tag for element in self.open] == [""]
        self.root = self.open[0]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        self.structure += [(tag, attrs)] * (tag != "i")
        self.open += [element] * (tag != "meta")

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    handle_pi = unknown_decl = handle_comment


def read(element: Element, breaks: bool = False) -> str:
    """What a reader who knows the marks takes the text for; real breaks follow theirs, or not.

    Counts and marks beside a thought (small) are no text.
    """
    if element.tag == "small":
        return ""
    if element.tag != "i":
        return "".join(x if isinstance(x, str) else read(x, breaks) for x in element.children)
    (mark,) = element.children
    marks = {"∅": "", "↵": "" if breaks else "\n", "⇥": "" if breaks else "\t"}
    return marks[mark] if mark in marks else mark.encode().decode("unicode_escape")


def spans_of(root: Element) -> list[Element]:
    """The tokens of every passage."""
    return [span for text in root.all("div", "text") for span in text.all("span")]


def times(cell: Element) -> int:
    """How many equal thoughts a cell stands for."""
    (count,) = [*re.findall(r"× (\d+)", str([x.children for x in cell.all("small")])), 1][:1]
    return int(count)


@given(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3), st.lists(passages(), max_size=2))
def test_every_text_is_read_as_it_went_in(title, about, shown_passages):
    root = Parser(thoughts_page(title, about, shown_passages)).root
    assert [read(h1) for h1 in root.all("h1")] == [title]
    (head,) = root.all("header")
    assert [read(dt) for dt in head.all("dt")] == list(about)
    assert [read(dd) for dd in head.all("dd")] == list(about.values())
    assert [read(h2) for h2 in root.all("main")[0].all("h2")] == [p.title for p in shown_passages]
    went_in = [token for passage in shown_passages for token in passage.tokens]
    assert [read(span, breaks=True) for span in spans_of(root)] == [t.text for t in went_in]
    panels = [token for token in went_in if token.gain is not None]
    for panel, token in zip(root.all("div", "pop"), panels, strict=True):
        assert read(panel.all("p")[0]) == token.text
        rows = [row.all("td")[0] for row in panel.all("tr")[1:]]
        found = [read(cell) for cell in rows for _ in range(times(cell))]
        assert sorted(found) == sorted(thought.text for thought in token.thoughts)


def numbered(token: PassageToken) -> PassageToken:
    """The same, with thoughts of which none looks like another."""
    thoughts = (replace(thought, weight=60.0 + i) for i, thought in enumerate(token.thoughts))
    return replace(token, thoughts=tuple(thoughts))


@given(st.lists(passages(), min_size=1, max_size=2), TEXTS, TEXTS, TEXTS)
@example([], "</title>", "</dl>", "</script>")
def test_tags_and_attributes_are_the_same_whatever_the_text(given_passages, title, key, value):
    plain = partial(replace, text="x")
    given_passages = [replace(p, tokens=tuple(map(numbered, p.tokens))) for p in given_passages]
    harmless = [
        Passage("x", tuple(plain(t, thoughts=tuple(map(plain, t.thoughts))) for t in p.tokens))
        for p in given_passages
    ]
    hostile = Parser(thoughts_page(title, {key: value}, given_passages))
    harmless = Parser(thoughts_page("x", {"x": "x"}, harmless))
    assert hostile.structure == harmless.structure
    for kind in ("script", "style"):
        (one,), (other,) = hostile.root.all(kind), harmless.root.all(kind)
        assert one.children == other.children


@given(st.lists(passages(), max_size=3))
def test_a_page_can_be_stored_and_its_references_resolve(shown_passages):
    text = thoughts_page("x", {}, shown_passages)
    assert text.encode().decode() == text
    attributes = [attr for _, attrs in Parser(text).structure for attr in attrs]
    names = [value for key, value in attributes if key == "id"]
    used = [value for key, value in attributes if key.startswith("aria-")]
    assert len(set(names)) == len(names)
    assert sorted(used) == sorted(names)


def test_a_page_needs_nothing_from_elsewhere():
    text = thoughts_page("x", {"a": "b"}, [example_passage(None, 1.0, -1.0)])
    root = Parser(text).root
    assert not re.search(r"https?:|\bsrc=|\bhref\b|@import|url\(|<link|<img|<iframe", text)
    policy = root.all("meta")[1].attrs["content"]
    for kind in ("style", "script"):
        (element,) = root.all(kind)
        digest = b64encode(sha256(element.children[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert text.startswith("<!doctype html>\n")
    first = [root.all("html")[0].attrs, root.all("meta")[0].attrs]
    assert first == [{"lang": "en"}, {"charset": "utf-8"}]
    assert root.all("meta")[2].attrs["name"] == "viewport"


@given(passages())
def test_a_panel_holds_every_number(passage):
    root = Parser(thoughts_page("x", {}, [passage])).root
    known = [token for token in passage.tokens if token.gain is not None]
    for panel, token in zip(root.all("div", "pop"), known, strict=True):
        values = [token.gain, token.nll]
        found = [read(element) for element in panel.all("b")]
        values += [x for thought in token.thoughts for x in (thought.reward, thought.weight)]
        for row in panel.all("tr")[1:]:
            text, *numbers = row.all("td")
            found += [read(cell) for cell in numbers] * times(text)
        shown = sorted(float(x.replace("−", "-")) for x in found)
        assert shown == pytest.approx(sorted(values), abs=0.00501)


def test_equal_thoughts_share_a_row_and_what_is_known_is_marked():
    right, wrong = Thought("59866", 1.811, 0.68, works=True), Thought("5", 0.0, 0.5)
    other = replace(wrong, reward=-0.5)
    token = PassageToken("6", 1.0, 2.0, (right, wrong, right, other, right), answer=True)
    root = Parser(thoughts_page("x", {}, [Passage("x", (token,))])).root
    for place in (root.all("div", "pop")[0], root.all("div", "most")[0]):
        cells = [row.all("td")[-3:] for row in place.all("tr")[1:]]
        rows = {tuple(map(read, row)): row[0].all("small") for row in cells}
        assert set(rows) == {
            ("59866", "+1.81", "0.68"),
            ("5", "+0.00", "0.50"),
            ("5", "−0.50", "0.50"),
        }
        assert [x.children for x in rows["59866", "+1.81", "0.68"]] == [["× 3"], ["✓"]]
        assert not rows["5", "+0.00", "0.50"]
    assert [span.attrs["class"] for span in spans_of(root)] == ["t h3 a"]


def test_every_word_and_sign_of_the_page_is_explained_on_it():
    (aside,) = Parser(thoughts_page("x", {}, [])).root.all("aside")
    said = ["".join(map(str, dt.children)) for dt in aside.all("dt")]
    for word in (*HEADS[1:3], *HEADS[4:], "✓", EMPTY, *MARKS.values()):
        assert word in said or word == MARKS["\t"]
    assert all(read(dd) for dd in aside.all("dd"))


def test_tokens_with_something_to_say_are_reached_by_keyboard_and_their_panel_follows():
    passage = example_passage(None, 1.0, None)
    passage = Passage("x", (*passage.tokens, PassageToken("a", None, 1.0, ())))
    (text,) = Parser(thoughts_page("x", {}, [passage])).root.all("div", "text")
    children = text.children
    assert [child.tag for child in children] == ["span", "span", "div", "span", "span", "div"]
    focusable = [child.attrs.get("tabindex") for child in children]
    assert focusable == [None, "0", "-1", None, "0", "-1"]
    for token, panel in ((1, 2), (4, 5)):
        assert children[panel].attrs["role"] == "tooltip"
        assert children[token].attrs["aria-describedby"] == children[panel].attrs["id"]


def test_shades_grow_with_the_gain_and_tell_its_sign():
    assert [gain_level(x) for x in LEVELS] == [1, 2, 3, 4]
    assert [gain_level(-x) for x in LEVELS] == [-1, -2, -3, -4]
    assert [gain_level(math.nextafter(x, 0.0)) for x in LEVELS] == [0, 1, 2, 3]
    assert [gain_level(x) for x in (None, math.nan, 0.0, math.inf, -math.inf)] == [
        0,
        0,
        0,
        4,
        -4,
    ]
    gains = (*(-x for x in reversed(LEVELS)), None, *LEVELS)
    root = Parser(thoughts_page("x", {}, [example_passage(*gains)])).root
    classes = ["t x4", "t x3", "t x2", "t x1", "t", "t h1", "t h2", "t h3", "t h4"]
    assert [span.attrs["class"] for span in spans_of(root)] == classes
    assert [span.attrs["class"] for span in root.all("ul")[0].all("span")] == classes
    ends = [read(item) for item in root.all("li")]
    assert ends == ["−1.5", "−0.5", "−0.15", "−0.05", "0", "+0.05", "+0.15", "+0.5", "+1.5"]


def contrast(one: str, other: str) -> float:
    """Of two colours #rrggbb, from 1 to 21 (WCAG 2.2)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_have_enough_contrast_in_light_and_dark():
    (style,) = Parser(thoughts_page("x", {}, [])).root.all("style")
    found = re.findall(r"--(\w+): (#[0-9a-f]{6});", style.children[0])
    assert len(found) == 28
    for colors in (dict(found[:14]), dict(found[14:])):
        assert len(colors) == 14
        for shade in ("paper", *(f"{kind}{i}" for kind in "hx" for i in (1, 2, 3, 4))):
            assert contrast(colors["ink"], colors[shade]) >= 4.5
        assert contrast(colors["soft"], colors["paper"]) >= 4.5
        assert min(contrast(colors[kind], colors["paper"]) for kind in "hx") >= 3


def test_the_table_under_a_passage_names_what_changed_most():
    passage = example_passage(None, 0.1, -2.0, 0.3, math.nan, 1.0, 0.0, -0.2, 0.01)
    passage = replace(passage, tokens=(*passage.tokens, PassageToken(" t9", -3.0, 1.0, ())))
    (table,) = Parser(thoughts_page("x", {}, [passage])).root.all("div", "most")
    assert [read(span) for span in table.all("span", "t")] == [" t9", " t2", " t5", " t3", " t7"]
    assert read(table.all("caption")[0]) == (
        "Gains and losses of 0.05 or more, the largest of 8 predicted tokens; mean gain −0.47"
    )
    bodies = [[read(cell) for cell in body.all("td")] for body in table.all("tbody")]
    assert bodies[0] == ["−3.00", "1.00", "–", "–", "–"]
    assert bodies[1] == ["−2.00", "2.00", "z2", "−2.10", "0.25", "y2", "−1.90", "0.50"]
    contexts = [read(span) for span in table.all("span", "c")]
    assert contexts[:2] == ["…3 t4 t5 t6 t7 t8", " t0 t1"]
    assert not Parser(thoughts_page("x", {}, [example_passage(None)])).root.all("table")
    small = Parser(thoughts_page("x", {}, [example_passage(None, 0.02, -0.03)])).root
    (table,) = small.all("div", "most")
    assert not table.all("tr")
    assert read(table.all("caption")[0]).endswith("of 2 predicted tokens: none; mean gain +0.00")


def test_of_many_thoughts_the_table_takes_those_with_the_largest_rewards():
    rewards = [0.1, -3.0, math.nan, 0.2, 2.0, -0.3, 0.0]
    many = tuple(Thought(f"z{i}", reward, 0.5) for i, reward in enumerate(rewards))
    (body,) = Parser(
        thoughts_page("x", {}, [Passage("x", (PassageToken("a", 1.0, 1.0, many),))])
    ).root.all("tbody")
    rows = [[read(cell) for cell in row.all("td")] for row in body.all("tr")]
    assert [row[-3] for row in rows[:FEW]] == ["z1", "z4", "z5", "z3", "z0"]
    assert rows[FEW:] == [["and 2 with less |reward|"]]
    assert body.all("th")[0].attrs["rowspan"] == "6"


@given(st.lists(passages(st.just("x"), st.floats()), max_size=2), st.booleans())
@example([example_passage(math.inf, -math.inf, math.nan, 1e300, -0.0)], True)
def test_no_number_breaks_anything(shown_passages, color):
    Parser(thoughts_page("x", {}, shown_passages))
    rows = "\n".join(passage_text(passage, color, 60) for passage in shown_passages).split("\n")
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", row)) <= 60 for row in rows)


def test_a_usual_page_is_well_under_a_megabyte():
    thought = tuple(Thought("91479", -0.123, 0.456) for _ in range(4))
    passage = Passage("row 1", tuple(PassageToken(" bd", -0.6, 1.2, thought) for _ in range(64)))
    assert len(thoughts_page("x", {}, [passage] * 20).encode()) < 700_000


def test_the_page_of_a_run_is_written_into_its_folder(tmp_path):
    passage = example_passage(None, 1.0)
    path = write_thoughts(tmp_path, {"model": "m"}, Passages([passage], [0], "a share <1"))
    expected = thoughts_page("What the model thought", {"model": "m"}, [passage], "a share <1")
    assert "<dd>a share &lt;1</dd>" in expected
    assert path == tmp_path / PAGE
    assert path.read_text(encoding="utf-8") == expected
