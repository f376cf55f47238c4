"""answers: a number or a letter is read however it is written, and never where two are meant."""

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qs.data.answers import (
    complete_part,
    final_number,
    majority,
    parse_choice,
    parse_number,
    stated_number,
)

# Numbers


def naive(value: Decimal) -> str:
    """Canonical form, by way of decimal arithmetic."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


@given(data=st.data(), places=st.integers(0, 4), size=st.integers(0, 10**9))
def test_a_number_comes_back_however_it_is_written(data, places, size):
    def pick(*options: str) -> str:
        return data.draw(st.sampled_from(options))

    value = Decimal(size).scaleb(-places)
    digits = f"{value:,.{places}f}" if pick("plain", "grouped") == "grouped" else f"{value:f}"
    sign, inside = pick("", "+", "-", "−"), pick("", "$", "€")
    front = pick(f"{sign}{inside}", f"{inside}{sign}")
    back = pick("", "%", " %", "kg", " dollars", " eggs per day", " km/h", " m²", "€", "°C")
    text = pick("", " ", "\n") + front + digits + back + pick("", ".") + pick("", " ", "\n")
    assert parse_number(text) == naive(-value if sign in ("-", "−") else value)


@given(size=st.integers(0, 10**6), zeros=st.integers(0, 5).map("0".__mul__))
@example(size=1, zeros="0" * 10_000)  # longer than what int() reads
def test_zeros_that_mean_nothing_are_left_out(size, zeros):
    assert parse_number(f"{zeros}{size}") == parse_number(f"{size}.0{zeros}") == str(size)
    assert parse_number(f"{zeros}{size}.5{zeros}") == f"{size}.5"


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "-", "$", "ten", "about 5", "x = 5", "5 or 6", "5 6", "3 000", "1/2", "1e5"]
    + ["1,23", "1,234,5", "0,123", "1.234,5", "1234,567", "1.2.3", "18..", "--5", "-$-5", "- 5"]
    + ["5x", "5k", "5 m", "5 million", "2 dozen", "3rd", "5 and a half", "5 point two", "٣", "½"]
    + ["5!", "(5)", "5,", "5\n6", "nan", "inf", "0x10", "5 eggs per day each", "__import__('os')"],
)
def test_text_that_is_no_single_number_gives_none(text):
    assert parse_number(text) is None


SMALL = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SMALL += ["eleven", "twelve"]
TEENS = [f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
TENS = [f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
LARGE = ["hundred", "thousand", "million", "billion", "trillion", "quadrillion", "zillion"]
PARTS = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
PARTS += ["eleventh", "twelfth", "quarter", *(f"{word}th" for word in (*TEENS, *LARGE))]
PARTS += [f"{word[:-1]}ieth" for word in TENS]
CHANGING = ["zero", "one", "half", "halves", "squared", "cubed", "factorial", "pi", "mil", "score"]
CHANGING += [*SMALL, *TEENS, *TENS, *PARTS, *LARGE, "dozen", "gross", "grand", "lakh", "crore"]
CHANGING += [f"{word}s" for word in (*SMALL, *TEENS, *PARTS, *LARGE, "dozen", "lakh", "crore")]
CHANGING += ["sixes", "twenties", "nineties"]


@pytest.mark.parametrize("word", CHANGING)
def test_a_word_that_changes_the_number_is_no_unit(word):
    for text in (f"5 {word}", f"5{word}", f"5 {word.title()}.", f"5 {word} of them", f"$5 {word}"):
        assert parse_number(text) is None, text


@pytest.mark.parametrize(
    "unit",
    ["eggs", "USD", "percent", "seconds", "second", "square feet", "cubic cm", "meters squared"]
    + ["feet cubed", "quarts", "months", "baths", "teeth", "teens", "tennis balls", "tons", "pies"]
    + ["stones", "points", "scores", "dollars gross", "halfpennies", "ones", "pairs of shoes"]
    + ["times", "ounces", "weights", "sixpences", "hundredweight", "miles", "pills", "lacks"],
)
def test_a_word_that_only_names_what_is_counted_is_a_unit(unit):
    for text in (f"72 {unit}", f"72{unit}.", f"72 {unit.title()}"):
        assert parse_number(text) == "72", text


@given(text=st.text(st.sampled_from(list("0123456789,.-+$%/ \n#ambo")), max_size=12))
def test_a_number_that_is_read_is_canonical_and_has_the_digits_of_the_text(text):
    found = parse_number(text)
    if found is not None:
        assert parse_number(found) == found == naive(Decimal(found))
        digits = "".join(c for c in text if c in "0123456789.")
        assert Decimal(digits.rstrip(".")) == abs(Decimal(found))


def test_the_final_number_is_the_first_integer():
    for text in (" 1,080 apples", " $1080.", " 1080.5", " -1080", " 01080 and 5", "= 1080"):
        assert final_number(text) == "1080"
    assert final_number(" many") is None


@pytest.mark.parametrize(
    "text",
    ["2 + 2 = 5.\n#### 4.5", "#### 4.50\n", "  #### $4.5", "2 + 2 = 5. The answer is 4.5."]
    + ["So the ANSWER is $4.50. That is all.", "Therefore, the answer is: 4.5 eggs", "Answer: 4.5"]
    + ["The answer is 4.50.\n#### 4.5", "The answer is clear. The answer is 4.5."],
)
def test_a_worked_solution_states_its_number(text):
    assert stated_number(text) == "4.5"


@pytest.mark.parametrize(
    "text",
    ["", "2 + 2 = 4", "2 #### 4", "####", "#### 4\n#### 5", "The answer is\n4.", "The answer is."]
    + ["The answer is 4. No, the answer is 5.", "The answer is 4. No, the answer is hard."]
    + ["The answer is 4 or 5.", "The answer is not 4.", "The answer isn't 4.", "The answers: 4"],
)
def test_a_worked_solution_that_states_no_number_or_two_gives_none(text):
    assert stated_number(text) is None


@pytest.mark.parametrize("gold", ["45", "4.5", "4,500", "$4.50 each", "45 eggs"])
@pytest.mark.parametrize("end", [".", ". That is all.", "\n", " .", ""])
def test_a_text_cut_off_anywhere_states_its_answer_or_none(gold, end):
    text = f"He has 2 + 2 = 4. So the answer is {gold}{end}"
    right = stated_number(text)
    for length in range(len(text)):
        assert stated_number(complete_part(text[:length])) in (None, right), text[:length]
    if end in (". That is all.", "\n"):
        assert stated_number(complete_part(text)) == right


def test_of_a_text_cut_off_whole_lines_and_sentences_stay():
    for whole, rest in (("", "One"), ("One.", " two"), ("a.b\n", "7 8"), ("One. 2\n", "4.")):
        assert complete_part(whole + rest) == whole
    for text in ("The answer is 4.\nNo, the answer is", "The answer is 4. #### 5", "answer: 5."):
        assert complete_part(text) in ("", "The answer is 4.")
    assert complete_part("The answer is 4.\nNo, the answer is 5") == ""


# Choices


@given(data=st.data(), labels=st.sampled_from(["ABCDE", "AB", "XYZ"]))
def test_a_label_comes_back_however_it_is_written(data, labels):
    gold = data.draw(st.sampled_from(labels))
    letter = data.draw(st.sampled_from([gold, gold.lower()]))
    alone = data.draw(st.sampled_from(["{}", "({})", "{})", "{}.", "({}).", "{}:"])).format(letter)
    words = data.draw(st.sampled_from(["({}) some thing", "{}) some thing"])).format(letter)
    closed = data.draw(st.sampled_from(["", ".", "\n", ". Good."]))
    before = data.draw(st.sampled_from(["", "It holds (A) and b.\n", "A: Paper\n", "Not (B)!\n"]))
    said = data.draw(st.sampled_from(["The answer is", "So the Answer is:", "answer:", "####"]))
    stated = data.draw(
        st.sampled_from([f"({letter})", f"{letter}", words, f"the thing ({letter})"])
    )
    for text in (alone, words, f" {alone}\n", f"{before}{said} {stated}{closed}"):
        assert parse_choice(text, labels) == gold, text


@pytest.mark.parametrize(
    "text",
    ["", "F", "(F)", "AB", "a dog", "A dog", "E. coli", "(A", "(A) or (B)", "(A), (B)", "(A) or B"]
    + ["(A) is it", "(A) library\n(B) zoo", "(A) zoo (B)", "library (A)", "The answer is a dog."]
    + ["The answer is (A) or (B).", "The answer is either (A)", "The answer is not (A)."]
    + ["The answer is neither a nor (b).", "The answer isn't (A).", "The answer is (F)."]
    + ["The answer is (A). The answer is (B).", "The answer is (A). So the answer is unclear."]
    + ["The answer is A because it is.", "So #### A", "The answer is\n(A)"]
    + ["\u212a", "(\u212a)", "\u0131", "\u0410"],  # Kelvin sign, dotless i, Cyrillic A
)
def test_text_that_chooses_no_label_or_two_gives_none(text):
    assert parse_choice(text, "ABCDEIK") is None


# Votes


@given(votes=st.lists(st.sampled_from(["a", "b", "c", None])))
@example(votes=["a", "b", "b", "a"])
@example(votes=[None, None, "a"])
def test_the_majority_is_the_most_frequent_answer_first_to_its_count(votes):
    counts = {vote: votes.count(vote) for vote in "abc" if vote in votes}
    reached = {  # at which vote each got its last one
        vote: max(i for i, other in enumerate(votes) if other == vote) for vote in counts
    }
    expected = min(counts, key=lambda vote: (-counts[vote], reached[vote]), default=None)
    assert majority(votes) == expected
