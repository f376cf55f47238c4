"""Passages for tests of what shows them: drawn ones with hostile texts, and plain examples."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import strategies as st

from qs.evaluation.thoughts import FEW, Passage, PassageToken, Thought
from qs.output import JOINERS

HOSTILE = ["</script><script>alert(1)</script>", "</style>", "<!--", "-->", "]]>", "&lt;&#0;&nbsp"]
HOSTILE += ["\"' onfocus='x' a=\"", "\x00\ud800\uffff\x7f", "\x1b[31m\x9b31m\x07", "\r\n\t\n\n"]
HOSTILE += ["שלום عالم", "\u202eabc\u200f\ufeff\u2028", "👩\u200d🔬e\u0301", "\u200d", "↵⇥∅\\x1b"]
TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)  # surrogates too
TEXTS |= st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join)
FINITE = st.floats(-50, 50)


def passages(texts: st.SearchStrategy[str] = TEXTS, floats: st.SearchStrategy[float] = FINITE):
    thoughts = st.lists(st.builds(Thought, texts, floats, floats), max_size=FEW + 2).map(tuple)
    known = st.builds(PassageToken, texts, floats, floats, thoughts)
    unknown = st.builds(PassageToken, texts, st.none(), st.none(), st.just(()))
    return st.builds(Passage, texts, st.lists(known | unknown, max_size=8).map(tuple))


def unseen(char: str) -> bool:
    """Controls, formats, surrogates, unassigned, line separators; but parts of emoji are seen."""
    return bool(re.match("C|Zl|Zp", unicodedata.category(char))) and char not in JOINERS


def example_passage(*gains: float | None) -> Passage:
    """A token ` t0`, ` t1`, ... for each gain, with two thoughts that earn 0.1 less and more."""

    def token(i: int, gain: float | None) -> PassageToken:
        if gain is None:
            return PassageToken(f" t{i}", None, None, ())
        less, more = Thought(f"z{i}", gain - 0.1, 0.25), Thought(f"y{i}", gain + 0.1, 0.5)
        return PassageToken(f" t{i}", gain, 2.0, (less, more))

    return Passage("a title", tuple(token(i, gain) for i, gain in enumerate(gains)))
