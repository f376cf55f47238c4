"""Sums of two numbers of d digits each, with the written scratchpad of STaR.

    Input:           <scratch>
    6 2 4 + 2 5 9    6 2 4 + 2 5 9 , C: 0
    Target:          6 2 + 2 5 , 3 C: 1
                     6 + 2 , 8 3 C: 0
                     , 8 8 3 C: 0
                     0 8 8 3
                     </scratch>
                     8 8 3

On the left what is asked, on the right what follows; digits stand apart, so that each is one token.
Each of the d lines with a new digit takes the last one off both numbers and puts what they and the
carry behind `C:` make in front of the result. The last line is carry and result; the answer has no
leading zeros. So each line follows from the line above it alone, by a rule that does not depend on
d; in the paper lines show only the next pair of digits, which differs from three digits on.

Source: STaR (arXiv:2203.14465), section 4.1 and figure 3; after Nye et al. 2021 (arXiv:2112.00114).
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from qs.data.dataset import Split, check_split, split_by_hash

SUM = "+"
OPERATIONS = {  # digits of a column and the carry from its right -> carry and digit
    SUM: lambda a, b, carry: divmod(a + b + carry, 10),
    "<": lambda a, b, carry: (0, a),
    ">": lambda a, b, carry: (0, b),
    "^": lambda a, b, carry: (0, max(a, b)),
    "_": lambda a, b, carry: (0, min(a, b)),
    "-": lambda a, b, carry: (int(a < b), abs(a - b)),
}
BEGIN, END = "<scratch>", "</scratch>"
HELDOUT_SHARE = 0.1  # share of all sums that are never trained on
# What a tokenizer should keep whole, with sentencepiece's mark for a space: then a sum has a token
# for every word and for every newline.
WORDS = (*(f" {sign}" for sign in OPERATIONS), " ,", ",", " C:", *(f" {d}" for d in range(10)))
SYMBOLS = ("Input:", "Target:", BEGIN, END, *(word.replace(" ", "\u2581") for word in WORDS))
LONGEST = 5  # digits of what is asked
KNOWN = 2  # digits of sums in `operation_texts`, at most
SHARES = {"sums": 0.4, "hinted sums": 0.2, "other operations": 0.4}
HINTED = 0.3  # share of the other operations that give the answer as a hint


@dataclass(frozen=True)
class Sum:
    """Two numbers to add, with the same number of digits."""

    a: int
    b: int

    def __post_init__(self) -> None:
        if min(self.a, self.b) < 0 or len(str(self.a)) != len(str(self.b)):
            raise ValueError(f"expected two numbers of as many digits, found {self.a} and {self.b}")

    @property
    def digits(self) -> int:
        """d: digits of each number."""
        return len(str(self.a))

    @property
    def answer(self) -> str:
        """The sum, as `parse_answer` gives it."""
        return str(self.a + self.b)


def split_of(problem: Sum) -> Split:
    """The only split that a sum is ever drawn for: a hash of its numbers, in either order."""
    low, high = sorted((problem.a, problem.b))
    return split_by_hash(f"addition {low} {high}".encode(), HELDOUT_SHARE)


def sums(seed: int | str, split: Split, digits: int) -> Iterator[Sum]:
    """Sums without end, drawn evenly, so that they come again; same arguments, same sums.

    Splits are disjoint whatever the seeds, a + b and b + a being in the same. Both numbers have
    `digits` digits; the first is 0 only where there is one.

    Raises:
        ValueError: with the first sum, for an unknown split or digits below 1.
    """
    check_split(split)
    if digits < 1:
        raise ValueError(f"expected sums of at least 1 digit, found {digits}")
    rng = random.Random(f"{seed} {split} {digits}")
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits
    while True:
        problem = Sum(rng.randrange(low, high), rng.randrange(low, high))
        if split_of(problem) == split:
            yield problem


def different_sums(seed: int | str, split: Split, each: int) -> list[Sum]:
    """`each` draws of every length up to LONGEST digits, shortest first; what comes again, once."""
    lengths = range(1, LONGEST + 1)
    drawn = (problem for digits in lengths for problem in islice(sums(seed, split, digits), each))
    return list(dict.fromkeys(drawn))


def prompt(problem: Sum) -> str:
    """The question, which `scratchpad` or `direct` completes."""
    return _question(str(problem.a), str(problem.b), SUM)


def _question(a: str, b: str, operation: str) -> str:
    return f"Input:\n{' '.join(a)} {operation} {' '.join(b)}\nTarget:\n"


def hinted_prompt(problem: Sum) -> str:
    """The question with its answer behind `Target:`, for rationalisation; never stored."""
    return f"{prompt(problem).rstrip()} {direct(problem)}"


def scratchpad(problem: Sum) -> str:
    """The right completion with all its steps."""
    return "".join(worked(str(problem.a), str(problem.b), SUM))


def direct(problem: Sum) -> str:
    """The right completion without steps."""
    return f"{' '.join(problem.answer)}\n"


def parse_answer(text: str, steps: bool = True) -> str | None:
    """The number that a completion ends in, without spaces; otherwise None.

    Accepted: behind the first `</scratch>` (without `steps`: alone, as in `direct`) one line of
    digits, spaced, without leading zeros, its newline there or not; what is before is not judged.
    """
    if steps:
        text = text.partition(f"\n{END}\n")[2]
    match = re.fullmatch(r"([0-9]|[1-9](?: [0-9])+)\n?", text)
    return match[1].replace(" ", "") if match else None


def worked(a: str, b: str, operation: str) -> tuple[str, str]:
    """Steps between the marks, and the answer behind them, of one of OPERATIONS.

    Both numbers have as many digits; zeros may lead.
    """
    result, carry = "", 0
    lines = [BEGIN, f"{' '.join(a)} {operation} {' '.join(b)} , C: 0"]
    while a:
        carry, digit = OPERATIONS[operation](int(a[-1]), int(b[-1]), carry)
        a, b, result = a[:-1], b[:-1], f"{digit}{result}"
        left = f"{' '.join(a)} {operation} {' '.join(b)} " if a else ""
        lines.append(f"{left}, {' '.join(result)} C: {carry}")
    lines += [f"{carry} {' '.join(result)}", END]
    answer = f"{carry}{result}".lstrip("0") or "0"
    return "".join(f"{line}\n" for line in lines), f"{' '.join(answer)}\n"


def operation_texts(
    seed: int, split: Split, digits: int = KNOWN, written: float = 1.0
) -> Iterator[str]:
    """Texts without end: sums, some with the answer as a hint, and other operations at any length.

    From these a model can know how long scratchpads look, and that `+` adds, never both at once.
    Sums have at most `digits` digits and are of the split; `written` is the share of the documents
    that have their steps.
    """
    rng = random.Random(f"{seed} {split} documents")
    streams = [sums(seed, split, length) for length in range(1, digits + 1)]
    others = [operation for operation in OPERATIONS if operation != SUM]
    while True:
        (kind,) = rng.choices(list(SHARES), SHARES.values())
        if kind == "other operations":
            operation, length = rng.choice(others), rng.randint(1, LONGEST)
            a, b = ("".join(rng.choices("0123456789", k=length)) for _ in range(2))
        else:
            operation, problem = SUM, next(rng.choice(streams))
            a, b = str(problem.a), str(problem.b)
        question = _question(a, b, operation)
        steps, answer = worked(a, b, operation)
        # nothing is drawn where all have steps: the order of draws is that of the bundled text
        if written < 1 and rng.random() >= written:
            yield question + answer
            continue
        if kind == "hinted sums" or (operation != SUM and rng.random() < HINTED):
            question = f"{question.rstrip()} {answer}"
        yield question + steps + answer
