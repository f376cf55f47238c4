"""What a person reads of the controls: a Markdown page that says how its tables were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qs.answers import Marked
from qs.controls import BEFORE, UNREWARDED, Row
from qs.masks import PADDING

HEADS = (
    "control",
    "seeds",
    "gold answer probability",
    "minus before training",
    "minus beta = 0",
    "NLL at answers",
    "thoughts with the steps",
    "weight at answers",
    "NLL of other tokens",
    "minus before training",
    "training, s",
)


def cells(line: Row) -> list[str]:
    """A row as text, in the order of HEADS."""

    def spread(low_high: tuple[float, float] | None) -> str:
        if low_high is None or line.seeds < 2:
            return ""
        return f" ({low_high[0]:.3f} to {low_high[1]:.3f})"

    def half(value: float | None, digits: int) -> str:
        return "" if value is None else f" ± {value:.{digits}f}"

    def change(value: tuple[float, float | None] | None, digits: int) -> str:
        return "-" if value is None else f"{value[0]:+.{digits}f}{half(value[1], digits)}"

    name = line.name
    if line.rewarded is not None and line.rewarded < 1:
        name += f" ({100 * (1 - line.rewarded):.0f} % of the answers earn no reward)"
    return [
        name,
        str(line.seeds),
        f"{line.gold:.3f}{half(line.gold_interval, 3)}{spread(line.gold_seeds)}",
        change(line.gold_change, 3),
        change(line.gold_unrewarded, 3),
        f"{line.nll:.2f}",
        "-" if line.useful is None else f"{line.useful:.3f}{spread(line.useful_seeds)}",
        "-" if line.weight is None else f"{line.weight:.2f}",
        f"{line.other:.4f}{half(line.other_interval, 4)}",
        change(line.other_change, 4),
        "-" if line.seconds is None else f"{line.seconds:.0f}",
    ]


def markdown(lines: Sequence[Row]) -> str:
    """A Markdown table."""
    table = [HEADS, ["---"] * len(HEADS), *map(cells, lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"


COMMENTS = "## What the rows show"
NOTES = """{questions:,} questions and {tokens:,} other tokens in {rows:,} rows of held-out text.
Means over seeds; ± is half of a 95 % interval over questions (for other tokens: over rows of text),
each taken as its mean over seeds; in brackets the smallest and the largest seed. Gold answer
probability is renormalised over possible answers, on questions whose working is left out, one
thought sampled {how} before every token. "minus" is the paired difference on the same
questions or rows of text: from the model before training, without thoughts, and from the row
`{unrewarded}`. The row `{before}` thinks with the start and end
vectors that training begins from. A thought earns a reward only if its m tokens are left in the
document: where a row says that answers earn none, REINFORCE never saw their thoughts, and the row
is no fair comparison.
"""


def notes(text: Marked, temperature: float) -> str:
    """What a reader needs to know to read the tables.

    Args:
        text: what was measured.
        temperature: that thoughts were sampled at.
    """
    inside = text.documents != PADDING
    same = text.documents[:, 1:] == text.documents[:, :-1]
    targets = int((inside[:, 1:] & same).sum())
    return NOTES.format(
        questions=len(text.questions),
        tokens=targets - len(text.questions),
        rows=len(text.tokens),
        how=f"at temperature {temperature:g}" if temperature else "greedily",
        unrewarded=UNREWARDED,
        before=BEFORE,
    )


def page(tables: dict[str, list[Row]], command: str, made: Mapping[str, object], about: str) -> str:
    """The tables as a Markdown page that says how they were made.

    Args:
        tables: rows by title.
        command: that made them.
        made: what "Measured with" and "Trained with" are, ...
        about: how to read them.
    """
    how = "\n".join(f"{key} {value}." for key, value in made.items())
    parts = [f"# Controls\n\n```sh\n{command}\n```\n\n{how}\n", about]
    parts += [f"## {title}\n\n{markdown(lines)}" for title, lines in tables.items()]
    return "\n".join(parts)


def keep_comments(path: Path, text: str) -> None:
    """Write a page; what a person wrote below COMMENTS is kept."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    comments = old[old.index(COMMENTS) :] if COMMENTS in old else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n{comments}" if comments else text, encoding="utf-8")
