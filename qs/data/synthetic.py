"""Text with reasoning that is sometimes written out and sometimes left out.

    python -m qs.synthetic --out data/raw/tiny --documents 200000 --seed 0

Three kinds of documents, each a question, a newline, perhaps a working between two marks, and the
answer, a single token:

    sum    71600\n:78444;4                             the last digit of 7 + 1 + 6
    chain  hm pc bg jb mp gh cj c4\n: c j b g h; h    four relations (cj: from c to j)
    story  Ana has 9 figs. She buys 9. ...\n:98319;9   the last digit of the count

The working has one token for each step and `width` in all: a shorter one repeats its last token, so
that a thought of n tokens holds whatever takes n steps. Only the useful style helps; the others
(`:q7160;`, `:r0061;`) spell the question's operands in order or in reverse. Which split an instance
belongs to is a hash of its problem: no problem of the training split, however worded, is ever drawn
for the held-out.

A working may be written again: after one as after a question either the answer follows or a mark,
and a thought cannot know which. If nothing but the answer followed a working, a thought could not
be mixed in without denying the mark its probability.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qs.config import setting
from qs.data.problems import (
    KINDS,
    NODES,
    OPENINGS,
    SPLITS,
    Problem,
    Split,
    chain,
    running_sum,
    split_of,
    story,
)

OPEN, CLOSE = ":", ";"  # the marks around a working; nothing else in a document holds them
REPEAT, REVERSE = "q", "r"  # what the unhelpful styles begin with: a style shows in its first token
STYLES = ("useful", "repeat", "reverse", "none")
RECIPE = "world.json"  # what a folder of text was drawn from


@dataclass(frozen=True)
class World:
    """What documents are drawn, and how often."""

    sums: float = setting(1.0, "weight of running sums among the kinds")
    chains: float = setting(1.0, "weight of chains of relations")
    stories: float = setting(1.0, "weight of word problems")
    written: float = setting(0.3, "share of documents whose working is written out")
    useful: float = setting(0.5, "share of written workings in the useful style")
    again: float = setting(0.3, "chance that a working is written once more, and so on")
    lengths: tuple[int, ...] = setting((3, 4, 5), "summands of running sums")
    hops: tuple[int, ...] = setting((2, 3, 4), "relations that chains follow")
    steps: tuple[int, ...] = setting((3, 4), "changes that word problems tell of")
    relations: int = setting(7, "relations of a chain, a single cycle")
    width: int = setting(5, "tokens of a working, and digits of a sum (zeros after its summands)")
    heldout: float = setting(0.1, "share of all problems that only held-out documents use")

    def __post_init__(self) -> None:
        for name in ("written", "useful"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.again < 1:
            raise ValueError(f"--again is a chance in [0, 1), got {self.again}")
        if not 0 < self.heldout < 1:
            raise ValueError(f"--heldout is a share in (0, 1), got {self.heldout}")
        if min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf"):
            raise ValueError(
                f"--sums, --chains and --stories are weights, at least one above 0, got "
                f"{', '.join(map(str, self.weights))}"
            )
        if not 3 <= self.relations <= len(NODES):
            raise ValueError(f"--relations is from 3 to {len(NODES)}, got {self.relations}")
        longest = min(self.relations, self.width) - 1
        for name, low, high in (
            ("lengths", 2, self.width),
            ("hops", 1, longest),
            ("steps", 1, min(len(OPENINGS), self.width - 1)),
        ):
            values = getattr(self, name)
            if not values or not all(low <= value <= high for value in values):
                raise ValueError(
                    f"--{name} with --width {self.width} and --relations {self.relations} are "
                    f"numbers from {low} to {high}, got {','.join(map(str, values)) or 'none'}"
                )

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of KINDS, in that order."""
        return self.sums, self.chains, self.stories


@dataclass(frozen=True)
class Document:
    """One text and all that a metric needs to know about it.

    Attributes:
        text: question, newline, perhaps OPEN, a working and CLOSE, then the answer.
        kind: one of KINDS.
        difficulty: summands, hops or changes.
        style: one of STYLES; "none" where the working is left out.
        question: the text before the newline.
        answer: one token of the tokenizer of the bundled model, which ends the text.
        answer_start, answer_end: characters `text[answer_start:answer_end]` are the answer.
        working: what the useful working is, written or not, without its marks.
        needed: leading tokens of the working that reach the answer; the others repeat it.
        choices: every answer that this kind of document can have.
    """

    text: str
    kind: str
    difficulty: int
    style: str
    question: str
    answer: str
    answer_start: int
    answer_end: int
    working: str
    needed: int
    choices: tuple[str, ...]


# ---- documents -----------------------------------------------------------------------------------
def fill(tokens: Sequence[str], width: int) -> str:
    """The first `width` tokens, the last one repeated where there are fewer."""
    return "".join([*tokens, *[tokens[-1]] * width][:width])


