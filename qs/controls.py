"""Controls: what else could have made the difference that is claimed for thinking.

Two sorts. With the weights of a run, its thoughts are replaced (`REPLACED`). With the run's data,
order of rows, number of steps and seed, something else is trained (`rivals`). All are measured on
the same held-out text and questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qs.answers import Change, Measured
from qs.config import Config
from qs.masks import PADDING
from qs.quiet import PAUSE, QuietStar
from qs.tasks import mean_interval, ratio_interval

LENGTHS = (0, 1, 2, 4, 8, 12)  # n of the curve; the run's own is added


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


OWN = "Quiet-STaR"
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
        return self.config.run.objective == "quiet" and self.config.thought.thoughts > 0


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
    add("without REINFORCE (beta = 0)", beta=0.0)
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


def row(
    name: str,
    found: Sequence[Measured],
    thinks: bool = True,
    sampled: bool = True,
    seconds: float | None = None,
) -> Row:
    """A line of the table.

    Args:
        name: of the control.
        found: one for each seed, on the same questions.
        thinks: whether the second columns mean anything.
        sampled: whether its thoughts were sampled.
        seconds: of training.
    """
    column = 1 if thinks else 0
    gold = np.stack([f.gold[:, column] for f in found])  # (seeds, Q)
    useful = np.stack([f.useful for f in found]).mean(1)
    other = np.stack([f.other for f in found]).mean(0)  # (R, 4)
    sums, counts = other[:, 1 + column], other[:, 0]
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
    )


HEADS = (
    "control",
    "seeds",
    "gold answer probability",
    "NLL at answers",
    "thoughts with the steps",
    "weight at answers",
    "NLL of other tokens",
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

    return [
        line.name,
        str(line.seeds),
        f"{line.gold:.3f}{half(line.gold_interval, 3)}{spread(line.gold_seeds)}",
        f"{line.nll:.2f}",
        "-" if line.useful is None else f"{line.useful:.3f}{spread(line.useful_seeds)}",
        "-" if line.weight is None else f"{line.weight:.2f}",
        f"{line.other:.4f}{half(line.other_interval, 4)}",
        "-" if line.seconds is None else f"{line.seconds:.0f}",
    ]


def markdown(lines: Sequence[Row]) -> str:
    """A Markdown table."""
    table = [HEADS, ["---"] * len(HEADS), *map(cells, lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"


COMMENTS = "## What the rows show"
NOTES = """Means over seeds; ± is half of a 95 % interval over questions (for other tokens: over
rows of text), each question taken as its mean over seeds; in brackets the smallest and the largest
seed. Gold answer probability is renormalised over possible answers, on held-out questions whose
working is left out, one thought sampled at temperature 1 before every token.
"""


def controls_page(tables: dict[str, list[Row]], command: str, environment: dict) -> str:
    """The tables as a Markdown page that says how they were made."""
    found = ", ".join(f"{key} {value}" for key, value in environment.items())
    parts = [f"# Controls\n\n```sh\n{command}\n```\n\nMade with {found}.\n", NOTES]
    parts += [f"## {title}\n\n{markdown(lines)}" for title, lines in tables.items()]
    return "\n".join(parts)


def keep_comments(path: Path, text: str) -> None:
    """Write a page; what a person wrote below COMMENTS is kept."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    comments = old[old.index(COMMENTS) :] if COMMENTS in old else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n{comments}" if comments else text, encoding="utf-8")
