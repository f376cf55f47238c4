"""The bundled text's problems: a question, the steps to its answer, and the split it belongs to."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import Literal

KINDS = ("sum", "chain", "story")
SPLITS = ("train", "heldout")
DIGITS, NODES = tuple("0123456789"), tuple(" " + letter for letter in "bcdfghjkmp")

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Problem:
    """A question and its steps; `key` is what makes two problems the same however they are told."""

    kind: str
    difficulty: int
    question: str
    operands: tuple[str, ...]
    stops: tuple[str, ...]
    choices: tuple[str, ...]
    key: str


def running_sum(rng: random.Random, length: int, width: int) -> Problem:
    """`length` digits from 1 to 9, then zeros; the steps are last digits of the partial sums."""
    digits = [rng.randint(1, 9) for _ in range(length)]
    question = "".join(map(str, digits + [0] * (width - length)))
    stops = tuple(str(total % 10) for total in itertools.accumulate(digits))
    return Problem("sum", length, question, tuple(question), stops, DIGITS, question)


def chain(rng: random.Random, hops: int, relations: int) -> Problem:
    """A cycle of relations in shuffled order; the steps are the stops, the start included."""
    nodes = rng.sample(NODES, relations)
    pairs = [a + b.strip() for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True)]
    key = "".join([*sorted(pairs), nodes[0], str(hops)])
    rng.shuffle(pairs)
    question = f"{''.join(pairs)}{nodes[0]}{hops}".strip()
    operands = tuple(pair[:2] for pair in pairs)
    return Problem("chain", hops, question, operands, tuple(nodes[: hops + 1]), NODES, key)


NAMES = ("Ana", "Eva", "Mia", "Zoe")
THINGS = ("pears", "plums", "nuts", "figs")
GAINS, LOSSES = ("buys", "finds"), ("eats", "loses")
OPENINGS = ("She", "Then", "Later", "Finally")  # each change has its own, one token long


def story(rng: random.Random, steps: int) -> Problem:
    """A count that changes `steps` times; the steps are its last digits, the first one included."""
    count = rng.randint(1, 9)
    sentences = [f"{rng.choice(NAMES)} has {count} {rng.choice(THINGS)}."]
    counts, operands, key = [count], [str(count)], str(count)
    for opening in OPENINGS[:steps]:
        amount = rng.randint(1, 9)
        gain = amount > count or rng.random() < 0.5  # nobody eats what is not there
        count += amount if gain else -amount
        sentences.append(f"{opening} {rng.choice(GAINS if gain else LOSSES)} {amount}.")
        counts.append(count)
        operands.append(str(amount))
        key += f"{'+' if gain else '-'}{amount}"
    question = " ".join([*sentences, "Last digit?"])
    stops = tuple(str(count % 10) for count in counts)
    return Problem("story", steps, question, tuple(operands), stops, DIGITS, key)


def split_of(problem: Problem, heldout: float) -> Split:
    """The only split that a problem is ever drawn for: a hash of its kind and key decides.

    Args:
        problem: any problem.
        heldout: share of problems that are held out.
    """
    digest = hashlib.blake2b(f"{problem.kind} {problem.key}".encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < heldout * 2**64 else "train"
