"""What was thought before every token of some text: as records, and on a terminal.

Text is data: what does not show becomes a mark (`output.visible`), so that nothing in it controls a
terminal.
"""

import math
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from qs.config import PADDING, Config
from qs.data.dataset import TokenDataset
from qs.evaluation.synthetic import heldout_text
from qs.evaluation.tokens import Question
from qs.inference.decoding import thought_text
from qs.model.tokenizer import Tokenizer
from qs.output import visible
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import eager
from qs.quietstar.sampler import step_generator
from qs.quietstar.terms import Step

LEVELS = (0.05, 0.15, 0.5, 1.5)  # nats from which a token is shaded, and shaded more
COLORS = (0, 195, 153, 117, 75, 208, 215, 223, 230)  # of a terminal's 256, by level: [-1] hurt
FEW = 5  # tokens that are told after a passage
NARROWEST = 48  # columns of a terminal
EMPTY = "∅"
WORKS = "✓"  # beside a thought that holds the working

EARNED = {  # what each kind of reward is
    "information-gain": "how many nats likelier one thought made the true tokens that follow",
    "exact": "1 if with one thought each true token that follows is the likeliest, else 0",
    "probability": "mean probability of the true tokens that follow, with one thought",
}


@dataclass(frozen=True)
class Thought:
    """One thought."""

    text: str  # its tokens, decoded
    reward: float  # of the true tokens that follow, by default in nats: see `EARNED`
    weight: float  # mixing weight of the next token's prediction
    works: bool = False  # it begins with all steps to the answer that follows, where it is known


@dataclass(frozen=True)
class PassageToken:
    """One token of a text."""

    text: str  # decoded: any characters, or none
    gain: float | None  # nats, NLL without thoughts minus with (their mean); None: not predicted
    nll: float | None  # nats, without thoughts
    thoughts: tuple[Thought, ...]  # those before this token, after the previous one
    answer: bool = False  # whether it is known to be the answer to a question


@dataclass(frozen=True)
class Passage:
    """A text as the model read it."""

    title: str
    tokens: tuple[PassageToken, ...]

    def gains(self) -> list[tuple[float, int]]:
        """(gain, place) of the tokens whose gain is known, largest |gain| first."""
        gains = ((token.gain, i) for i, token in enumerate(self.tokens))
        known = [(gain, i) for gain, i in gains if gain is not None and not math.isnan(gain)]
        return sorted(known, key=lambda item: -abs(item[0]))

    def largest(self) -> list[tuple[float, int]]:
        """The FEW first of them that are large enough to be shaded."""
        return [(gain, place) for gain, place in self.gains()[:FEW] if gain_level(gain)]


@dataclass(frozen=True)
class Passages:
    """Passages in the order of the text, of which nothing was chosen, and a few to show first."""

    passages: list[Passage]
    # indices: the first question of each kind, where they are known, then the second ones, and so
    # on; else the first passages
    examples: list[int]
    earned: str = EARNED["information-gain"]  # what a reward is, in words

    def examples_text(self, count: int) -> str:
        """At most `count` examples for this terminal."""
        color = sys.stdout.isatty()
        return "\n\n".join(passage_text(self.passages[i], color) for i in self.examples[:count])


@torch.no_grad()
def read_thoughts(
    quiet: QuietStar, data: TokenDataset, tokenizer: Tokenizer, config: Config, rows: int
) -> Passages:
    """Think before every token of at most `rows` rows of held-out text.

    K thoughts at every position, judged on m tokens, as trained. Of the settings, seq and seed are
    used.
    """
    text = heldout_text(data, tokenizer, config.run.seq, rows)
    questions = {(q.row, int(text.documents[q.row, q.position])): q for q in text.questions or ()}
    generator, device = step_generator(config.run.seed, 0), quiet.start.device
    passages: list[Passage] = []
    kinds: list[str] = []
    for row, (tokens, documents) in enumerate(zip(text.tokens, text.documents, strict=True)):
        with quiet.with_settings(anchors="all", anchor_share=1.0), eager(quiet):
            step = quiet(tokens[None].to(device), documents[None].to(device), generator=generator)
        for i, number in enumerate(documents[documents != PADDING].unique().tolist()):
            title, kind = f"row {row + 1}, part {i + 1}", ""  # a row may begin inside a document
            places = (documents == number).nonzero().flatten().tolist()
            if question := questions.get((row, number)):
                kind, gold = question.kind, question.choices[question.gold]
                read = tokens[places[0] : question.position + 1].tolist()
                working = thought_text(tokenizer, read, list(question.working)).strip()
                title += f", {kind} of {question.difficulty}: working left out ({working})"
                title += f", answer {tokenizer.piece(gold).strip()}"
            shown = tuple(_tokens(step, tokens, places, tokenizer, question))
            passages.append(Passage(title, shown))
            kinds.append(kind)
    ranks = [(kinds[:i].count(kind), i) for i, kind in enumerate(kinds) if kind]
    examples = [i for _, i in sorted(ranks)] or list(range(len(passages)))
    return Passages(passages, examples, _earned(quiet))


def _earned(quiet: QuietStar) -> str:
    if quiet.reward:
        return "what one thought earned, by a rule of one's own"
    less = ", less the cost of its tokens" * (quiet.config.thought_cost > 0)
    return EARNED[quiet.config.reward] + less


