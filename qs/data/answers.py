"""Answers read from a text that a model wrote: a number, a letter, the majority of several.

Text is only ever matched against patterns, never evaluated; where two answers could be meant, none
is read. Numbers have one canonical form: no sign but "-", no leading zeros, no zeros after the last
decimal, no "-0".
"""

import re
from collections import Counter
from collections.abc import Sequence

CURRENCY = "$€£¥₹"
NUMBER = r"(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?:\.(?P<decimals>[0-9]+))?"
WORD = r"(?:[A-Za-z]{2,}[²³]?|[A-Za-z][²³]|[A-Za-z]+/[A-Za-z]+)"  # "5x", "5k", "5m" may mean more
NUMBER_TEXT = re.compile(
    rf"(?P<sign>[-+−]?)[{CURRENCY}]?(?P<inner>[-+−]?){NUMBER}"
    rf"(?:\s*(?:%|°[CF]?|[{CURRENCY}]|(?P<unit>{WORD}(?:\s+{WORD}){{0,2}})))?\.?"
)
TEEN = r"(?:thir|four|fif|six|seven|eigh|nine)teen"
TY = r"(?:twen|thir|for|fif|six|seven|eigh|nine)t"  # twenty, twenties, twentieth
LARGE = r"(?:hundred|thousand|[a-z]*illion)"
NOT_UNIT = re.compile(  # words that change the number, or may give a second one
    r"^(?:squared|cubed|factorial|gross|score)\b"  # behind a unit they do not: 5 meters squared
    rf"|\b(?:(?:dozen|lakh|lac|crore|grand|{LARGE})s?|mn|mln|mil|bn|tn|pi"
    r"|half|halves|(?:third|quarter)s?"  # but seconds are a unit
    rf"|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|{TEEN}|{TY}ie|{LARGE})ths?"
    r"|zero|one|(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)(?:e?s)?"
    rf"|{TEEN}s?|{TY}(?:y|ies)"
    r"|st|nd|rd|th|point|and|or|nor|not|but|to|until|plus|minus|over|versus|vs)\b",
    re.IGNORECASE,
)
SENTENCE = r"[ \t]*((?:[^\n.]|\.(?=\S))*)"  # up to a full stop before a space, or the line's end
SAID = re.compile(rf"(?m)^[ \t]*####{SENTENCE}|\banswer(?:\s+is\b:?|:){SENTENCE}", re.IGNORECASE)
CLAUSE = r"(?:(?!\b(?:not|no|never|either|neither|n?or|than|except|is|isn't|wrong)\b)[^()\n])*"


def _canonical(whole: str, decimals: str = "", negative: bool = False) -> str:
    """Canonical form of a number given as digits: ("007", "50") is "7.5", and -0 is "0"."""
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if negative and number != "0" else number


def parse_number(text: str) -> str | None:
    """A text that is one number and nothing else, in canonical form; otherwise None.

    Accepted: digits, in groups of three with commas or without; decimals after a point; one sign
    (+, -, U+2212) before or behind a currency symbol; after the number `%`, a currency symbol,
    degrees, or a unit of one to three words; a full stop; space around. "-$1,234.50" is "-1234.5",
    "3 eggs per day" "3". Not accepted: words before it, more digits (3 000, 1/2, 1e5), units of one
    letter (5x), words that change it or are numbers (5 million, 3rd, 3 fifths, 4 squared, 5 and
    a half), commas elsewhere (1,23).
    """
    match = NUMBER_TEXT.fullmatch(text.strip())
    if not match or (match["sign"] and match["inner"]) or NOT_UNIT.search(match["unit"] or ""):
        return None
    negative = (match["sign"] or match["inner"]) in ("-", "−")
    return _canonical(match["whole"].replace(",", ""), match["decimals"] or "", negative)


def final_number(text: str) -> str | None:
    """The first integer of what was generated after `prompts.cot_final_prompt`.

    As published: commas are dropped, sign and decimals are not read, so "-7" and "7.5" give "7". To
    be compared with `final_number(gold)`, as in the official code; `stated_number` is strict.

    Source: ezelikman/quiet-star, zero-shotcot-eval.py, extract_first_integer.
    """
    match = re.search("[0-9]+", text.replace(",", ""))
    return _canonical(match[0]) if match else None


def _statements(text: str) -> list[str]:
    return [marked or said for marked, said in SAID.findall(text)]


def _agreed(answers: Sequence[str | None]) -> str | None:
    said = {answer for answer in answers if answer is not None}
    return answers[-1] if len(said) == 1 else None


def complete_part(text: str) -> str:
    """What a text that was cut off says however it goes on: its whole lines and sentences.

    So "The answer is 4", which may become 45 or 4.5, says nothing; nor does a text that is about
    to state an answer again.
    """
    ends = [match.end() for match in re.finditer(r"\n|\.(?=\s)", text)]
    end = ends[-1] if ends else 0
    return "" if SAID.search(text[end:]) else text[:end]


def stated_number(text: str) -> str | None:
    """The number that a worked solution states: `#### 42`, `The answer is 42.` or `Answer: 42`.

    What follows, to the end of the line or to a full stop with space behind it, must be accepted by
    `parse_number`. None if nothing is stated, if the last statement is no number, or if two differ.
    """
    return _agreed([parse_number(said) for said in _statements(text)])


def parse_choice(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text chooses, as it is written in `labels`; otherwise None.

    A text is read as a choice, in either case of letters, if it is
    - the label alone: `B`, `(B)` or `B)`, each with `.` or `:` behind or not;
    - on one line, `(B)` or `B)` and then words: "(B) library";
    - one or more statements among other words, if they agree: `answer is`, `answer:` or `####`,
      then up to the sentence's end one of the above, or words and `(B)`: "The answer is tea (b)."

    Words hold no brackets, and none of those that CLAUSE refuses; the last statement must choose.
    So "a dog", "(A) or (B)", "The answer is a dog." choose nothing.
    """
    as_written = {label.upper(): label for label in labels}
    label = f"({'|'.join(map(re.escape, as_written))})"
    alone = rf"(?:\({label}\)|{label}\)?)[.:]?"
    with_words_behind = rf"(?:\({label}\)|{label}\)) {CLAUSE}"
    with_words_before = rf"{CLAUSE}\({label}\)"  # only in a statement

    def chosen(part: str, *forms: str) -> str | None:
        match = re.fullmatch("|".join(forms), part.strip(), re.IGNORECASE | re.ASCII)
        return as_written[match[match.lastindex].upper()] if match else None

    if statements := _statements(text):
        forms = alone, with_words_behind, with_words_before
        return _agreed([chosen(statement, *forms) for statement in statements])
    return chosen(text, alone, with_words_behind)


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, for maj@k; None is no vote, and is the result if nobody voted.

    Of equally frequent ones, that which reached its count first: ["a", "b", "b", "a"] gives "b".
    """
    votes = [answer for answer in answers if answer is not None]
    counts, last = Counter(votes), {answer: number for number, answer in enumerate(votes)}
    # an answer reaches its count with its last vote
    return max(counts, key=lambda answer: (counts[answer], -last[answer]), default=None)
