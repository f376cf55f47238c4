"""Text with reasoning that is sometimes written out and sometimes left out.

Three kinds of documents, each a question, a newline, perhaps a working between two marks, and the
answer, a single token:

    sum    71600\n:78444;4                             the last digit of 7 + 1 + 6
    chain  hm pc bg jb mp gh cj c4\n: c j b g h; h    four relations (cj: from c to j)
    story  Ana has 9 figs. She buys 9. ...\n:98319;9   the last digit of the count

The working has one token for each step and `width` in all: a shorter one repeats its last token, so
that a thought of n tokens holds whatever takes n steps. Only the useful style helps; the others
(`:q7160;`, `:r0061;`) spell the question's operands in order or in reverse. A working may be
written again: if nothing but the answer followed one, a thought could not be mixed in after a
question without denying the mark its probability.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qs.data.dataset import Split, check_split, split_by_hash
from qs.files import read_object

OPEN, CLOSE = ":", ";"  # the marks around a working; nothing else in a document holds them
KINDS = ("sum", "chain", "story")
STYLES = ("useful", "repeat", "reverse", "none")
RECIPE = "world.json"  # what a folder of text was drawn from

DIGITS, NODES = tuple("0123456789"), tuple(" " + letter for letter in "bcdfghjkmp")
NAMES = ("Ana", "Eva", "Mia", "Zoe")
THINGS = ("pears", "plums", "nuts", "figs")
GAINS, LOSSES = ("buys", "finds"), ("eats", "loses")
OPENINGS = ("She", "Then", "Later", "Finally")  # each change has its own, one token long


@dataclass(frozen=True)
class World:
    """What documents are drawn, and how often."""

    sums: float = 1.0  # weights of the kinds
    chains: float = 1.0
    stories: float = 1.0
    written: float = 0.3  # share of documents whose working is written out
    useful: float = 0.5  # share of written workings in the useful style
    again: float = 0.3  # chance that a working is written once more, and so on
    lengths: tuple[int, ...] = (3, 4, 5)  # summands of running sums
    hops: tuple[int, ...] = (2, 3, 4)  # relations that chains follow
    steps: tuple[int, ...] = (3, 4)  # changes that word problems tell of
    relations: int = 7  # of a chain, a single cycle
    width: int = 5  # tokens of a working, and digits of a sum (zeros after its summands)
    heldout: float = 0.1  # share of all problems that only held-out documents use

    def __post_init__(self) -> None:
        self._expect("written", 0 <= self.written <= 1, "a share in [0, 1]")
        self._expect("useful", 0 <= self.useful <= 1, "a share in [0, 1]")
        self._expect("again", 0 <= self.again < 1, "a chance in [0, 1)")
        self._expect("heldout", 0 < self.heldout < 1, "a share in (0, 1)")
        drawable = min(self.weights) >= 0 and 0 < sum(self.weights) < float("inf")
        self._expect("weights", drawable, "numbers of which at least one is above 0 and none below")
        self._expect("relations", 3 <= self.relations <= len(NODES), f"from 3 to {len(NODES)}")
        for name, low, high in (
            ("lengths", 2, self.width),
            ("hops", 1, min(self.relations, self.width) - 1),
            ("steps", 1, min(len(OPENINGS), self.width - 1)),
        ):
            values = getattr(self, name)
            fits = bool(values) and all(low <= value <= high for value in values)
            self._expect(name, fits, f"numbers from {low} to {high} with width {self.width}")

    def _expect(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ValueError(f"expected {name} to be {expected}, found {getattr(self, name)}")

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of KINDS, in that order."""
        return self.sums, self.chains, self.stories


@dataclass(frozen=True)
class Document:
    """One text and all that a metric needs to know about it."""

    text: str  # question, newline, perhaps OPEN, a working and CLOSE, then the answer
    kind: str  # of KINDS
    difficulty: int  # summands, hops or changes
    style: str  # of STYLES; "none" where the working is left out
    question: str
    answer: str  # one token of the tokenizer of the bundled model
    working: str  # what the useful working is, written or not, without its marks
    needed: int  # leading tokens of the working that reach the answer; the others repeat it
    choices: tuple[str, ...]  # every answer that this kind of document can have