def _tokens(
    step: Step,
    tokens: Tensor,
    places: Sequence[int],
    tokenizer: Tokenizer,
    question: Question | None = None,
) -> Iterator[PassageToken]:
    """The tokens at neighbouring positions of the one row of a step, with a question or without."""

    def text_of(token: int) -> str:
        special = token in (tokenizer.bos_id, *tokenizer.ends)
        return "" if special else tokenizer.piece(token)

    ids = tokens.tolist()
    yield PassageToken(text_of(int(tokens[places[0]])), None, None, ())
    for t in places[:-1]:  # what was thought after t is told of the next token
        nll, judged = step.nll_base[0, t].item(), bool(step.valid[0, t].all())
        answer = question is not None and t == question.position
        working = list(question.working) if answer else []
        thoughts = tuple(
            Thought(
                text=thought_text(tokenizer, ids[places[0] : t + 1], thought),
                reward=step.reward[0, t, k].item() if judged else math.nan,
                weight=step.weight[0, t, k, 0].item(),
                works=answer and thought[: len(working)] == working,
            )
            for k, thought in enumerate(step.thoughts[0, t].tolist())
        )
        gain = nll - step.nll_mix[0, t, :, 0].mean().item()
        yield PassageToken(text_of(int(tokens[t + 1])), gain, nll, thoughts, answer)


# What is shown of text and numbers


def one_line(text: str) -> str:
    """Text on one line, with its marks; `EMPTY` if there is nothing."""
    return "".join(visible(text)) or EMPTY


def two_decimals(value: float | None, sign: str = "+") -> str:
    """A short number; `sign` as in format(): "+" for differences, "-" for the rest."""
    if value is None:
        return "–"
    large = math.isfinite(value) and abs(value) >= 1000
    text = f"{value:{sign}.1e}" if large else f"{value:{sign}z.2f}"
    return "nan" if math.isnan(value) else text.replace("-", "−").replace("inf", "∞")


def gain_level(gain: float | None) -> int:
    """How many of LEVELS a gain reaches; negative for a loss, 0 for None and nan."""
    if gain is None or math.isnan(gain):
        return 0
    return int(math.copysign(bisect_right(LEVELS, abs(gain)), gain))


# On a terminal


def passage_text(passage: Passage, color: bool, width: int = 100) -> str:
    """A passage for a terminal, then the tokens that thinking changed most.

    Args:
        passage: nothing in it reaches the terminal as a control character.
        color: shade tokens by their gain and underline what was hurt; if False, tokens that gained
            or lost at least LEVELS[1] nats stand in brackets with their gain.
        width: columns of a line, at least NARROWEST.
    """
    width = max(width, NARROWEST)
    glyphs = [glyph for token in passage.tokens for glyph in _glyphs(token, color)]
    lines = [_fit(one_line(passage.title), width), "", *_wrapped(glyphs, width)]
    if gains := passage.largest():
        lines += ["", f"{'gain':>8} {'weight':>8}  {'token':14}best thought"]
    for gain, place in gains:
        token = passage.tokens[place]
        thoughts = sorted(token.thoughts, key=lambda x: (math.isnan(x.reward), -x.reward))
        best, weight = "–", None
        if thoughts:
            best, weight = one_line(thoughts[0].text), thoughts[0].weight
            best += f" {WORKS}" * thoughts[0].works
        numbers = f"{two_decimals(gain):>8} {two_decimals(weight, '-'):>8}"
        row = f"{numbers}  {_fit(one_line(token.text), 12)}  "
        lines.append(row + _fit(best, width - display_width(row)))
    return "\n".join(text.rstrip(" ") for text in lines)


def _glyphs(token: PassageToken, color: bool) -> Iterator[tuple[str, str]]:
    """What to write and its colours, one by one; a line break is a glyph of its own."""
    level, marks = gain_level(token.gain), visible(token.text) or [EMPTY]
    if color or abs(level) < 2:
        shade = f"38;5;16;48;5;{COLORS[level]}{';4' * (level < 0)}" if color and level else ""
        for char, mark in zip(token.text or " ", marks, strict=True):
            yield mark, shade
            if char == "\n":
                yield "\n", ""
        return
    text = "".join(marks)
    blank = len(text) - len(text.lstrip(" ") or text)
    pieces = [*text[:blank], "[", *text[blank:], f" {two_decimals(token.gain)}]"]
    yield from ((piece, "") for piece in pieces + ["\n"] * ("\n" in token.text))


def _wrapped(glyphs: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Lines of at most `width` columns, broken after a space where there is one.

    `textwrap` counts characters, not columns, and would count colours too.
    """
    row: list[tuple[str, str]] = []
    for glyph in [*glyphs, ("\n", "")]:
        if glyph[0] == "\n":
            yield _line(row)
            row = []
            continue
        row.append(glyph)
        while sum(display_width(text) for text, _ in row) > width:
            spaces = (i for i in range(len(row) - 1, 0, -1) if row[i - 1][0] == " ")
            cut = next(spaces, len(row) - 1)
            yield _line(row[:cut])
            row = row[cut:]


def _line(row: Sequence[tuple[str, str]]) -> str:
    line = ""
    for shade, run in groupby(row, key=lambda glyph: glyph[1]):
        text = "".join(piece for piece, _ in run)
        line += f"\x1b[{shade}m{text}\x1b[0m" if shade else text
    return line


def display_width(text: str) -> int:
    """How many columns a terminal shows it in."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)


def _fit(text: str, width: int) -> str:
    """Text cut or filled to `width` columns."""
    if display_width(text) > width:
        ends = accumulate(map(display_width, text))
        text = "".join(char for char, end in zip(text, ends, strict=True) if end < width) + "…"
    return text + " " * (width - display_width(text))