def document(problem: Problem, style: str, width: int, times: int = 1) -> Document:
    """Write a problem down in one of STYLES, the working so many times."""
    working = fill(problem.stops, width)
    written = {
        "useful": working,
        "repeat": fill((REPEAT, *problem.operands), width),
        "reverse": fill((REVERSE, *problem.operands[::-1]), width),
    }
    marked = "" if style == "none" else f"{OPEN}{written[style]}{CLOSE}" * times
    before = f"{problem.question}\n{marked}"
    answer = problem.stops[-1]
    return Document(
        text=before + answer,
        kind=problem.kind,
        difficulty=problem.difficulty,
        style=style,
        question=problem.question,
        answer=answer,
        answer_start=len(before),
        answer_end=len(before) + len(answer),
        working=working,
        needed=len(problem.stops),
        choices=problem.choices,
    )


def documents(world: World, seed: int, split: Split) -> Iterator[Document]:
    """Documents without end; same world, seed and split, same documents.

    Args:
        world: kinds, styles, difficulties and their shares.
        seed: any integer.
        split: "train" or "heldout"; their problems are disjoint whatever the seeds.

    Raises:
        ValueError: if the split is unknown, or holds no problem of a drawn difficulty.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split {' or '.join(SPLITS)}, found {split!r}; name one")
    rng = random.Random(f"{seed} {split}")
    unhelpful = (1 - world.useful) / 2
    styles = [world.written * share for share in (world.useful, unhelpful, unhelpful)]
    while True:
        (kind,) = rng.choices(KINDS, world.weights)
        (style,) = rng.choices(STYLES, [*styles, 1 - world.written])
        times = 1
        while style != "none" and rng.random() < world.again:
            times += 1
        yield document(_draw(rng, world, kind, split), style, world.width, times)


def _draw(rng: random.Random, world: World, kind: str, split: Split) -> Problem:
    difficulty = rng.choice({"sum": world.lengths, "chain": world.hops, "story": world.steps}[kind])
    for _ in range(100_000):
        if kind == "sum":
            problem = running_sum(rng, difficulty, world.width)
        elif kind == "chain":
            problem = chain(rng, difficulty, world.relations)
        else:
            problem = story(rng, difficulty)
        if split_of(problem, world.heldout) == split:
            return problem
    raise ValueError(
        f"expected {split} problems of kind {kind}, difficulty {difficulty}, found none in 100,000 "
        f"draws with --heldout {world.heldout}; move it towards 0.5 or raise the difficulty"
    )


def read_recipe(folder: Path, split: Split) -> list[Document] | None:
    """The documents that a folder's text was made of; None for text that is not of this kind.

    Args:
        folder: holds the `world.json` that the command line below writes.
        split: "train" or "heldout".

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RECIPE
    if not path.is_file():
        return None
    try:
        recipe = json.loads(path.read_bytes())
        settings = {k: tuple(v) if type(v) is list else v for k, v in recipe["world"].items()}
        some = documents(World(**settings), recipe["seed"], split)
        count = recipe["documents"][split]
        if count < 1:
            raise ValueError(f"{count} {split} documents")
        return list(itertools.islice(some, count))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected what python -m qs.synthetic writes, found {error}"
        ) from None


# ---- command line --------------------------------------------------------------------------------
def write(path: Path, some: Iterator[Document], count: int) -> None:
    """Write the first `count` documents as JSON lines; a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for item in tqdm(itertools.islice(some, count), path.name, count, unit=" documents"):
                file.write(json.dumps(dataclasses.asdict(item)) + "\n")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def numbers(text: str) -> tuple[int, ...]:
    """Integers parted by commas, as the flags of difficulties take them."""
    return tuple(int(part) for part in text.split(","))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for every setting of World; an absent flag leaves no trace."""
    hints = typing.get_type_hints(World)
    for f in dataclasses.fields(World):
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        many = hints[f.name] == tuple[int, ...]
        parser.add_argument(
            f"--{f.name}",
            type=numbers if many else hints[f.name],
            metavar="N,N,..." if many else {int: "N", float: "X"}[hints[f.name]],
            default=argparse.SUPPRESS,
            help=f"{f.metadata['help']} [{shown}]",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, 2 where a setting or a file is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m qs.synthetic",
        description="Write train.jsonl and heldout.jsonl (text with reasoning steps sometimes "
        "written and sometimes not, and all that a metric needs to know about each document) and "
        "world.json, which says what they were drawn from.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--documents", type=int, default=200_000, metavar="N", help="to train on")
    parser.add_argument("--tests", type=int, default=3_000, metavar="N", help="held-out documents")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same text")
    add_flags(parser)
    given: dict[str, Any] = vars(parser.parse_args(argv))
    out, seed = given.pop("out"), given.pop("seed")
    counts = dict(zip(SPLITS, (given.pop("documents"), given.pop("tests")), strict=True))
    try:
        if min(counts.values()) < 1:
            raise ValueError(f"--documents and --tests are at least 1, got {counts}")
        world = World(**given)
        for split, count in counts.items():
            write(out / f"{split}.jsonl", documents(world, seed, split), count)
        recipe = {"world": dataclasses.asdict(world), "seed": seed, "documents": counts}
        (out / RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"qs.synthetic: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