def documents(world: World, seed: int, split: Split) -> Iterator[Document]:
    """Documents without end; same world, seed and split, same documents.

    The split of a problem, however worded, is a hash: those of two are disjoint whatever the seeds.

    Raises:
        ValueError: if the split is unknown, or holds no problem of a drawn difficulty.
    """
    check_split(split)
    rng = random.Random(f"{seed} {split}")
    unhelpful = (1 - world.useful) / 2
    styles = [world.written * share for share in (world.useful, unhelpful, unhelpful)]
    while True:
        (kind,) = rng.choices(KINDS, world.weights)
        (style,) = rng.choices(STYLES, [*styles, 1 - world.written])
        times = 1
        while style != "none" and rng.random() < world.again:
            times += 1
        difficulty, question, operands, stops, choices, _ = _draw(rng, world, kind, split)
        working, answer = _fill(stops, world.width), stops[-1]
        spelt = {  # a style shows in its first token
            "useful": working,
            "repeat": _fill(("q", *operands), world.width),
            "reverse": _fill(("r", *operands[::-1]), world.width),
        }
        written = "" if style == "none" else f"{OPEN}{spelt[style]}{CLOSE}" * times
        text, needed = f"{question}\n{written}{answer}", len(stops)
        yield Document(text, kind, difficulty, style, question, answer, working, needed, choices)


def _fill(tokens: Sequence[str], width: int) -> str:
    """The first `width` tokens, the last one repeated where there are fewer."""
    return "".join([*tokens, *[tokens[-1]] * width][:width])


def read_recipe(folder: Path, split: Split) -> list[Document] | None:
    """The documents that a folder's text was made of; None where it has no `world.json`.

    Raises:
        ValueError: that file is damaged.
    """
    path = folder / RECIPE
    if not path.is_file():
        return None
    recipe = read_object(path, "write the text again with python -m qs.data synthetic")
    try:
        settings = {k: tuple(v) if type(v) is list else v for k, v in recipe["world"].items()}
        drawn = documents(World(**settings), recipe["seed"], split)
        count = recipe["documents"][split]
        if count < 1:
            raise ValueError(f"{count} {split} documents")
        return list(itertools.islice(drawn, count))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"expected what python -m qs.data synthetic writes, found {error}"
        raise ValueError(f"{path}: {message}") from None


class SyntheticProblem(NamedTuple):
    """A question and the tokens of its steps."""

    difficulty: int
    question: str
    operands: tuple[str, ...]
    stops: tuple[str, ...]  # the last one is the answer
    choices: tuple[str, ...]
    key: str  # what makes two problems the same, however they are told


def _draw(rng: random.Random, world: World, kind: str, split: Split) -> SyntheticProblem:
    difficulty = rng.choice({"sum": world.lengths, "chain": world.hops, "story": world.steps}[kind])
    for _ in range(100_000):
        if kind == "sum":
            problem = _running_sum(rng, difficulty, world.width)
        elif kind == "chain":
            problem = _chain(rng, difficulty, world.relations)
        else:
            problem = _story(rng, difficulty)
        if split_by_hash(f"{kind} {problem.key}".encode(), world.heldout) == split:
            return problem
    raise ValueError(
        f"expected {split} problems of kind {kind}, difficulty {difficulty}, found none in 100,000 "
        f"draws with heldout {world.heldout}; move it towards 0.5 or raise the difficulty"
    )


def _running_sum(rng: random.Random, length: int, width: int) -> SyntheticProblem:
    """`length` digits from 1 to 9, then zeros; the steps are last digits of the partial sums."""
    digits = [rng.randint(1, 9) for _ in range(length)]
    question = "".join(map(str, digits + [0] * (width - length)))
    stops = tuple(str(total % 10) for total in itertools.accumulate(digits))
    return SyntheticProblem(length, question, tuple(question), stops, DIGITS, question)


def _chain(rng: random.Random, hops: int, relations: int) -> SyntheticProblem:
    """A cycle of relations in shuffled order; the steps are the stops, the start included."""
    nodes = rng.sample(NODES, relations)
    pairs = [a + b.strip() for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True)]
    key = "".join([*sorted(pairs), nodes[0], str(hops)])
    rng.shuffle(pairs)
    question = f"{''.join(pairs)}{nodes[0]}{hops}".strip()
    operands, stops = tuple(pair[:2] for pair in pairs), tuple(nodes[: hops + 1])
    return SyntheticProblem(hops, question, operands, stops, NODES, key)


def _story(rng: random.Random, steps: int) -> SyntheticProblem:
    """A count that changes `steps` times; the steps are its last digits, the first one included."""
    count = rng.randint(1, 9)
    sentences = [f"{rng.choice(NAMES)} has {count} {rng.choice(THINGS)}."]
    stops, operands, key = [str(count)], [str(count)], str(count)
    for opening in OPENINGS[:steps]:
        amount = rng.randint(1, 9)
        gain = amount > count or rng.random() < 0.5  # nobody eats what is not there
        count += amount if gain else -amount
        sentences.append(f"{opening} {rng.choice(GAINS if gain else LOSSES)} {amount}.")
        stops.append(str(count % 10))
        operands.append(str(amount))
        key += f"{'+' if gain else '-'}{amount}"
    question = " ".join([*sentences, "Last digit?"])
    return SyntheticProblem(steps, question, tuple(operands), tuple(stops), DIGITS, key)
