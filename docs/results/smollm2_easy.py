"""Word problems in plain words whose workings are within reach: what GSM8K is not, for this model.

Two steps of small numbers, drawn from templates that say the same thing in several ways.
"""

from __future__ import annotations

import random

from qs.data.question_sets import BenchmarkQuestion

NAMES = (
    "Anna", "Ben", "Carla", "David", "Ella", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate",
    "Leo", "Maria", "Noah", "Olivia", "Paul", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
THINGS = (
    "apples", "books", "marbles", "stickers", "pencils", "coins", "cookies", "shells", "cards",
    "flowers", "stamps", "balloons", "eggs", "buttons", "oranges", "tickets",
)  # fmt: skip
HOLDERS = ("boxes", "bags", "baskets", "jars", "drawers", "shelves", "packs", "trays")
# what is told, and its steps: a, b, c are the numbers of the text, {0} and {1} the steps' results
TEMPLATES = (
    (
        "{name} has {a} {holders} with {b} {things} each. {name} gives away {c} {things}. "
        "How many {things} are left?",
        ("{a}*{b}", "{0}-{c}"),
    ),
    (
        "There are {b} {things} in each of {a} {holders}, and {c} more on the table. "
        "How many {things} are there altogether?",
        ("{a}*{b}", "{0}+{c}"),
    ),
    (
        "{name} buys {a} {things} on Monday and {b} on Tuesday. On Friday {other} takes {c} of "
        "them. How many {things} does {name} still have?",
        ("{a}+{b}", "{0}-{c}"),
    ),
    (
        "{name} found {a} {things}, and {other} found {b} more than {name}. "
        "How many {things} did they find together?",
        ("{a}+{b}", "{a}+{0}"),
    ),
    (
        "{other} has {a} {things}. {name} has {b} times as many and loses {c}. "
        "How many {things} does {name} have now?",
        ("{b}*{a}", "{0}-{c}"),
    ),
    (
        "{name} sells {a} {things} for {b} dollars each and buys bread for {c} dollars. "
        "How many of these dollars does {name} keep?",
        ("{a}*{b}", "{0}-{c}"),
    ),
    (
        "{name} had {a} {things}. {other} gave {name} {b} more, and then {name} found {c}. "
        "How many {things} does {name} have in the end?",
        ("{a}+{b}", "{0}+{c}"),
    ),
    (
        "Each of {a} children and {b} teachers brings {c} {things}. "
        "How many {things} do they bring?",
        ("{a}+{b}", "{0}*{c}"),
    ),
)


def easy_problem(numbers: random.Random) -> tuple[str, str, str] | None:
    """A text, its workings (`3*4=12, 12-5=7`) and the answer; None: a result is out of range."""
    text, steps = numbers.choice(TEMPLATES)
    name, other = numbers.sample(NAMES, 2)
    things = numbers.choice(THINGS)
    drawn = dict(zip("abc", (numbers.randint(2, 9) for _ in "abc"), strict=True))
    results: list[int] = []
    written = []
    for step in steps:
        left = step.format(*results, **drawn)
        one, sign, two = left.partition(next(s for s in "*+-" if s in left))
        value = {"*": int.__mul__, "+": int.__add__, "-": int.__sub__}[sign](int(one), int(two))
        if not 1 <= value <= 99:
            return None
        results.append(value)
        written.append(f"{left}={value}")
    said = text.format(
        name=name,
        other=other,
        things=things,
        holders=numbers.choice(HOLDERS),
        **drawn,
    )
    return said, ", ".join(written), str(results[-1])


def easy_problems(many: int, seed: int = 0) -> list[tuple[BenchmarkQuestion, str]]:
    """Different problems and their workings."""
    numbers, found = random.Random(seed), {}
    while len(found) < many:
        if drawn := easy_problem(numbers):
            text, workings, answer = drawn
            question = BenchmarkQuestion(f"easy-{len(found)}", text, (), answer, answer)
            found.setdefault(text, (question, workings))
    return list(found.values())
