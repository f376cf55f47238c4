"""Controls: what else could have made the difference that is claimed for thinking.

Two sorts. With the weights of a run, its thoughts are replaced (`REPLACED`). With the run's data,
order of rows, number of steps and seed, something else is trained (`rivals`). All are measured on
the same held-out text and questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qs.config import PADDING, Config
from qs.evaluation.statistics import mean_interval, ratio_interval
from qs.evaluation.synthetic import Change, Marked, Measured
from qs.quietstar.algorithm import PAUSE, QuietStar

LENGTHS = (0, 1, 2, 4, 8, 12)  # n that is trained
EVALUATED = (0, 1, 2, 3, 4, 6, 7, 8, 10, 12, 14)  # n in evaluation only; the run's own is added


def shuffled(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: torch.Generator
) -> Tensor:
    """Thoughts (B, T, 1, n) dealt out anew among the positions of the batch, padding left out."""
    there = (documents != PADDING).flatten().nonzero().flatten()
    order = torch.randperm(len(there), generator=generator).to(there.device)
    mixed = thoughts.flatten(0, 1).clone()
    mixed[there] = mixed[there[order]]
    return mixed.view_as(thoughts)


def random_tokens(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: torch.Generator
) -> Tensor:
    """Tokens drawn evenly from all that a thought may hold."""
    config = quiet.model.config
    allowed = torch.tensor(sorted(set(range(config.vocab_size)) - set(config.forbidden)))
    drawn = torch.randint(len(allowed), thoughts.shape, generator=generator)
    return allowed[drawn].to(thoughts.device)


def pauses(
    quiet: QuietStar, documents: Tensor, thoughts: Tensor, generator: torch.Generator
) -> Tensor:
    """The start token repeated."""
    return torch.full_like(thoughts, PAUSE)


@dataclass(frozen=True)
class Replaced:
    """A replacement of the thoughts of a trained model.

    Attributes:
        name: of the row.
        change: other thoughts; None: its own.
        fixed_weight: mixing weight; None: the head's.
    """

    name: str
    change: Change | None = None
    fixed_weight: float | None = None


OWN, BEFORE = "Quiet-STaR", "before training"
UNREWARDED = "without REINFORCE (beta = 0)"
REPLACED = (
    Replaced(OWN),
    Replaced("thoughts off (weight 0)", fixed_weight=0.0),
    Replaced("always the thought (weight 1)", fixed_weight=1.0),
    Replaced("thoughts shuffled between positions", shuffled),
    Replaced("random tokens as thoughts", random_tokens),
    Replaced("start token repeated as thoughts", pauses),
)


@dataclass(frozen=True)
class Rival:
    """Something else to train.

    Attributes:
        name: of the row, and of the folder it is trained in.
        config: its settings.
    """

    name: str
    config: Config

    @property
    def thinks(self) -> bool:
        """Whether there are thoughts (or pauses) to evaluate."""
        return self.config.run.thinks

    @property
    def sampled(self) -> bool:
        """Whether its thoughts are sampled tokens."""
        return self.config.sampled


def rivals(config: Config) -> list[Rival]:
    """What is trained beside a run: one thing differs from it each time.

    Args:
        config: of the run.
    """
    found = []

    def add(name: str, **changes: object) -> None:
        groups = {}
        for group in ("thought", "optim", "run"):
            settings = getattr(config, group)
            mine = {k: v for k, v in changes.items() if hasattr(settings, k)}
            groups[group] = dataclasses.replace(settings, **mine)
        if Config(**groups) != config:
            found.append(Rival(name, Config(**groups)))

    add("plain training", objective="plain")
    add("pause tokens", objective="pause")
    add(UNREWARDED, beta=0.0)
    for m in (1, 2, 4):
        add(f"m = {m}", ahead=m)
    for K in (2, 4):
        add(f"K = {K}", samples=K)
    for n in LENGTHS:
        add(f"n = {n}", thoughts=n, beta=config.thought.beta if n else 0.0)
    return found


def with_seed(config: Config, seed: int) -> Config:
    """The same run with another seed."""
    return dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))


def with_thought(config: Config, **changes: object) -> Config:
    """The same run with other settings of thoughts."""
    return dataclasses.replace(config, thought=dataclasses.replace(config.thought, **changes))


@dataclass(frozen=True)
class Row:
    """One line of the table: means over seeds, 95 % intervals, smallest and largest seed.

    Attributes:
        name: of the control.
        seeds: how many.
        gold, gold_interval, gold_seeds: gold answer probability; half-width of the interval of its
            mean, questions as units (each the mean over seeds); smallest and largest of the seeds.
        nll: NLL in nats at the answers.
        useful, useful_seeds: share of thoughts that hold the steps; None without sampled thoughts.
        other, other_interval: NLL in nats of all other tokens; rows of text as units.
        weight: mean mixing weight at the answers.
        seconds: of training, mean over seeds; None where nothing was trained.
        gold_change, gold_unrewarded: gold less that of the model before training, and less that of
            UNREWARDED, with the half-width of the 95 % interval, paired by question.
        other_change: other less that of the model before training, paired by row of text.
        rewarded: share of the answers whose thoughts REINFORCE rewarded in training.
    """

    name: str
    seeds: int
    gold: float
    gold_interval: float | None
    gold_seeds: tuple[float, float]
    nll: float
    useful: float | None
    useful_seeds: tuple[float, float] | None
    other: float
    other_interval: float | None
    weight: float | None
    seconds: float | None = None
    gold_change: tuple[float, float | None] | None = None
    gold_unrewarded: tuple[float, float | None] | None = None
    other_change: tuple[float, float | None] | None = None
    rewarded: float | None = None


def row(
    name: str,
    found: Sequence[Measured],
    thinks: bool = True,
    sampled: bool = True,
    seconds: float | None = None,
    before: Sequence[Measured] = (),
    unrewarded: Sequence[Measured] = (),
    rewarded: float | None = None,
) -> Row:
    """A line of the table.

    Args:
        name: of the control.
        found: one for each seed, on the same questions.
        thinks: whether the second columns mean anything.
        sampled: whether its thoughts were sampled.
        seconds: of training.
        before, unrewarded: to compare with, on the same questions; empty: nothing. The model before
            training is taken without thoughts.
        rewarded: share of the answers that were rewarded in training.
    """
    column = 1 if thinks else 0
    gold = np.stack([f.gold[:, column] for f in found])  # (seeds, Q)
    useful = np.stack([f.useful for f in found]).mean(1)
    sums, counts = _other(found, column)
    others = sums - _other(before, 0)[0] if before else None
    return Row(
        name=name,
        seeds=len(found),
        gold=float(gold.mean()),
        gold_interval=mean_interval(gold.mean(0)),
        gold_seeds=(float(gold.mean(1).min()), float(gold.mean(1).max())),
        nll=float(np.mean([f.nll[:, column] for f in found])),
        useful=float(useful.mean()) if thinks and sampled else None,
        useful_seeds=(float(useful.min()), float(useful.max())) if thinks and sampled else None,
        other=float(sums.sum() / counts.sum()),
        other_interval=ratio_interval(sums, counts),
        weight=float(np.mean([f.weight for f in found])) if thinks else None,
        seconds=seconds,
        gold_change=_gold_change(found, column, before, 0),
        gold_unrewarded=_gold_change(found, column, unrewarded, 1),
        other_change=None
        if others is None
        else (float(others.sum() / counts.sum()), ratio_interval(others, counts)),
        rewarded=rewarded,
    )


def _other(found: Sequence[Measured], column: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) sums of NLL and numbers of other tokens in each row of text, means over seeds."""
    other = np.stack([f.other for f in found]).mean(0)  # (R, 4)
    return other[:, 1 + column], other[:, 0]


def _gold_change(
    found: Sequence[Measured], column: int, others: Sequence[Measured], theirs: int
) -> tuple[float, float | None] | None:
    """Mean over questions of the difference of `gold`, each its mean over seeds."""
    if not others:
        return None
    one, two = (
        np.stack([f.gold[:, which] for f in some]).mean(0)
        for some, which in ((found, column), (others, theirs))
    )
    return float((one - two).mean()), mean_interval(one - two)


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
